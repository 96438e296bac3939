"""Soft k-means: unlabeled images learn softmax(-squared distance / T) over the centroids, and the
classifier and the clusters are asked to agree.

Shapes as in kmeans.py: N labeled, U unlabeled images, K classes = clusters, D feature dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec
from tune_ssl.methods.base import Method
from tune_ssl.methods.kmeans import KMeans, KMeansSpec, KMeansStage, Temperature

if TYPE_CHECKING:
    import torch.nn.functional as F
    from torch import Tensor
else:
    F = LazyModule("torch.nn.functional")


class SoftKMeansSpec(KMeansSpec):
    name: Literal["soft_kmeans"] = "soft_kmeans"  # type: ignore[assignment]
    temperature: Temperature = 0.1


class SoftKMeansStage(KMeansStage[SoftKMeansSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = (*KMeansStage.loss_terms, "cluster_consistency")

    def assign(self, clusters_UK: Tensor) -> Tensor:
        """Cluster probabilities (U, K): softmax(-squared distance / T)."""
        return F.softmax(-clusters_UK.square() / self.spec.temperature, dim=1)

    def more_losses(self, *logits: Tensor) -> dict[str, Tensor]:
        return {"cluster_consistency": cluster_consistency(*logits)}


class SoftKMeans(Method[SoftKMeansSpec]):
    name = "soft_kmeans"
    Spec = SoftKMeansSpec
    losses = {**KMeans.losses, "cluster_consistency": LossSpec(weight=0.1, ramp_up=0.4)}
    stage_types = (SoftKMeansStage,)
    searched = {
        **KMeans.searched,
        "losses.cluster_consistency.weight": {"log_uniform": [0.01, 10]},
        "method.temperature": {"log_uniform": [0.003, 0.3]},
    }


def cluster_consistency(
    logits_NK: Tensor, logits_UK: Tensor, clusters_NK: Tensor, clusters_UK: Tensor
) -> Tensor:
    """1/2 (CE(logits_U, argmax clusters_U) + CE(logits_N, argmax clusters_N)).

    Cluster logits are minus the distance to the centroid that stands for each class.
    """
    unlabeled = F.cross_entropy(logits_UK.float(), clusters_UK.argmax(dim=1))
    labeled = F.cross_entropy(logits_NK.float(), clusters_NK.argmax(dim=1))
    return (unlabeled + labeled) / 2
