"""AdaMatch (Berthelot et al. 2022, arXiv 2106.04732): FixMatch with predictions aligned to those of the labeled images,
and a threshold relative to their confidence.

Shapes: N labeled, U unlabeled images, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.spec import BelowOne, Fraction
from tune_ssl.data.batch import Batch
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.fixmatch import (
    FixMatch,
    FixMatchSpec,
    FixMatchStage,
    Targets,
    probabilities,
)
from tune_ssl.methods.softmatch import aligned

if TYPE_CHECKING:
    from torch import Tensor


class AdaMatchSpec(FixMatchSpec):
    name: Literal["adamatch"] = "adamatch"  # type: ignore[assignment]
    threshold: Fraction = Field(
        0.95,
        description="tau: times the labeled images' mean confidence, the least of a pseudo-label",
    )
    decay: BelowOne = Field(0.999, description="of the averages of the predictions")


class AdaMatchStage(FixMatchStage[AdaMatchSpec]):
    """The mean predictions of labeled and unlabeled images in the network's buffers, averaged over the steps."""

    splits_batches: ClassVar[bool] = False  # the averages move once in a step
    shares: ClassVar[tuple[str, ...]] = ("labeled_K", "unlabeled_K")

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        labeled_NK, weak_UK = probabilities(logits_NK), probabilities(weak_UK)
        network.labeled_K.lerp_(labeled_NK.mean(dim=0), 1 - self.spec.decay)
        network.unlabeled_K.lerp_(weak_UK.mean(dim=0), 1 - self.spec.decay)
        weak_UK = aligned(weak_UK, network.labeled_K, network.unlabeled_K)
        return relative_targets(weak_UK, labeled_NK, self.spec.threshold)


class AdaMatch(Method[AdaMatchSpec]):
    name = "adamatch"
    Spec = AdaMatchSpec
    losses = FixMatch.losses
    stage_types = (AdaMatchStage,)
    defaults = FixMatch.defaults
    searched = {**FixMatch.searched, "method.decay": {"choice": [0.9, 0.97, 0.99, 0.999]}}


def relative_targets(weak_UK: Tensor, labeled_NK: Tensor, threshold: float) -> Targets:
    """The likeliest class, which counts from tau x the mean over labeled images of their largest probability on.

    The relative confidence threshold of arXiv 2106.04732. Probabilities (U, K), aligned, and (N, K), as they are.
    """
    confidence_U, labels_U = weak_UK.max(dim=1)
    least = threshold * labeled_NK.amax(dim=1).mean()
    return Targets(labels_U, (confidence_U >= least).float())
