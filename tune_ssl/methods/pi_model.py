"""The Pi model (Laine & Aila 2017, arXiv 1610.02242): two weak views of an image have equal probabilities.

Shapes: N labeled, U unlabeled images, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, SupervisedLossSpec
from tune_ssl.data.batch import Batch
from tune_ssl.methods.base import Method, Network, StepOutput
from tune_ssl.methods.fixmatch import FixMatch
from tune_ssl.methods.supervised import (
    LabeledView,
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


class PiModelSpec(SupervisedSpec):
    name: Literal["pi_model"] = "pi_model"  # type: ignore[assignment]
    labeled_view: LabeledView = "weak"
    weak_view: WeakView = "weak"


SpecT = TypeVar("SpecT", bound=PiModelSpec)


class PiModelStage(SupervisedStage[SpecT]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "consistency")

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view, self.spec.weak_view)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        first, second = batch.unlabeled
        _, logits = network(torch.cat([batch.labeled[0], first, second]))
        logits_NK, first_UK, second_UK = logits.split(
            [len(batch.labels_N), len(first), len(second)]
        )
        losses = {
            "supervised": supervised_loss(logits_NK, batch.labels_N, batch.balance),
            "consistency": squared_difference(first_UK, second_UK),
        }
        return StepOutput(losses, {})


class PiModel(Method[PiModelSpec]):
    name = "pi_model"
    Spec = PiModelSpec
    losses = {"supervised": SupervisedLossSpec(), "consistency": LossSpec(weight=10, ramp_up=0.4)}
    stage_types = (PiModelStage,)
    defaults = {**FixMatch.defaults, "data.mu": 1}
    searched = {
        "optim.lr": {"log_uniform": [3e-3, 3e-1]},
        "method.labeled_view": {"choice": ["weak", "strong"]},
        "losses.consistency.weight": {"log_uniform": [1, 100]},
        "losses.consistency.ramp_up": {"uniform": [0, 0.8]},
    }


def squared_difference(student_UK: Tensor, teacher_UK: Tensor) -> Tensor:
    """1/(U K) sum of (softmax(student) - stop-gradient softmax(teacher))^2; logits (U, K); in float32, in [0, 1].

    Algorithm 1 of arXiv 1610.02242, where both sides learn. Here the teacher's is held still, as in the USB benchmark.
    """
    student, teacher = (F.softmax(logits.float(), dim=1) for logits in (student_UK, teacher_UK))
    return F.mse_loss(student, teacher.detach())
