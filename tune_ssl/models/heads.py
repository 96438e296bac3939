"""What stands on an encoder: the feature head, the classifier, and the centroids.

Shapes: N images, K classes = clusters, D feature dimension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.models import stem
from tune_ssl.models.encoders import build_encoder, freeze
from tune_ssl.models.teacher import Teacher
from tune_ssl.models.weights import load_weights


class Classifier(nn.Module):
    """Encoder -> features -> K logits.

    Head `mlp`: Linear to D = feature_dim features, then two Linear layers with ReLU. Head `linear`:
    the features are the encoder's own output, D = out_dim, and one Linear layer reads them. What
    `model.freeze` names of the encoder stays as it is, BatchNorm statistics included.
    """

    def __init__(self, task: Task, model: ModelSpec) -> None:
        super().__init__()
        self.encoder = encoder_for(task, model)
        self.frozen = freeze(self.encoder, model.freeze, model.encoder)
        out_dim: int = self.encoder.out_dim  # type: ignore[assignment]
        if model.head == "linear":
            self.feature_dim = out_dim
            self.features: nn.Module = nn.Identity()
            self.classifier: nn.Module = nn.Linear(out_dim, task.num_classes)
            return
        self.feature_dim = model.feature_dim
        self.features = nn.Linear(out_dim, model.feature_dim)
        self.classifier = nn.Sequential(
            nn.ReLU(),
            nn.Linear(model.feature_dim, model.hidden_dim),
            nn.ReLU(),
            nn.Linear(model.hidden_dim, task.num_classes),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) -> features (N, D), un-normalised, and logits (N, K).

        Of a frozen encoder its output (N, out_dim) may be given in the images' place.
        """
        features_ND = self.features(encoded(self.encoder, images))
        return features_ND, self.classifier(features_ND)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def encoder_for(task: Task, model: ModelSpec) -> nn.Module:
    """The spec's encoder for the task's images, with the spec's weights. UserError where they do not fit."""
    kind = stem(model.stem, task.image_size)
    encoder = build_encoder(model.encoder, task.channels, kind, task.size)
    load_weights(encoder, model, task.channels)
    return encoder


def encoded(encoder: nn.Module, images: Tensor) -> Tensor:
    """The encoder's output (N, out_dim); what is that already passes as it is."""
    out: Tensor = images if images.ndim == 2 else encoder(images)
    return out


