"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): two views' dimensions agree one by one, and repeat no other.

Stage `pretrain` sees every image and no label; then `finetune` or `linear_probe` (transfer.py).
The paper's lambda is the weight of the term `redundancy`.

Shapes: U unlabeled images, D projected dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, ModelSpec, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Network, StepOutput
from tune_ssl.methods.simclr import ContrastSpec, PretrainStage, embedding_std
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

EPSILON = 1e-5  # what BatchNorm adds to a variance, in the authors' code too


class BarlowTwinsSpec(ContrastSpec):
    name: Literal["barlow_twins"] = "barlow_twins"  # type: ignore[assignment]
    projector_hidden: Size = 2048
    projector_dim: Size = 2048


SpecT = TypeVar("SpecT", bound=BarlowTwinsSpec)


class BarlowTwinsPretrain(PretrainStage[SpecT]):
    loss_terms: ClassVar[tuple[str, ...]] = ("invariance", "redundancy")

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        hidden = self.spec.projector_hidden
        sizes = (hidden, hidden, self.spec.projector_dim)
        return models.ProjectorNetwork(models.encoder_for(task, model), sizes)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        # Each view by itself, as in the authors' code: BatchNorm normalises over the images of one view
        first_UD, second_UD = map(network, batch.unlabeled)
        correlation_DD = cross_correlation(first_UD, second_UD)
        losses = {
            "invariance": invariance(correlation_DD),
            "redundancy": redundancy(correlation_DD),
        }
        return StepOutput(losses, {"embedding_std": embedding_std(first_UD)})


class BarlowTwins(PretrainedMethod[BarlowTwinsSpec]):
    name = "barlow_twins"
    Spec = BarlowTwinsSpec
    losses = {
        "invariance": LossSpec(),
        "redundancy": LossSpec(weight=5e-3),
        "supervised": SupervisedLossSpec(),
    }
    stage_types = (BarlowTwinsPretrain, FinetuneStage, LinearProbeStage)
    searched = {"losses.redundancy.weight": {"choice": [1e-3, 5e-3, 2e-2]}, **TRANSFER_SEARCHED}


def standardised(features_UD: Tensor) -> Tensor:
    """Each dimension with mean 0 and deviation 1 over the batch, in float32; one that never changes is 0."""
    centred_UD = features_UD.float() - features_UD.float().mean(dim=0)
    return centred_UD * (centred_UD.square().mean(dim=0) + EPSILON).rsqrt()


def cross_correlation(first_UD: Tensor, second_UD: Tensor) -> Tensor:
    """C (D, D) of the dimensions of two views over the batch, in [-1, 1]; equation 2 of arXiv 2103.03230.

    Projections (U, D), row by row of the same image. In float32, under autocast too.
    """
    with torch.autocast(first_UD.device.type, enabled=False):
        return standardised(first_UD).T @ standardised(second_UD) / len(first_UD)


def invariance(correlation_DD: Tensor) -> Tensor:
    """Sum over i of (1 - C_ii)^2, the first term of equation 1 of arXiv 2103.03230; in [0, 4 D]."""
    return (1 - correlation_DD.diagonal()).square().sum()


def redundancy(correlation_DD: Tensor) -> Tensor:
    """Sum over i != j of C_ij^2, the second term of equation 1 of arXiv 2103.03230; in [0, D (D - 1)]."""
    return (correlation_DD - correlation_DD.diagonal().diag()).square().sum()
