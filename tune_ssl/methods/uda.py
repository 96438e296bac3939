"""UDA (Xie et al. 2020, arXiv 1904.12848): the strong view learns the sharpened prediction of the weak one.

Shapes: N labeled, U unlabeled images, K classes.
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tune_ssl.base.spec import Fraction, Positive
from tune_ssl.data.batch import Balance, Batch
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.fixmatch import (
    FixMatch,
    FixMatchSpec,
    FixMatchStage,
    Targets,
    probabilities,
    pseudo_labels,
)
from tune_ssl.methods.supervised import supervised_losses

if TYPE_CHECKING:
    from torch import Tensor

Annealing = Literal["none", "linear", "log", "exp"]


class UDASpec(FixMatchSpec):
    name: Literal["uda"] = "uda"  # type: ignore[assignment]
    threshold: Fraction = Field(0.8, description="beta: least confidence of a target")
    temperature: Positive = Field(0.4, description="sharpens the target")
    annealing: Annealing = Field(
        "none",
        description="how the confidence rises above which a labeled image is left out of its term",
    )


class UDAStage(FixMatchStage[UDASpec]):
    @property
    def splits_batches(self) -> bool:  # type: ignore[override]
        return (
            self.spec.annealing == "none"
        )  # else the labeled images that count differ in each part

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        _, confident_U = pseudo_labels(weak_UK, self.spec.threshold)
        return Targets(probabilities(weak_UK.float() / self.spec.temperature), confident_U)

    def supervised(self, logits_NK: Tensor, batch: Batch) -> Tensor:
        if self.spec.annealing == "none":
            return super().supervised(logits_NK, batch)
        most = most_confident(batch.progress, logits_NK.shape[1], self.spec.annealing)
        return annealed(logits_NK, batch.labels_N, most, batch.balance)


class UDA(Method[UDASpec]):
    name = "uda"
    Spec = UDASpec
    losses = FixMatch.losses
    stage_types = (UDAStage,)
    defaults = FixMatch.defaults
    searched = {**FixMatch.searched, "method.temperature": {"choice": [0.4, 0.7, 1]}}


def most_confident(progress: float, num_classes: int, annealing: Annealing) -> float:
    """eta = alpha (1 - 1/K) + 1/K: training signal annealing, arXiv 1904.12848; progress in [0, 1], eta in [1/K, 1].

    alpha is the progress t (linear), 1 - exp(-5 t) (log) or exp(5 (t - 1)) (exp); none: 1.
    """
    alpha = {
        "none": 1.0,
        "linear": progress,
        "log": 1 - exp(-5 * progress),
        "exp": exp(5 * (progress - 1)),
    }[annealing]
    return alpha * (1 - 1 / num_classes) + 1 / num_classes


def annealed(
    logits_NK: Tensor, labels_N: Tensor, most: float, balance: Balance | None = None
) -> Tensor:
    """The mean cross-entropy of the labeled images whose own class is predicted with at most `most`; 0 for none.

    Training signal annealing, arXiv 1904.12848. Logits (N, K), labels (N,) in [0, K); in float32.
    """
    own_N = probabilities(logits_NK).gather(1, labels_N[:, None])[:, 0]
    kept_N = (own_N <= most).float()
    losses_N = supervised_losses(logits_NK, labels_N, balance)
    return (kept_N * losses_N).sum() / kept_N.sum().clamp(min=1)
