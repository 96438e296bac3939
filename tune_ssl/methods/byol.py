"""BYOL (Grill et al. 2020, arXiv 2006.07733): each view predicts what a slow copy of the network sees in the other.

Stage `pretrain` sees every image and no label; then `finetune` or `linear_probe` (transfer.py).
The copy, the target, is an average of the network's weights. `predictor: false` is the paper's ablation.

Shapes: U unlabeled images, D projected dimension.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, ModelSpec, Size, SupervisedLossSpec
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
    from torch import Tensor, nn

    from tune_ssl import models
else:
    models = LazyModule("tune_ssl.models")


class BYOLSpec(ContrastSpec):
    name: Literal["byol"] = "byol"  # type: ignore[assignment]
    projector_hidden: Size = 1024
    projector_dim: Size = 256
    predictor_hidden: Size = 1024
    predictor: bool = Field(True, description="false: the projection itself is compared")
    target_decay: Fraction = Field(
        0.996, description="of the target's average at the start; it rises to 1 by a cosine"
    )


class BYOLPretrain(PretrainStage[BYOLSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("regression",)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        sizes = (self.spec.projector_hidden, self.spec.projector_dim)
        hidden = self.spec.predictor_hidden if self.spec.predictor else None
        return models.TargetNetwork(models.encoder_for(task, model), sizes, hidden)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        network.follow(decay_at(batch.progress, self.spec.target_decay))
        # Each view by itself, as in the authors' code: BatchNorm normalises over the images of one view
        first_UD, second_UD = map(network, batch.unlabeled)
        target_first_UD, target_second_UD = map(network.teacher, batch.unlabeled)
        loss = regression(network.predictor(first_UD), target_second_UD)
        loss = loss + regression(network.predictor(second_UD), target_first_UD)
        return StepOutput({"regression": loss}, {"embedding_std": embedding_std(first_UD)})


class BYOL(PretrainedMethod[BYOLSpec]):
    name = "byol"
    Spec = BYOLSpec
    losses = {"regression": LossSpec(), "supervised": SupervisedLossSpec()}
    stage_types = (BYOLPretrain, FinetuneStage, LinearProbeStage)
    searched = TRANSFER_SEARCHED


def regression(predicted_UD: Tensor, target_UD: Tensor) -> Tensor:
    """Squared distance of unit rows, 2 - 2 cosine, mean over the batch, in [0, 4]; equation 2 of arXiv 2006.07733.

    Predictions and targets (U, D), row by row of the same image. A row of zeros stays zero.
    """
    return (unit(predicted_UD) - unit(target_UD)).square().sum(dim=1).mean()


def decay_at(progress: float, start: float) -> float:
    """The target's decay at `progress` in [0, 1]: 1 - (1 - start) (cos(pi progress) + 1) / 2, section 3.2.

    decay_at(0, 0.996) is 0.996, decay_at(1, 0.996) is 1.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
