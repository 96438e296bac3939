"""SoftMatch (Chen et al. 2023, arXiv 2301.10921): every pseudo-label counts, the less the further its confidence is
below the mean.

Shapes: U unlabeled images, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import BelowOne, ModelSpec, Positive
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.fixmatch import (
    WITHOUT_THRESHOLD,
    FixMatch,
    Targets,
    WeakToStrongSpec,
    WeakToStrongStage,
    probabilities,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


class SoftMatchSpec(WeakToStrongSpec):
    name: Literal["softmatch"] = "softmatch"  # type: ignore[assignment]
    decay: BelowOne = Field(0.999, description="of the averages that the weights follow")
    width: Positive = Field(
        2.0, description="n_sigma: the weights fall with the deviation / n_sigma"
    )
    uniform_alignment: bool = Field(
        True, description="weights as if all classes were predicted equally often"
    )


class SoftMatchStage(WeakToStrongStage[SoftMatchSpec]):
    """Averages over the steps in the network's buffers: `mean` and `variance` of the confidence, `classes_K`."""

    splits_batches: ClassVar[bool] = False  # the averages move once in a step
    shares: ClassVar[tuple[str, ...]] = ("classes_K",)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        network = super().build(task, model, previous)
        network.register_buffer("mean", torch.tensor(1 / task.num_classes))
        network.register_buffer("variance", torch.tensor(1.0))
        return network

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        weak_UK, share = probabilities(weak_UK), 1 - self.spec.decay
        labels_U = weak_UK.argmax(dim=1)
        network.classes_K.lerp_(weak_UK.mean(dim=0), share)
        if self.spec.uniform_alignment:
            weak_UK = aligned(weak_UK, torch.ones_like(network.classes_K), network.classes_K)
        confidence_U = weak_UK.amax(dim=1)
        squares_U = (confidence_U - confidence_U.mean()).square()
        network.mean.lerp_(confidence_U.mean(), share)
        network.variance.lerp_(squares_U.sum() / max(1, len(squares_U) - 1), share)
        weights_U = truncated_gaussian(
            confidence_U, network.mean, network.variance, self.spec.width
        )
        return Targets(labels_U, weights_U)


class SoftMatch(Method[SoftMatchSpec]):
    name = "softmatch"
    Spec = SoftMatchSpec
    losses = FixMatch.losses
    stage_types = (SoftMatchStage,)
    defaults = FixMatch.defaults
    searched = {
        **WITHOUT_THRESHOLD,
        "method.decay": {"choice": [0.9, 0.97, 0.99, 0.999]},
        "method.width": {"choice": [1, 2, 3]},
    }


def aligned(probabilities_UK: Tensor, wanted_K: Tensor, found_K: Tensor) -> Tensor:
    """Each row times wanted / found, scaled to the sum 1: distribution alignment (arXiv 1911.09785, section 3.1)."""
    scaled_UK = probabilities_UK * (wanted_K / found_K.clamp(min=1e-6))
    return scaled_UK / scaled_UK.sum(dim=1, keepdim=True).clamp(min=1e-12)


def truncated_gaussian(
    confidence_U: Tensor, mean: Tensor, variance: Tensor, width: float
) -> Tensor:
    """exp(-min(0, c - mean)^2 / (2 variance / width^2)): (U,), in [0, 1]; 1 from the mean on.

    The truncated Gaussian of arXiv 2301.10921 with largest weight 1; width is n_sigma of its code.
    """
    below_U = (confidence_U - mean).clamp(max=0)
    return torch.exp(-below_U.square() / (2 * variance / width**2).clamp(min=1e-12))
