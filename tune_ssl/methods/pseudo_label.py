"""Pseudo-Label (Lee 2013, ICML workshop on challenges in representation learning): confident predictions on unlabeled
images are their labels.

Shapes: U unlabeled images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, SupervisedLossSpec
from tune_ssl.data.batch import Batch
from tune_ssl.methods.base import Method, Network, StepOutput
from tune_ssl.methods.fixmatch import (
    FixMatch,
    FixMatchStage,
    pseudo_labels,
    target_diagnostics,
    weighted_consistency,
)
from tune_ssl.methods.supervised import (
    LabeledView,
    SupervisedSpec,
    SupervisedStage,
    WeakView,
    supervised_loss,
)

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


class PseudoLabelSpec(SupervisedSpec):
    name: Literal["pseudo_label"] = "pseudo_label"  # type: ignore[assignment]
    labeled_view: LabeledView = "weak"
    weak_view: WeakView = "weak"
    threshold: Fraction = Field(0.95, description="tau: least confidence of a pseudo-label")


class PseudoLabelStage(SupervisedStage[PseudoLabelSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "pseudo_label")
    idle: ClassVar[Mapping[str, str]] = FixMatchStage.idle

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view,)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        (weak,) = batch.unlabeled
        _, logits = network(torch.cat([batch.labeled[0], weak]))
        logits_NK, weak_UK = logits.split([len(batch.labels_N), len(weak)])
        targets = pseudo_labels(weak_UK, self.spec.threshold)
        losses = {
            "supervised": supervised_loss(logits_NK, batch.labels_N, batch.balance),
            "pseudo_label": weighted_consistency(weak_UK, targets),
        }
        return StepOutput(losses, target_diagnostics(targets, batch.hidden_labels_U))


class PseudoLabel(Method[PseudoLabelSpec]):
    name = "pseudo_label"
    Spec = PseudoLabelSpec
    losses = {"supervised": SupervisedLossSpec(), "pseudo_label": LossSpec(ramp_up=0.4)}
    stage_types = (PseudoLabelStage,)
    defaults = {**FixMatch.defaults, "data.mu": 1}
    searched = {
        "optim.lr": {"log_uniform": [3e-3, 3e-1]},
        "method.labeled_view": {"choice": ["weak", "strong"]},
        "method.threshold": {"choice": [0.7, 0.8, 0.9, 0.95]},
        "losses.pseudo_label.weight": {"log_uniform": [0.1, 3]},
    }
