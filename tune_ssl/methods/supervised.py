"""Supervised baseline: cross-entropy on the labeled images alone, under the same augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, MethodSpec, ModelSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network, Prediction, Stage, StepOutput

if TYPE_CHECKING:
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl import models
else:
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")

SpecT = TypeVar("SpecT", bound="SupervisedSpec")
LabeledView = Literal["none", "weak", "strong", "randaugment", "joint_classification"]


class SupervisedSpec(MethodSpec):
    name: Literal["supervised"] = "supervised"  # type: ignore[assignment]
    labeled_view: LabeledView = "strong"


class SupervisedStage(Stage[SpecT]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised",)
    splits_batches: ClassVar[bool] = True
    on_features: ClassVar[bool] = True

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return (self.spec.labeled_view,)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        return models.Classifier(task, model)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        _, logits_NK = network(batch.labeled[0])
        return StepOutput({"supervised": supervised_loss(logits_NK, batch.labels_N)}, {})

    def predict(self, network: Network, images: Tensor) -> Prediction:
        return Prediction(*network(images))


class Supervised(Method[SupervisedSpec]):
    name = "supervised"
    Spec = SupervisedSpec
    losses = {"supervised": LossSpec()}
    stage_types = (SupervisedStage,)
    searched = {
        "optim.lr": {"log_uniform": [3e-4, 3e-2]},
        "optim.weight_decay": {"log_uniform": [1e-5, 1e-1]},
        "method.labeled_view": {"choice": ["none", "weak", "strong"]},
    }


def supervised_loss(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, K) against labels (N,) in [0, K), in float32."""
    return F.cross_entropy(logits_NK.float(), labels_N)
