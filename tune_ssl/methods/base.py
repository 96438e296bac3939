"""What a method is: stages that return raw, named loss terms. Weights, ramps, optimizers and logs are the loop's.

A stage is stateless. All that training changes (weights, centroids) lives in the network that
`build` returns, so that averaging, checkpoints and export need to know nothing of methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from tune_ssl.data.batch import Batch, Task
from tune_ssl.spec import LossSpec, MethodSpec, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = Any
"""The nn.Module that a stage built: only the stage knows what it has inside."""
SpecT = TypeVar("SpecT", bound=MethodSpec)


class StepOutput(NamedTuple):
    """Raw scalar losses, keyed by the stage's `loss_terms`, and detached scalar diagnostics."""

    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor]


class Prediction(NamedTuple):
    """What evaluators read: features (N, D), logits (N, K), cluster-to-class logits (N, K)."""

    features_ND: Tensor
    logits_NK: Tensor | None = None
    clusters_NK: Tensor | None = None


class Stage(Generic[SpecT]):
    """One stage of training.

    `labeled_views` and `unlabeled_views` name the views that a batch holds, in that order; without
    unlabeled views no unlabeled image is drawn. `evaluators` are names in tune_ssl.evaluation.
    """

    name: ClassVar[str] = "train"
    loss_terms: ClassVar[tuple[str, ...]]
    evaluators: ClassVar[tuple[str, ...]] = ("classifier",)

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return ("weak",)

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return ()

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        """The network of this stage; `previous` is the network that the stage before it trained."""
        raise NotImplementedError

    def start(self, network: Network, sample: Batch) -> None:
        """Set what depends on data, from un-augmented images, before the first step."""

    def step(self, network: Network, batch: Batch) -> StepOutput:
        raise NotImplementedError

    def predict(self, network: Network, images: Tensor) -> Prediction:
        """Outputs for un-augmented images (N, C, H, W); called in eval mode, without gradients."""
        raise NotImplementedError


class Method(Generic[SpecT]):
    """A name, a spec, the loss terms with their default weights, and the stages in order."""

    name: ClassVar[str]
    Spec: ClassVar[type[MethodSpec]]
    losses: ClassVar[dict[str, LossSpec]]
    stage_types: ClassVar[tuple[type[Stage[Any]], ...]]

    @classmethod
    def stages(cls, spec: SpecT) -> list[Stage[SpecT]]:
        return [stage(spec) for stage in cls.stage_types]
