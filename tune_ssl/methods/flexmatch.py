"""FlexMatch (Zhang et al. 2021, arXiv 2110.08263): FixMatch with a lower threshold for a class that is learned less.

Shapes: U unlabeled images of a step, P in all, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.fixmatch import (
    FixMatch,
    FixMatchSpec,
    FixMatchStage,
    Targets,
    probabilities,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

NONE_YET = -1


class FlexMatchSpec(FixMatchSpec):
    name: Literal["flexmatch"] = "flexmatch"  # type: ignore[assignment]


class FlexMatchStage(FixMatchStage[FlexMatchSpec]):
    """The network remembers of each unlabeled image its latest confident prediction, in the buffer `predicted_P`."""

    splits_batches: ClassVar[bool] = False  # what it remembers changes with each step

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        network = super().build(task, model, previous)
        network.register_buffer("predicted_P", torch.full((task.unlabeled,), NONE_YET))
        network.register_load_state_dict_pre_hook(as_saved)
        return network

    def targets(
        self, network: Network, batch: Batch, logits_NK: Tensor, weak_UK: Tensor
    ) -> Targets:
        assert batch.ids_U is not None
        confidence_U, labels_U = probabilities(weak_UK).max(dim=1)
        tau = self.spec.threshold
        thresholds_K = class_thresholds(network.predicted_P, weak_UK.shape[1], tau)
        confident_U = torch.where(confidence_U >= tau, labels_U, NONE_YET)
        # An image may be twice in a step: one of its confident predictions is kept
        latest_P = torch.full_like(network.predicted_P, NONE_YET)
        latest_P.scatter_reduce_(0, batch.ids_U, confident_U, "amax")
        network.predicted_P.copy_(torch.where(latest_P == NONE_YET, network.predicted_P, latest_P))
        return Targets(labels_U, (confidence_U >= thresholds_K[labels_U]).float())


class FlexMatch(Method[FlexMatchSpec]):
    name = "flexmatch"
    Spec = FlexMatchSpec
    losses = FixMatch.losses
    stage_types = (FlexMatchStage,)
    defaults = FixMatch.defaults
    searched = FixMatch.searched


def class_thresholds(predicted_P: Tensor, num_classes: int, threshold: float) -> Tensor:
    """tau x beta_k / (2 - beta_k), beta_k = n_k / max(max n, P - sum n): (K,), in [0, tau].

    Section 3 of arXiv 2110.08263 with its threshold warm-up and convex mapping. n_k of the P unlabeled images have
    class k as their latest confident prediction; `predicted_P` has -1 where there was none yet.
    """
    counts = torch.bincount(predicted_P - NONE_YET, minlength=num_classes + 1).float()
    none_yet, counts_K = counts[0], counts[1:]
    beta_K = counts_K / torch.maximum(counts_K.max(), none_yet).clamp(min=1)
    return threshold * beta_K / (2 - beta_K)


def as_saved(network: Any, saved: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Before weights are loaded: as many images as there were, which a network that only predicts does not know."""
    found = saved.get(f"{prefix}predicted_P")
    if found is not None and found.shape != network.predicted_P.shape:
        network.predicted_P = torch.full_like(found, NONE_YET)
