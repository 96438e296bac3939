"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of an image attract, all other images repel.

Stage `pretrain` sees every image and no label; then `finetune` or `linear_probe` (transfer.py).

Shapes: U unlabeled images, 2U views, D projected dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, ModelSpec, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Network, Prediction, Stage, StepOutput
from tune_ssl.methods.transfer import (
    TRANSFER_SEARCHED,
    FinetuneStage,
    LinearProbeStage,
    PretrainedMethod,
    TransferSpec,
)

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")

TwoViews = Literal["contrastive", "contrastive_noise", "joint_contrastive", "weak", "strong"]


class ContrastSpec(TransferSpec):
    """What the methods share that pretrain on two views of an image."""

    view: TwoViews = Field("contrastive", description="both views are drawn from it")
    projector_hidden: Size = 512
    projector_dim: Size = 128
    collapse_below: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="embedding_std under which a run counts as collapsed; 0: never"
    )


class SimCLRSpec(ContrastSpec):
    name: Literal["simclr"] = "simclr"  # type: ignore[assignment]
    temperature: Annotated[float, Field(gt=0)] = 0.5


SpecT = TypeVar("SpecT", bound=ContrastSpec)


class PretrainStage(Stage[SpecT]):
    """Base of pretraining on two views: no label, features judged by kNN and a probe."""

    name = "pretrain"
    evaluators: ClassVar[tuple[str, ...]] = ("knn", "probe")
    stand_in: ClassVar[str | None] = "probe_accuracy"
    shaped_without: ClassVar[tuple[str, ...]] = (
        *sorted(TransferSpec.model_fields.keys() - {"name"}),
        *("model.freeze", "model.frozen_views"),
    )

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return ()

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.view, self.spec.view)

    @property
    def floors(self) -> dict[str, float]:
        return {"embedding_std": self.spec.collapse_below}

    def predict(self, network: Network, images: Tensor) -> Prediction:
        return Prediction(network.encoder(images))


class SimCLRPretrain(PretrainStage[SimCLRSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("contrastive",)
    contrasts: ClassVar[bool] = True

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        sizes = (self.spec.projector_hidden, self.spec.projector_dim)
        return models.ProjectorNetwork(models.encoder_for(task, model), sizes)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        first_UD, second_UD = network(torch.cat(batch.unlabeled)).chunk(2)
        losses = {"contrastive": nt_xent(first_UD, second_UD, self.spec.temperature)}
        diagnostics = {
            "contrastive_accuracy": contrastive_accuracy(first_UD, second_UD),
            "embedding_std": embedding_std(first_UD),
        }
        return StepOutput(losses, diagnostics)


class SimCLR(PretrainedMethod[SimCLRSpec]):
    name = "simclr"
    Spec = SimCLRSpec
    losses = {"contrastive": LossSpec(), "supervised": SupervisedLossSpec()}
    stage_types = (SimCLRPretrain, FinetuneStage, LinearProbeStage)
    searched = {
        "method.temperature": {"choice": [0.1, 0.2, 0.5]},
        **TRANSFER_SEARCHED,
    }


def unit(features_UD: Tensor) -> Tensor:
    """Rows of length 1, in float32; a row of zeros stays zero."""
    return F.normalize(features_UD.float(), dim=1, eps=1e-6)


def cosines(rows_UD: Tensor, others_VD: Tensor) -> Tensor:
    """The cosine of each row with each other row, (U, V), in float32 under autocast too."""
    with torch.autocast(rows_UD.device.type, enabled=False):
        return unit(rows_UD) @ unit(others_VD).T


def nt_xent(first_UD: Tensor, second_UD: Tensor, temperature: float) -> Tensor:
    """NT-Xent, equation 1 of arXiv 2002.05709, mean over all 2U views.

    -log exp(s(i, j) / T) / sum over k != i of exp(s(i, k) / T), s the cosine similarity, j the other
    view of i's image. Projections (U, D) of two views, row by row of the same image; T > 0. In float32
    and log-sum-exp form. With one image there is nothing to repel, and the loss is 0.

    nt_xent(z, z, 0.5) is smaller than nt_xent(z, z.flip(0), 0.5).
    """
    views_VD = torch.cat([first_UD, second_UD])
    similarity_VV = cosines(views_VD, views_VD) / temperature
    similarity_VV.fill_diagonal_(float("-inf"))
    partner_V = torch.arange(len(views_VD), device=views_VD.device).roll(len(first_UD))
    return F.cross_entropy(similarity_VV, partner_V)


def contrastive_accuracy(first_UD: Tensor, second_UD: Tensor) -> Tensor:
    """Share of the images whose first view is closest to its own second view, within the batch."""
    similarity_UU = cosines(first_UD.detach(), second_UD.detach())
    own_U = torch.arange(len(first_UD), device=first_UD.device)
    accuracy: Tensor = (similarity_UU.argmax(dim=1) == own_U).float().mean()
    return accuracy


def embedding_std(features_UD: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of unit rows, times sqrt(D).

    Near 1 where rows point everywhere, 0 where all are the same (arXiv 2011.10566, section 4.1).
    """
    rows_UD = unit(features_UD.detach())
    std: Tensor = rows_UD.std(dim=0, correction=0).mean() * rows_UD.shape[1] ** 0.5
    return std