@contextlib.contextmanager
def still_statistics(network: nn.Module) -> Iterator[None]:
    """In the block BatchNorm normalises as it does, by the batch in training, but does not learn from it."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class TransferClassifier(Classifier):
    """A classifier whose encoder was trained by a stage before it, where there was one."""

    def __init__(self, task: Task, model: ModelSpec, pretrained: nn.Module | None) -> None:
        if pretrained is not None:  # it comes with weights
            model = model.model_copy(update={"weights": "none"})
        super().__init__(task, model)
        if pretrained is not None:
            self.encoder.load_state_dict(pretrained.state_dict())


class PerturbedClassifier(Classifier):
    """A classifier that carries the network which perturbs its training images; that one is frozen."""

    def __init__(self, task: Task, model: ModelSpec, perturbation: nn.Module) -> None:
        super().__init__(task, model)
        self.perturbation = perturbation.requires_grad_(False)


class ClusterClassifier(Classifier):
    """A classifier whose features are clustered around K centroids."""

    def __init__(self, task: Task, model: ModelSpec) -> None:
        super().__init__(task, model)
        self.centroids = Centroids(task.num_classes, self.feature_dim)


class Centroids(nn.Module):
    """K unit-length centroids and the class that each stands for; buffers, never optimized.

    `matches` counts the calls of `match`. `_matches` is the same number without a wait for the device; None where it
    must be read from the buffer.
    """

    centers_KD: Tensor
    cluster_of_class: Tensor
    counts_KK: Tensor
    matches: Tensor

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        centers_KD = nn.functional.normalize(torch.randn(num_classes, feature_dim), dim=1)
        self.register_buffer("centers_KD", centers_KD)
        self.register_buffer("cluster_of_class", torch.arange(num_classes))
        self.register_buffer("counts_KK", torch.zeros(num_classes, num_classes))
        self.register_buffer("matches", torch.zeros((), dtype=torch.int64))
        self._matches: int | None = 0

    @torch.no_grad()
    def start(self, how: str, labeled_ND: Tensor, labels_N: Tensor, unlabeled_UD: Tensor) -> None:
        """Place the centroids: `labeled_means` per class, `kmeans++` over all, or `random` images.

        Features are rows of length 1. A class without an image in the sample keeps its random place, and so do
        the last centroids where there are fewer images than centroids.
        """
        features_MD = torch.cat([labeled_ND, unlabeled_UD])
        if how == "labeled_means":
            one_hot_NK = nn.functional.one_hot(labels_N, len(self.centers_KD)).float()
            self.update(labeled_ND, one_hot_NK, momentum=0.0)
            return
        num_clusters = min(len(self.centers_KD), len(features_MD))
        if how == "random":
            chosen = torch.randperm(len(features_MD))[:num_clusters].to(features_MD.device)
            centers_KD = features_MD[chosen]
        else:
            from sklearn.cluster import kmeans_plusplus

            seed = int(torch.randint(2**31, ()))
            found, _ = kmeans_plusplus(features_MD.cpu().numpy(), num_clusters, random_state=seed)
            centers_KD = torch.from_numpy(found).to(features_MD)
        self.centers_KD[: len(centers_KD)] = centers_KD

    @torch.no_grad()
    def update(self, features_MD: Tensor, weights_MK: Tensor, momentum: float) -> None:
        """Move each centroid towards the weighted mean of the features assigned to it.

        center = normalize(momentum * center + (1 - momentum) * mean); a cluster without weight stays.
        """
        mass_K = weights_MK.sum(dim=0)
        with torch.autocast(features_MD.device.type, enabled=False):
            sums_KD = weights_MK.T.float() @ features_MD.float()
        means_KD = sums_KD / mass_K.clamp(min=1e-12)[:, None]
        moved_KD = nn.functional.normalize(
            momentum * self.centers_KD + (1 - momentum) * means_KD, dim=1
        )
        self.centers_KD.copy_(torch.where(mass_K[:, None] > 1e-6, moved_KD, self.centers_KD))

    @torch.no_grad()
    def match(
        self, clusters_N: Tensor, labels_N: Tensor, every: int = 1, memory: float = 0.99
    ) -> None:
        """Assign clusters to classes one to one, by decayed counts of labeled images (class, cluster).

        Each call counts; the first one and every `every`-th after it assign, which waits for the device.
        """
        from scipy.optimize import linear_sum_assignment

        self.counts_KK.mul_(memory)
        ones_N = torch.ones_like(labels_N, dtype=self.counts_KK.dtype)
        self.counts_KK.index_put_((labels_N, clusters_N), ones_N, accumulate=True)
        before = int(self.matches) if self._matches is None else self._matches
        self._matches = before + 1
        self.matches += 1
        if before % every:
            return
        _, columns = linear_sum_assignment(self.counts_KK.cpu().numpy(), maximize=True)
        self.cluster_of_class.copy_(torch.from_numpy(columns))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        # An older model has none
        state_dict.setdefault(f"{prefix}matches", torch.zeros_like(self.matches))
        super()._load_from_state_dict(state_dict, prefix, *others, **named)
        self._matches = None


class ProjectorNetwork(nn.Module):
    """Encoder -> Linear -> BatchNorm -> ReLU for each size but the last -> Linear to D = `sizes[-1]`.

    Two sizes are SimCLR's projector, three that of Barlow Twins and VICReg. `forward` gives the projection (N, D); the
    encoder is what is kept. `norm=False` is without BatchNorm.
    """

    def __init__(self, encoder: nn.Module, sizes: tuple[int, ...], norm: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = _layers(encoder.out_dim, sizes, norm)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.encoder(images))
        return projected


def _layers(width: int, sizes: tuple[int, ...], norm: bool = True) -> nn.Sequential:
    """From `width` dimensions: Linear -> BatchNorm -> ReLU for each of `sizes` but the last, which is Linear alone."""
    *hidden, out = sizes
    layers: list[nn.Module] = []
    for size in hidden:
        layers.append(nn.Linear(width, size, bias=not norm))
        layers += [nn.BatchNorm1d(size) if norm else nn.Identity(), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, out))


class PredictorNetwork(ProjectorNetwork):
    """SimSiam's heads: a projector that ends in BatchNorm without affine, and a predictor.

    The predictor is Linear -> BatchNorm -> ReLU -> Linear through `bottleneck` dimensions; without
    one it is the identity.
    """

    def __init__(self, encoder: nn.Module, sizes: tuple[int, int], bottleneck: int | None) -> None:
        super().__init__(encoder, sizes)
        width = sizes[1]
        self.projector.append(nn.BatchNorm1d(width, affine=False))
        self.predictor: nn.Module = nn.Identity()
        if bottleneck is not None:
            self.predictor = _layers(width, (bottleneck, width))


class FollowedNetwork(ProjectorNetwork):
    """A projector, and `teacher`: a copy of encoder and projector whose weights follow them."""

    def __init__(self, encoder: nn.Module, sizes: tuple[int, int], norm: bool = True) -> None:
        super().__init__(encoder, sizes, norm)
        self.teacher = Teacher(nn.Sequential(self.encoder, self.projector))

    def follow(self, decay: float) -> None:
        """The teacher's weights = decay * its weights + (1 - decay) * the network's."""
        self.teacher.follow(nn.Sequential(self.encoder, self.projector), decay)


class TargetNetwork(FollowedNetwork):
    """BYOL's heads: a projector, its teacher as the target, and a predictor of the projector's form.

    Without `predictor_hidden` the predictor is the identity.
    """

    def __init__(
        self, encoder: nn.Module, sizes: tuple[int, int], predictor_hidden: int | None
    ) -> None:
        super().__init__(encoder, sizes)
        width = sizes[1]
        self.predictor: nn.Module = nn.Identity()
        if predictor_hidden is not None:
            self.predictor = _layers(width, (predictor_hidden, width))


class QueueNetwork(FollowedNetwork):
    """MoCo's heads: a projector without BatchNorm, its teacher for the keys, and a queue of the latest Q keys.

    `ids_Q` tells which image each of `keys_QD` is of; -1 where there is none yet.
    """

    keys_QD: Tensor
    ids_Q: Tensor
    oldest: Tensor

    def __init__(self, encoder: nn.Module, sizes: tuple[int, int], length: int) -> None:
        super().__init__(encoder, sizes, norm=False)
        self.register_buffer("keys_QD", torch.zeros(length, sizes[1]))
        self.register_buffer("ids_Q", torch.full((length,), -1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys_UD: Tensor, ids_U: Tensor) -> None:
        """Put keys of the images `ids_U` in the place of the oldest ones; of more than Q the last Q."""
        length = len(self.ids_Q)
        keys_UD, ids_U = keys_UD[-length:], ids_U[-length:]
        slots_U = (self.oldest + torch.arange(len(ids_U), device=ids_U.device)) % length
        self.keys_QD[slots_U] = keys_UD.to(self.keys_QD.dtype)
        self.ids_Q[slots_U] = ids_U
        self.oldest.copy_((self.oldest + len(ids_U)) % length)


class ProbeNetwork(ProjectorNetwork):
    """A projector without BatchNorm, and beside it a linear probe on the encoder's features."""

    def __init__(self, encoder: nn.Module, sizes: tuple[int, int], num_classes: int) -> None:
        super().__init__(encoder, sizes, norm=False)
        self.probe = nn.Linear(encoder.out_dim, num_classes)  # type: ignore[arg-type]
