"""What a method is: stages that return raw, named loss terms. Weights, ramps, optimizers and logs are the loop's.

A stage is stateless. All that training changes (weights, centroids) lives in the network that
`build` returns, so that averaging, checkpoints and export need to know nothing of methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from tune_ssl.base.spec import LossSpec, MethodSpec, ModelSpec, OptimPart
from tune_ssl.data.batch import Batch, Sample, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

Network = Any
"""The nn.Module that a stage built: only the stage knows what it has inside."""
SpecT = TypeVar("SpecT", bound=MethodSpec)


class Ratio(NamedTuple):
    """A diagnostic whose mean over steps is sum(part) / sum(whole): a share of what varies in size."""

    part: Tensor
    whole: Tensor


class StepOutput(NamedTuple):
    """Raw scalar losses, keyed by the stage's `loss_terms`, and detached scalar diagnostics."""

    losses: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor | Ratio]


class Prediction(NamedTuple):
    """What evaluators read: features (N, D), logits (N, K), cluster-to-class logits (N, K)."""

    features_ND: Tensor
    logits_NK: Tensor | None = None
    clusters_NK: Tensor | None = None


class Stage(Generic[SpecT]):
    """One stage of training.

    `labeled_views` and `unlabeled_views` name the views that a batch holds, in that order; without
    labeled views no label is ever seen, without unlabeled ones no unlabeled image. `evaluators` are
    names in tune_ssl.training.evaluation. `stand_in` is what a scheduler compares while the stage does not
    measure the study's metric ("probe_accuracy").

    A stage that sees no label is kept once trained, and reused where all that shaped it is equal.
    `shaped_without` names the options of the method, and of the model as `model.freeze`, that only later stages read.

    `splits_batches` says that every loss is a mean over a step's labeled or unlabeled images, each image by
    itself, and that `step` changes nothing but gradients and BatchNorm: only then is the mean of the gradients
    of parts that of the whole batch, and `compute.accumulate` may be above 1.

    `on_features` says that `step`, `start` and `predict` do nothing with an image but to give it to a
    `Classifier`: where its encoder is frozen, they get the encoder's features, kept from earlier trials.

    `fits` says that the stage is not trained in steps: `fit` is called once, in the place of `step`.

    `contrasts` says that a loss takes a step's other unlabeled images for different ones: each must be another
    image, and there must be at least 2.

    `idle` maps a diagnostic to a sentence: what a user must know where it was 0 from the first step to the last.
    """

    name: ClassVar[str] = "train"
    loss_terms: ClassVar[tuple[str, ...]]
    evaluators: ClassVar[tuple[str, ...]] = ("classifier",)
    stand_in: ClassVar[str | None] = None
    shaped_without: ClassVar[tuple[str, ...]] = ()
    splits_batches: ClassVar[bool] = False
    on_features: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False
    idle: ClassVar[Mapping[str, str]] = {}

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return ("weak",)

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return ()

    @property
    def floors(self) -> dict[str, float]:
        """Diagnostic -> the least mean of a healthy run; below it the run has collapsed."""
        return {}

    def parts(self, network: Network) -> dict[str, nn.Module]:
        """What of the network is trained by the settings of `optim.<part>` instead of the stage's."""
        return {}

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        """The network of this stage; `previous` is the network that the stage before it trained."""
        raise NotImplementedError

    def start(self, network: Network, sample: Sample) -> None:
        """Set what depends on data, from un-augmented images, before the first step.

        The sample gives images in chunks, none labeled where the stage has no labeled view.
        """

    def step(self, network: Network, batch: Batch) -> StepOutput:
        raise NotImplementedError

    def fit(
        self, network: Network, labeled_ND: Tensor, labels_N: Tensor, unlabeled_UD: Tensor
    ) -> None:
        """Where `fits`: fit the network to the encoder's features of un-augmented images, all at once.

        `unlabeled_UD` are those of the images without a label; none where the stage has no unlabeled view.
        """
        raise NotImplementedError

    def predict(self, network: Network, images: Tensor) -> Prediction:
        """Outputs for un-augmented images (N, C, H, W); called in eval mode, without gradients."""
        raise NotImplementedError

    def pictures(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """Rows of images (n, C, H, W), normalised as in a batch, that the report shows one below another."""
        return {}


class Method(Generic[SpecT]):
    """A name, a spec, the loss terms with their default weights, and the stages in order.

    `optim_parts` are the stages and the parts of networks that have optimizer settings of their own. `searched` are
    the keys that a comparison tunes, as a study file's `search` has them, unless it says otherwise. `defaults` are
    values of a trial's keys ({"model.encoder": "pixels"}) where the method's own differ from everyone's.
    """

    name: ClassVar[str]
    Spec: ClassVar[type[MethodSpec]]
    losses: ClassVar[dict[str, LossSpec]]
    optim_parts: ClassVar[dict[str, OptimPart]] = {}
    stage_types: ClassVar[tuple[type[Stage[Any]], ...]]
    searched: ClassVar[dict[str, Any]] = {}
    defaults: ClassVar[dict[str, Any]] = {}

    @classmethod
    def stages(cls, spec: SpecT) -> list[Stage[SpecT]]:
        """The stages that this spec asks for, in order."""
        return [stage(spec) for stage in cls.stage_types]
