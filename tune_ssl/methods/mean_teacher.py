"""Mean Teacher (Tarvainen & Valpola 2017, arXiv 1703.01780): the probabilities of a weak view are those that a moving
average of the network gives for another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import BelowOne, LossSpec, ModelSpec, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network, StepOutput
from tune_ssl.methods.pi_model import PiModel, PiModelSpec, PiModelStage, squared_difference
from tune_ssl.methods.supervised import supervised_loss

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    models = LazyModule("tune_ssl.models")


class MeanTeacherSpec(PiModelSpec):
    name: Literal["mean_teacher"] = "mean_teacher"  # type: ignore[assignment]
    teacher_decay: BelowOne = Field(
        0.999, description="at step t the teacher follows with min(teacher_decay, 1 - 1 / (t + 1))"
    )


class MeanTeacherStage(PiModelStage[MeanTeacherSpec]):
    splits_batches: ClassVar[bool] = False  # the teacher moves once in a step

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        network = super().build(task, model, previous)
        network.teacher = models.Teacher(network)
        return network

    def step(self, network: Network, batch: Batch) -> StepOutput:
        first, second = batch.unlabeled
        network.teacher.follow(network, self.spec.teacher_decay, warm_up=True)
        _, logits = network(torch.cat([batch.labeled[0], first]))
        logits_NK, student_UK = logits.split([len(batch.labels_N), len(first)])
        _, teacher_UK = network.teacher(second)
        losses = {
            "supervised": supervised_loss(logits_NK, batch.labels_N, batch.balance),
            "consistency": squared_difference(student_UK, teacher_UK),
        }
        return StepOutput(losses, {})


class MeanTeacher(Method[MeanTeacherSpec]):
    name = "mean_teacher"
    Spec = MeanTeacherSpec
    losses = {"supervised": SupervisedLossSpec(), "consistency": LossSpec(weight=50, ramp_up=0.4)}
    stage_types = (MeanTeacherStage,)
    defaults = PiModel.defaults
    searched = {**PiModel.searched, "method.teacher_decay": {"choice": [0.9, 0.97, 0.99, 0.999]}}
