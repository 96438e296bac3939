"""VICReg (Bardes et al. 2022, arXiv 2105.04906): views agree, each dimension varies, and no two vary together.

Stage `pretrain` sees every image and no label; then `finetune` or `linear_probe` (transfer.py).
The paper's lambda, mu and nu are the weights of the three terms.

Shapes: U unlabeled images, D projected dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, SupervisedLossSpec
from tune_ssl.data.batch import Batch
from tune_ssl.methods.barlow_twins import BarlowTwinsPretrain, BarlowTwinsSpec, redundancy
from tune_ssl.methods.base import Network, StepOutput
from tune_ssl.methods.simclr import embedding_std
from tune_ssl.methods.transfer import (
    TRANSFER_SEARCHED,
    FinetuneStage,
    LinearProbeStage,
    PretrainedMethod,
)

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")

EPSILON = 1e-4  # what is added to a variance before its root, as in the paper


class VICRegSpec(BarlowTwinsSpec):
    name: Literal["vicreg"] = "vicreg"  # type: ignore[assignment]


class VICRegPretrain(BarlowTwinsPretrain[VICRegSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("invariance", "variance", "covariance")

    def step(self, network: Network, batch: Batch) -> StepOutput:
        # Each view by itself, as in the authors' code: BatchNorm normalises over the images of one view
        first_UD, second_UD = map(network, batch.unlabeled)
        losses = {
            "invariance": invariance(first_UD, second_UD),
            "variance": (variance(first_UD) + variance(second_UD)) / 2,
            "covariance": covariance(first_UD) + covariance(second_UD),
        }
        return StepOutput(losses, {"embedding_std": embedding_std(first_UD)})


class VICReg(PretrainedMethod[VICRegSpec]):
    name = "vicreg"
    Spec = VICRegSpec
    losses = {
        "invariance": LossSpec(weight=25.0),
        "variance": LossSpec(weight=25.0),
        "covariance": LossSpec(weight=1.0),
        "supervised": SupervisedLossSpec(),
    }
    stage_types = (VICRegPretrain, FinetuneStage, LinearProbeStage)
    searched = {"losses.covariance.weight": {"choice": [0.1, 1.0, 10.0]}, **TRANSFER_SEARCHED}


def invariance(first_UD: Tensor, second_UD: Tensor) -> Tensor:
    """Mean squared difference of two views' projections (U, D), over images and dimensions; at least 0.

    Equation 5 of arXiv 2105.04906 divided by D, as in its algorithm 1 and the authors' code.
    """
    return F.mse_loss(first_UD.float(), second_UD.float())


def variance(features_UD: Tensor) -> Tensor:
    """max(0, 1 - sqrt(var + 1e-4)), mean over dimensions, in [0, 0.99]; equations 1 and 2 of arXiv 2105.04906.

    Features (U, D); var over the batch, unbiased, 0 for one image. In float32.
    """
    centred_UD = _centred(features_UD)
    var_D = centred_UD.square().sum(dim=0) / max(len(centred_UD) - 1, 1)
    return F.relu(1 - (var_D + EPSILON).sqrt()).mean()


def covariance(features_UD: Tensor) -> Tensor:
    """Sum over i != j of C_ij^2, divided by D; equations 3 and 4 of arXiv 2105.04906. At least 0.

    C (D, D) is the covariance of the features (U, D) over the batch, unbiased, 0 for one image. In float32, under
    autocast too.
    """
    centred_UD = _centred(features_UD)
    with torch.autocast(centred_UD.device.type, enabled=False):
        covariance_DD = centred_UD.T @ centred_UD / max(len(centred_UD) - 1, 1)
    return redundancy(covariance_DD) / len(covariance_DD)


def _centred(features_UD: Tensor) -> Tensor:
    return features_UD.float() - features_UD.float().mean(dim=0)
