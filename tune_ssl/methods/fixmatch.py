"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): a confident prediction on the weak view is the
target of the strong one.

Shapes: N labeled, U = mu N unlabeled images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, SupervisedLossSpec
from tune_ssl.data.batch import Batch
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
    from torch import Tensor
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")


class FixMatchSpec(SupervisedSpec):
    name: Literal["fixmatch"] = "fixmatch"  # type: ignore[assignment]
    labeled_view: LabeledView = "weak"
    weak_view: WeakView = "weak"
    strong_view: StrongView = "randaugment"
    threshold: Fraction = Field(0.95, description="tau: least confidence of a pseudo-label")


SpecT = TypeVar("SpecT", bound=FixMatchSpec)


class FixMatchStage(SupervisedStage[SpecT]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "consistency")
    idle: ClassVar[Mapping[str, str]] = {
        "mask_rate": "no unlabeled image was ever confident enough (method.threshold): the unlabeled images taught "
        "nothing"
    }

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view, self.spec.strong_view)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        weak, strong = batch.unlabeled
        strong = self.perturb(network, weak, strong)
        _, logits = network(torch.cat([batch.labeled[0], weak, strong]))
        logits_NK, weak_UK, strong_UK = logits.split([len(batch.labels_N), len(weak), len(strong)])
        losses = {
            "supervised": supervised_loss(logits_NK, batch.labels_N, batch.balance),
            "consistency": consistency(weak_UK, strong_UK, self.spec.threshold),
        }
        return StepOutput(
            losses, pseudo_label_diagnostics(weak_UK, batch.hidden_labels_U, self.spec.threshold)
        )

    def perturb(self, network: Network, weak: Tensor, strong: Tensor) -> Tensor:
        """The images that learn the pseudo-labels: here the strong view."""
        return strong


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


def pseudo_labels(weak_UK: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Most likely class (U,) and whether its probability is at least the threshold (U,)."""
    confidence_U, labels_U = F.softmax(weak_UK.detach().float(), dim=1).max(dim=1)
    return labels_U, confidence_U >= threshold


def consistency(weak_UK: Tensor, strong_UK: Tensor, threshold: float) -> Tensor:
    """1/U sum of 1[max q >= tau] CE(argmax q, p(strong)), q = stop-gradient softmax(weak).

    Equation 4 of arXiv 2001.07685: the mean is over all U images, not over the confident ones. Logits
    (U, K) of the two views, tau in [0, 1]; in float32. With no confident image it is 0.
    """
    labels_U, confident_U = pseudo_labels(weak_UK, threshold)
    losses_U = F.cross_entropy(strong_UK.float(), labels_U, reduction="none")
    return (losses_U * confident_U).mean()


def pseudo_label_diagnostics(
    weak_UK: Tensor, hidden_U: Tensor, threshold: float
) -> dict[str, Tensor | Ratio]:
    """The share of confident images, and how many of these pseudo-labels are right where it is known."""
    labels_U, confident_U = pseudo_labels(weak_UK, threshold)
    known_U = confident_U & (hidden_U >= 0)
    right_U = known_U & (labels_U == hidden_U)
    return {
        "mask_rate": confident_U.float().mean(),
        "pseudo_label_accuracy": Ratio(right_U.sum(), known_U.sum()),
    }
