"""SimSiam (Chen & He 2021, arXiv 2011.10566): each view predicts the other one, which is held still.

Stage `pretrain` sees every image and no label; then `finetune` or `linear_probe` (transfer.py).
`stop_gradient: false` and `predictor: false` are the paper's own ablations; both collapse there.

Shapes: U unlabeled images, D projected dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, ModelSpec, OptimPart, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Network, StepOutput
from tune_ssl.methods.simclr import ContrastSpec, PretrainStage, embedding_std, unit
from tune_ssl.methods.transfer import (
    TRANSFER_SEARCHED,
    FinetuneStage,
    LinearProbeStage,
    PretrainedMethod,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    models = LazyModule("tune_ssl.models")


class SimSiamSpec(ContrastSpec):
    name: Literal["simsiam"] = "simsiam"  # type: ignore[assignment]
    projector_hidden: Size = 2048
    projector_dim: Size = 2048
    predictor_hidden: Size = 512
    predictor: bool = Field(True, description="false: the projection itself is compared")
    stop_gradient: bool = Field(True, description="false: the target learns too")
    # BatchNorm keeps one outlier among U collapsed views: their std is about 2 / sqrt(U), not 0
    collapse_below: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="embedding_std under which a run counts as collapsed; 0: never"
    )


class SimSiamPretrain(PretrainStage[SimSiamSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("similarity",)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        sizes = (self.spec.projector_hidden, self.spec.projector_dim)
        bottleneck = self.spec.predictor_hidden if self.spec.predictor else None
        return models.PredictorNetwork(models.encoder_for(task, model), sizes, bottleneck)

    def parts(self, network: Network) -> dict[str, nn.Module]:
        return {"predictor": network.predictor}

    def step(self, network: Network, batch: Batch) -> StepOutput:
        # Each view by itself, as in the authors' code: BatchNorm normalises over the images of one view
        first_UD, second_UD = map(network, batch.unlabeled)
        predicted_first_UD, predicted_second_UD = map(network.predictor, (first_UD, second_UD))
        if self.spec.stop_gradient:
            first_UD, second_UD = first_UD.detach(), second_UD.detach()
        loss = similarity(predicted_first_UD, second_UD) + similarity(predicted_second_UD, first_UD)
        return StepOutput({"similarity": loss / 2}, {"embedding_std": embedding_std(first_UD)})


class SimSiam(PretrainedMethod[SimSiamSpec]):
    name = "simsiam"
    Spec = SimSiamSpec
    losses = {"similarity": LossSpec(), "supervised": SupervisedLossSpec()}
    optim_parts = {**PretrainedMethod.optim_parts, "predictor": OptimPart(schedule="constant")}
    stage_types = (SimSiamPretrain, FinetuneStage, LinearProbeStage)
    searched = TRANSFER_SEARCHED


def similarity(predicted_UD: Tensor, target_UD: Tensor) -> Tensor:
    """D(p, z) = -cosine(p, z), mean over the batch, in [-1, 1]; equation 1 of arXiv 2011.10566."""
    return -(unit(predicted_UD) * unit(target_UD)).sum(dim=1).mean()
