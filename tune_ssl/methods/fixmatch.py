"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): a confident prediction on the weak view is the
target of the strong one.

Shapes: N labeled, U = mu N unlabeled images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, ModelSpec, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network, Ratio, StepOutput
from tune_ssl.methods.supervised import (
    LabeledView,
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
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")


class WeakToStrongSpec(SupervisedSpec):
    """What the methods share in which the prediction on a weak view is the target of a strong one."""

    labeled_view: LabeledView = "weak"
    weak_view: WeakView = "weak"
    strong_view: StrongView = "randaugment"


class FixMatchSpec(WeakToStrongSpec):
    name: Literal["fixmatch"] = "fixmatch"  # type: ignore[assignment]
    threshold: Fraction = Field(0.95, description="tau: least confidence of a pseudo-label")


WeakToStrongT = TypeVar("WeakToStrongT", bound=WeakToStrongSpec)
SpecT = TypeVar("SpecT", bound=FixMatchSpec)


class Targets(NamedTuple):
    """What the strong views learn: classes (U,) or class probabilities (U, K), and how much each counts, in [0, 1]."""

    classes: Tensor
    weights_U: Tensor


class WeakToStrongStage(SupervisedStage[WeakToStrongT]):
    """A method says what the targets are (`targets`), and may have more terms (`more_losses`).

    `shares` name buffers (K,) of the network in which it keeps shares of the classes; each begins at 1/K.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "consistency")
    shares: ClassVar[tuple[str, ...]] = ()

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        network = super().build(task, model, previous)
        for name in self.shares:
            network.register_buffer(name, torch.full((task.num_classes,), 1 / task.num_classes))
        return network

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view, self.spec.strong_view)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        weak, strong = batch.unlabeled
        strong = self.perturb(network, weak, strong)
        _, logits = network(torch.cat([batch.labeled[0], weak, strong]))
        logits_NK, weak_UK, strong_UK = logits.split([len(batch.labels_N), len(weak), len(strong)])
        targets = self.targets(network, batch, logits_NK.detach(), weak_UK.detach())
        losses = {
            "supervised": self.supervised(logits_NK, batch),
            "consistency": weighted_consistency(strong_UK, targets),
            **self.more_losses(network, strong_UK, targets),
        }
        return StepOutput(losses, target_diagnostics(targets, batch.hidden_labels_U))

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        """What the strong views learn, by the logits of the labeled images and of the weak views, without gradients."""
        raise NotImplementedError

    def supervised(self, logits_NK: Tensor, batch: Batch) -> Tensor:
        return supervised_loss(logits_NK, batch.labels_N, batch.balance)

    def more_losses(
        self, network: Network, strong_UK: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        return {}

    def perturb(self, network: Network, weak: Tensor, strong: Tensor) -> Tensor:
        """The images that learn the targets: here the strong view."""
        return strong


class FixMatchStage(WeakToStrongStage[SpecT]):
    idle: ClassVar[Mapping[str, str]] = {
        "mask_rate": "no unlabeled image was ever confident enough (method.threshold): the unlabeled images taught "
        "nothing"
    }

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        return pseudo_labels(weak_UK, self.spec.threshold)


class FixMatch(Method[FixMatchSpec]):
    name = "fixmatch"
    Spec = FixMatchSpec
    losses = {"supervised": SupervisedLossSpec(), "consistency": LossSpec()}
    stage_types = (FixMatchStage,)
    defaults = {
        "data.batch_size": 64,
        "data.mu": 7,
        "optim.name": "sgd",
        "optim.lr": 0.03,
        "optim.schedule": "cosine_7_16",
    }
    searched = {
        "optim.lr": {"log_uniform": [3e-3, 3e-1]},
        "method.labeled_view": {"choice": ["weak", "strong"]},
        "method.threshold": {"choice": [0.7, 0.8, 0.9, 0.95]},
        "losses.consistency.weight": {"log_uniform": [0.3, 3]},
        "losses.consistency.ramp_up": {"uniform": [0, 0.5]},
    }


WITHOUT_THRESHOLD = {
    key: space for key, space in FixMatch.searched.items() if key != "method.threshold"
}


def probabilities(logits_NK: Tensor) -> Tensor:
    """softmax (N, K), in float32, without gradients."""
    return F.softmax(logits_NK.detach().float(), dim=1)


def pseudo_labels(weak_UK: Tensor, threshold: float) -> Targets:
    """The most likely class, which counts where its probability is at least the threshold."""
    confidence_U, labels_U = probabilities(weak_UK).max(dim=1)
    return Targets(labels_U, (confidence_U >= threshold).float())


def weighted_consistency(strong_UK: Tensor, targets: Targets) -> Tensor:
    """1/U sum of weight x CE(target, p(strong)); in float32; 0 where no image counts.

    With `pseudo_labels` it is equation 4 of arXiv 2001.07685: the mean over all U images, not over the confident ones.
    """
    losses_U = F.cross_entropy(strong_UK.float(), targets.classes, reduction="none")
    return (losses_U * targets.weights_U).mean()


def target_diagnostics(targets: Targets, hidden_U: Tensor) -> dict[str, Tensor | Ratio]:
    """The mean weight of the targets, and which share of them, by weight, is right where it is known."""
    classes, weights_U = targets
    labels_U = classes if classes.ndim == 1 else classes.argmax(dim=1)
    known_U = weights_U * (hidden_U >= 0)
    return {
        "mask_rate": weights_U.mean(),
        "pseudo_label_accuracy": Ratio((known_U * (labels_U == hidden_U)).sum(), known_U.sum()),
    }
