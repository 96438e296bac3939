"""FreeMatch (Wang et al. 2023, arXiv 2205.07246): thresholds follow the network's own confidence; one term more wants
every class predicted.

Shapes: U unlabeled images, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import BelowOne, LossSpec, ModelSpec
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
    import torch.nn.functional as F
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")

LEAST = 1e-12  # a share of a class, under the logarithm
TINY = 1.2e-38  # the least share that float32 can divide by; below, nothing is left


class FreeMatchSpec(WeakToStrongSpec):
    name: Literal["freematch"] = "freematch"  # type: ignore[assignment]
    decay: BelowOne = Field(0.999, description="of the averages that the thresholds follow")
    fairness: Literal["agreement", "published"] = Field(
        "agreement", description="published: the term as it was printed, with the other sign"
    )


class FreeMatchStage(WeakToStrongStage[FreeMatchSpec]):
    """Averages over the steps in the network's buffers: `confidence`, `classes_K` (m) and `histogram_K` (h)."""

    loss_terms: ClassVar[tuple[str, ...]] = (*WeakToStrongStage.loss_terms, "fairness")
    splits_batches: ClassVar[bool] = False  # the averages move once in a step
    shares: ClassVar[tuple[str, ...]] = ("classes_K", "histogram_K")

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        network = super().build(task, model, previous)
        network.register_buffer("confidence", torch.tensor(1 / task.num_classes))
        return network

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        weak_UK = probabilities(weak_UK)
        confidence_U, labels_U = weak_UK.max(dim=1)
        share = 1 - self.spec.decay
        network.confidence.lerp_(confidence_U.mean(), share)
        network.classes_K.lerp_(weak_UK.mean(dim=0), share)
        network.histogram_K.lerp_(class_shares(labels_U, weak_UK.shape[1]), share)
        thresholds_K = network.confidence * (network.classes_K / network.classes_K.max())
        return Targets(labels_U, (confidence_U >= thresholds_K[labels_U]).float())

    def more_losses(
        self, network: Network, strong_UK: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        loss = fairness(strong_UK, targets.weights_U, network.classes_K, network.histogram_K)
        return {"fairness": loss if self.spec.fairness == "agreement" else -loss}


class FreeMatch(Method[FreeMatchSpec]):
    name = "freematch"
    Spec = FreeMatchSpec
    losses = {**FixMatch.losses, "fairness": LossSpec(weight=0.01)}
    stage_types = (FreeMatchStage,)
    defaults = FixMatch.defaults
    searched = {
        **WITHOUT_THRESHOLD,
        "method.decay": {"choice": [0.9, 0.97, 0.99, 0.999]},
        "losses.fairness.weight": {"log_uniform": [1e-3, 0.1]},
    }


def class_shares(labels_U: Tensor, num_classes: int) -> Tensor:
    """Each class's share (K,) of the labels (U,), in [0, 1]."""
    return F.one_hot(labels_U, num_classes).float().mean(dim=0)


def fairness(
    strong_UK: Tensor, confident_U: Tensor, classes_K: Tensor, histogram_K: Tensor
) -> Tensor:
    """-sum over K of a log b: a = m / h, b = mean of p(strong) / histogram of its argmax, each scaled to the sum 1.

    Mean and histogram are over the confident images; a class that none of them has counts 0 in b, and one of which
    nothing is left in h counts 0 in a. Logits (U, K), 0 or 1 (U,), m and h (K,); in float32, at least 0; 0 for no
    confident image. Equation 11 of arXiv 2205.07246 has it with a minus, as the authors' code does: minimised, that
    drives a and b apart, while the text wants the predictions fair.
    """
    wanted_K = torch.where(histogram_K > TINY, classes_K / histogram_K.clamp(min=TINY), 0.0)
    wanted_K = wanted_K / wanted_K.sum()
    strong_UK = F.softmax(strong_UK.float(), dim=1)
    count = confident_U.sum().clamp(min=1)
    chosen_UK = F.one_hot(strong_UK.argmax(dim=1), strong_UK.shape[1]) * confident_U[:, None]
    found_K = chosen_UK.sum(dim=0) / count
    mean_K = (strong_UK * confident_U[:, None]).sum(dim=0) / count
    scaled_K = torch.where(found_K > 0, mean_K / found_K.clamp(min=LEAST), 0.0)
    given_K = scaled_K / scaled_K.sum().clamp(min=LEAST)
    loss: Tensor = -(wanted_K * (given_K + LEAST).log()).sum()
    return loss * (confident_U.sum() > 0)
