"""k-means: unlabeled images learn the class of their nearest centroid in feature space.

Centroids follow the L2-normalised batch features by an exponential moving average. A cluster's
index says nothing about a class: with `cluster_to_class: matched` clusters are assigned to classes
by the Hungarian algorithm on labeled features; `raw` takes index for class.

Shapes: N labeled, U unlabeled images, K classes = clusters, D feature dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, ModelSpec, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Sample, Task
from tune_ssl.methods.base import Method, Network, Prediction, StepOutput
from tune_ssl.methods.supervised import (
    StrongView,
    SupervisedSpec,
    SupervisedStage,
    WeakView,
    supervised_loss,
)

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")

Temperature = Annotated[float, Field(gt=0)]


class KMeansSpec(SupervisedSpec):
    name: Literal["kmeans"] = "kmeans"  # type: ignore[assignment]
    weak_view: WeakView = "weak"
    strong_view: StrongView = "strong"
    cluster_to_class: Literal["matched", "raw"] = "matched"
    match_every: Size = Field(
        10, description="steps from one assignment of clusters to classes to the next"
    )
    centroid_init: Literal["labeled_means", "kmeans++", "random"] = "labeled_means"
    centroid_momentum: Fraction = Field(0.9, description="share of the old centroid in an update")
    cluster_all: bool = Field(False, description="labeled features update the centroids too")
    consistency_temperature: Temperature = 1.0


SpecT = TypeVar("SpecT", bound=KMeansSpec)


class KMeansStage(SupervisedStage[SpecT]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "cluster", "augmentation_consistency")
    evaluators: ClassVar[tuple[str, ...]] = ("classifier", "clusters")
    splits_batches: ClassVar[bool] = False  # the centroids move once in a step, by all its images

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view, self.spec.strong_view)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        return models.ClusterClassifier(task, model)

    def start(self, network: Network, sample: Sample) -> None:
        labeled = [(network(images)[0], labels) for images, labels in sample.labeled()]
        unlabeled = [network(images)[0] for images in sample.unlabeled()]
        network.centroids.start(
            self.spec.centroid_init,
            normalize(torch.cat([features for features, _ in labeled])),
            torch.cat([labels for _, labels in labeled]),
            normalize(torch.cat(unlabeled)),
        )

    def step(self, network: Network, batch: Batch) -> StepOutput:
        sizes = [len(batch.labels_N), *(len(view) for view in batch.unlabeled)]
        features, logits = network(torch.cat([batch.labeled[0], *batch.unlabeled]))
        features_ND, weak_UD, _ = normalize(features.detach()).split(sizes)
        logits_NK, weak_UK, strong_UK = logits.float().split(sizes)

        clusters_NK = self.cluster_logits(network, features_ND)
        clusters_UK = self.cluster_logits(network, weak_UD)
        targets_UK = self.assign(clusters_UK)
        if self.spec.cluster_to_class == "matched":
            found_N = clusters_NK.argmax(dim=1)
            network.centroids.match(found_N, batch.labels_N, self.spec.match_every)
        order_K = network.centroids.cluster_of_class
        losses = {
            "supervised": supervised_loss(logits_NK, batch.labels_N, batch.balance),
            "cluster": F.cross_entropy(weak_UK, targets_UK[:, order_K]),
            "augmentation_consistency": augmentation_consistency(
                weak_UK, strong_UK, self.spec.consistency_temperature
            ),
            **self.more_losses(
                logits_NK, weak_UK, clusters_NK[:, order_K], clusters_UK[:, order_K]
            ),
        }

        moved_MD, weights_MK = weak_UD, targets_UK
        if self.spec.cluster_all:
            moved_MD = torch.cat([weak_UD, features_ND])
            weights_MK = torch.cat([targets_UK, self.assign(clusters_NK)])
        network.centroids.update(moved_MD, weights_MK, self.spec.centroid_momentum)
        return StepOutput(losses, cluster_diagnostics(targets_UK))

    def predict(self, network: Network, images: Tensor) -> Prediction:
        features_ND, logits_NK = network(images)
        clusters_NK = self.cluster_logits(network, normalize(features_ND))
        return Prediction(
            features_ND, logits_NK, clusters_NK[:, network.centroids.cluster_of_class]
        )

    def cluster_logits(self, network: Network, features_ND: Tensor) -> Tensor:
        """Minus the Euclidean distance to each centroid: (N, K)."""
        return -torch.cdist(features_ND, network.centroids.centers_KD)

    def assign(self, clusters_UK: Tensor) -> Tensor:
        """Cluster targets (U, K), rows summing to 1: here one-hot on the nearest centroid."""
        return F.one_hot(clusters_UK.argmax(dim=1), clusters_UK.shape[1]).float()

    def more_losses(self, *logits: Tensor) -> dict[str, Any]:
        return {}


class KMeans(Method[KMeansSpec]):
    name = "kmeans"
    Spec = KMeansSpec
    losses = {
        "supervised": SupervisedLossSpec(),
        "cluster": LossSpec(ramp_up=0.4),
        "augmentation_consistency": LossSpec(),
    }
    stage_types = (KMeansStage,)
    searched = {
        "optim.lr": {"log_uniform": [3e-4, 3e-2]},
        "losses.cluster.weight": {"log_uniform": [0.01, 10]},
        "losses.cluster.ramp_up": {"uniform": [0, 0.8]},
        "losses.augmentation_consistency.weight": {"log_uniform": [0.01, 10]},
    }


def normalize(features_ND: Tensor) -> Tensor:
    """Rows of length 1, in float32; a row of zeros stays zero."""
    return F.normalize(features_ND.float(), dim=1, eps=1e-6)


def augmentation_consistency(weak_UK: Tensor, strong_UK: Tensor, temperature: float) -> Tensor:
    """Symmetric KL between the two views' predictions, mean over the batch.

    1/2 (KL(Pw || Ps) + KL(Ps || Pw)) with P = softmax(logits / T); both views carry gradients.
    Logits (U, K), T > 0; in log space throughout, so that no probability underflows to log 0.
    """
    log_weak_UK = F.log_softmax(weak_UK.float() / temperature, dim=1)
    log_strong_UK = F.log_softmax(strong_UK.float() / temperature, dim=1)
    difference_UK = log_weak_UK - log_strong_UK
    # KL(Pw||Ps) + KL(Ps||Pw) = sum (Pw - Ps)(log Pw - log Ps)
    return ((log_weak_UK.exp() - log_strong_UK.exp()) * difference_UK).sum(dim=1).mean() / 2


def cluster_diagnostics(targets_UK: Tensor) -> dict[str, Tensor]:
    """Entropy of the batch's mean assignment in nats, and the share of its largest cluster."""
    shares_K = targets_UK.mean(dim=0)
    entropy = -torch.xlogy(shares_K, shares_K).sum()
    return {"cluster_entropy": entropy, "largest_cluster_share": shares_K.max()}
