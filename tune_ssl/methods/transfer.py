"""From a pretrained encoder to a classifier: the stages `finetune` and `linear_probe`, for any pretraining.

Both see the label budget only. With `init: random` there is no pretraining, and the same stages
start from random weights: the control that every pretraining result needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import MethodSpec, ModelSpec, OptimPart
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network, Prediction, Stage, StepOutput
from tune_ssl.methods.supervised import LabeledView, supervised_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tune_ssl import models
else:
    models = LazyModule("tune_ssl.models")


class TransferSpec(MethodSpec):
    """What comes after pretraining; no pretraining depends on it."""

    transfer: Literal["finetune", "linear_probe"] = "finetune"
    labeled_view: LabeledView = "weak"
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: without the pretraining stage, as the control"
    )


SpecT = TypeVar("SpecT", bound=TransferSpec)
TRANSFER_SEARCHED = {
    "method.transfer": {"choice": ["finetune", "linear_probe"]},
    "method.labeled_view": {"choice": ["none", "weak", "strong"]},
    "optim.finetune.lr": {"log_uniform": [1e-4, 1e-2]},
    "optim.linear_probe.lr": {"log_uniform": [1e-3, 1e-1]},
}


class FinetuneStage(Stage[SpecT]):
    """Cross-entropy on the labeled images, from the encoder of the stage before it."""

    name = "finetune"
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised",)
    splits_batches: ClassVar[bool] = True
    on_features: ClassVar[bool] = True

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return (self.spec.labeled_view,)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        encoder: Any = previous.encoder if previous is not None else None
        return models.TransferClassifier(task, self.head(model), encoder)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        _, logits_NK = network(batch.labeled[0])
        loss = supervised_loss(logits_NK, batch.labels_N, batch.balance)
        return StepOutput({"supervised": loss}, {})

    def predict(self, network: Network, images: Tensor) -> Prediction:
        return Prediction(*network(images))

    def head(self, model: ModelSpec) -> ModelSpec:
        return model


class LinearProbeStage(FinetuneStage[SpecT]):
    """One Linear layer on the frozen encoder."""

    name = "linear_probe"

    def head(self, model: ModelSpec) -> ModelSpec:
        return model.model_copy(update={"head": "linear", "freeze": "all"})


class PretrainedMethod(Method[SpecT]):
    """A method whose first stage pretrains: it names that one first, then the two transfers."""

    optim_parts: ClassVar[dict[str, OptimPart]] = {
        "finetune": OptimPart(),
        "linear_probe": OptimPart(),
    }
    # With data.batch_size 32: it pretrains on 128 images at a time
    defaults: ClassVar[dict[str, Any]] = {"data.mu": 4}

    @classmethod
    def stages(cls, spec: SpecT) -> list[Stage[SpecT]]:
        pretrain, *transfers = cls.stage_types
        chosen = [stage for stage in transfers if stage.name == spec.transfer]
        return [stage(spec) for stage in ([pretrain] if spec.init == "pretrained" else []) + chosen]
