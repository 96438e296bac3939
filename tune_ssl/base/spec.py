"""The frozen, strict specs of a trial and of a study. Defaults live beside their fields."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)


def form(pattern: str, words: str) -> AfterValidator:
    """A text must match all of `pattern`; `words` say so in an error."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"is {value!r}, but must be {words}")
        return value

    return AfterValidator(check)


Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[
    str,
    form(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
        "up to 100 letters, digits, '.', '_' and '-', with a letter or digit first",
    ),
]
ClassName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
Imbalance = Annotated[float, Field(ge=1)]
Side = Annotated[int, Field(ge=8, le=1024)]
Colour = Annotated[
    str, form(r"white|black|gr[ae]y|#[0-9a-fA-F]{6}", "white, black, grey or a colour as '#ffcc00'")
]
Device = Annotated[str, form(r"auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda or cuda:0")]


class Spec(BaseModel):
    """Base of every spec: unknown keys and other types are errors, instances never change.

    A whole number is taken for a float; a text or a bool for a number is not.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True
    )
    unwritten: ClassVar[tuple[str, ...]] = ()
    """Later keys, left out where they have their defaults: they are no part of the digests of runs without them."""

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        off = {key for key in self.unwritten if getattr(self, key) == fields[key].default}
        return {key: value for key, value in handler(self).items() if key not in off}


OF_A_TRIAL = (
    *("labeled_ratio", "num_labels", "split", "split_seed", "validation", "val_ratio"),
    *("imbalance", "unlabeled_imbalance", "unlabeled_mismatch"),
    *("batch_size", "mu", "balanced", "flip"),
)
"""Keys of `data` that say what a trial does with the images, and not which they are."""

UNBALANCED = ("classes", "imbalance", "unlabeled_imbalance", "unlabeled_mismatch")
"""Keys of `data` that make a harder task of a dataset; each is off by default."""


class DataSpec(Spec):
    """Which images, and which of them are labeled."""

    unwritten: ClassVar[tuple[str, ...]] = UNBALANCED
    dataset: str = "digits"
    root: str | None = Field(None, description="folder of the data; `folder` needs it, or labels")
    labels: str | None = Field(
        None,
        description="CSV or Parquet file of `folder` with columns path, label and perhaps part",
    )
    val_root: str | None = Field(None, description="folder of <class>/ that is the val part")
    test_root: str | None = Field(None, description="folder of <class>/ that is the test part")
    unlabeled_root: str | None = Field(None, description="folder of images without labels")
    class_depth: Annotated[int, Field(ge=1, le=8)] = Field(
        1, description="levels of folders that name a class: 2 for animals/cat/"
    )
    download: bool = Field(False, description="let torchvision fetch what is missing")
    image_size: Side | None = Field(
        None, description="side in pixels that the network sees; the dataset's own when absent"
    )
    store_size: Side | None = Field(
        None,
        description="side in pixels of the stored images; larger than image_size, random crops have detail",
    )
    resize: Literal["crop", "pad", "squash"] = Field(
        "crop",
        description="how an image becomes square: its centre, with a border, or out of shape",
    )
    flip: bool | None = Field(
        None, description="whether mirroring keeps the class; the dataset's own answer if absent"
    )
    background: Colour = Field("white", description="behind transparent pixels and beside padding")
    range: Literal["auto"] | Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        "auto",
        description="[low, high] of the values that become 0 and 255; auto: 8 bits as they are, of deeper files what "
        "the train part has",
    )
    max_pixels: Size = Field(178_956_970, description="of one image file; a larger one is bad")
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    duplicates: Literal["warn", "drop", "refuse"] = Field(
        "warn", description="equal images of `folder`; drop takes them from train and unlabeled"
    )
    store: Literal["auto", "pixels", "encoded"] = Field(
        "auto",
        description="of `folder`: decoded once, or the files' own bytes, decoded for each batch; auto: by size",
    )
    classes: Annotated[list[ClassName], Field(min_length=2)] | None = Field(
        None, description="names of the classes of the task, in this order; all if absent"
    )
    imbalance: Imbalance = Field(
        1.0,
        description="images of the first class in the training pool, per image of the last: a long tail; 1 is off",
    )
    unlabeled_imbalance: Imbalance | None = Field(
        None, description="that of the unlabeled images, if it is another one"
    )
    unlabeled_mismatch: Fraction | None = Field(
        None,
        description="share of the unlabeled images that are of other classes than `classes`; as many images for every "
        "share, and absent: all of the task and no other",
    )
    labeled_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the training pool that keeps its labels"
    )
    num_labels: Size | None = Field(None, description="labels in all; excludes labeled_ratio")
    split: Literal["stratified", "random"] = "stratified"
    split_seed: int | None = Field(None, ge=0, description="which labels; follows `seed` if absent")
    validation: Literal["split", "within_budget"] = "split"
    val_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share kept for validation where the dataset brings no own part"
    )
    batch_size: Size = 32
    mu: Size = Field(1, description="unlabeled images per labeled one in a step (FixMatch's mu)")
    balanced: bool = Field(
        False, description="each class equally often among a step's labeled images"
    )

    @model_validator(mode="after")
    def _fitting(self) -> DataSpec:
        if self.range != "auto" and self.range[0] >= self.range[1]:
            raise ValueError(f"has range {self.range}, but its low end must be below its high end")
        if self.store_size is not None and self.image_size is None:
            raise ValueError(f"has store_size {self.store_size}, but no image_size")
        if self.store_size is not None and self.store_size < (self.image_size or 0):
            raise ValueError(
                f"has store_size {self.store_size}, but must have at least image_size, {self.image_size}"
            )
        return self

    def of_images(self) -> DataSpec:
        """The keys that a store of images depends on; the others as they are by default."""
        return self.model_copy(update={k: type(self).model_fields[k].default for k in OF_A_TRIAL})

    @property
    def stored_size(self) -> int | None:
        """The side of the stored images; None: the dataset's own."""
        return self.store_size or self.image_size

    @model_validator(mode="after")
    def _task(self) -> DataSpec:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"has classes {self.classes}, but must name each class once")
        if self.unlabeled_mismatch is not None and self.classes is None:
            given = f"unlabeled_mismatch {self.unlabeled_mismatch}"
            raise ValueError(f"has {given}, but no classes, which say what is of the task")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> DataSpec:
        if self.labeled_ratio is not None and self.num_labels is not None:
            given = f"labeled_ratio {self.labeled_ratio} and num_labels {self.num_labels}"
            raise ValueError(f"has {given}, but must have at most one of them")
        return self


class ModelSpec(Spec):
    """Encoder and heads."""

    encoder: str = "small_cnn"
    stem: Literal["auto", "small", "large"] = Field(
        "auto", description="small: 3x3, no pooling; auto: small up to 40 px"
    )
    head: Literal["linear", "mlp"] = Field(
        "linear", description="linear: on the encoder; mlp: Linear to feature_dim, then two Linear"
    )
    feature_dim: Size = 512
    hidden_dim: Size = 256
    weights: str = Field(
        "none",
        description="what the encoder starts from: none, pretrained (timm's own), a file, or RUN[:CONDITION]",
    )
    freeze: Literal["all", "none"] | Annotated[int, Field(ge=1)] = Field(
        "none",
        description="of the encoder below a classifier: all, none, or its first k groups of layers; a pretraining "
        "stage trains all of it",
    )
    frozen_views: Annotated[int, Field(gt=0, le=1000)] = Field(
        4,
        description="augmented versions of each image that a frozen encoder's features are taken of",
    )
    mean: list[Fraction] | None = Field(
        None,
        description="of each channel, as the encoder wants it; that of the weights or the data if absent",
    )
    std: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None, description="of each channel, as `mean`"
    )

    @model_validator(mode="after")
    def _both(self) -> ModelSpec:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"has mean {self.mean} and std {self.std}, but must have both, of equal length, or neither"
            )
        return self


Optimizer = Literal["adamw", "adam", "sgd"]
Decay = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "cosine_7_16", "constant"]
Share = Annotated[float, Field(gt=0, le=1)]


class OptimPart(Spec):
    """What one stage, or one part of the network, does differently; what is absent is as in `optim`."""

    name: Optimizer | None = None
    lr: Positive | None = None
    weight_decay: Decay | None = None
    momentum: BelowOne | None = None
    nesterov: bool | None = None
    schedule: Schedule | None = None
    warmup: BelowOne | None = None
    layer_decay: Share | None = None


class OptimSpec(Spec):
    """Optimizer, learning-rate schedule and weight averaging.

    A method's own parts (`optim.finetune.lr`) are added as fields by `trial.trial_model`.
    """

    name: Optimizer = "adamw"
    lr: Positive = 3e-3
    weight_decay: Decay = 5e-4
    momentum: BelowOne = 0.9
    nesterov: bool = True
    schedule: Schedule = "cosine"
    warmup: BelowOne = Field(0.0, description="share of the steps")
    layer_decay: Share = Field(
        1.0,
        description="of an encoder's learning rate from each group of layers to the one before it; 1 is off",
    )
    encoder: OptimPart = Field(OptimPart(), description="what the encoder's layers do differently")
    head: OptimPart = Field(OptimPart(), description="what stands on the encoder does differently")
    grad_clip: Positive | None = None
    ema_decay: BelowOne = Field(
        0.999,
        description="0 is off; at step t min(ema_decay, 1 - 10 / steps, (1 + t) / (10 + t)) counts",
    )

    def of(self, *parts: str) -> OptimSpec:
        """The settings of a stage, or of a part of the network within it: each one's own go first.

        `optim.of("pretrain", "predictor")`: what optim.predictor gives, else optim.pretrain, else optim.
        """
        spec = self
        for name in parts:
            own = getattr(self, name, None)
            if isinstance(own, OptimPart):
                spec = spec.model_copy(update=own.model_dump(exclude_none=True))
        return spec


class BudgetSpec(Spec):
    """How long a trial trains, in optimizer steps."""

    steps: Size | dict[str, Size] = Field(
        500, description="of each stage: a number, or one per stage"
    )
    eval_every: Size = 50
    eval_images: Size | Literal["auto", "all"] = Field(
        "auto",
        description="validation images of an evaluation on the way, always the same; auto: what costs a few percent "
        "of training. All are looked at where trials are compared, and at each stage's end",
    )
    checkpoint: Literal["last", "best"] = Field(
        "last", description="which weights are the result: the last, or the best on validation"
    )
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="a guard: a trial that trains longer is stopped, and is no result"
    )


class ComputeSpec(Spec):
    """Where and in which precision; `auto` reads the machine."""

    unwritten: ClassVar[tuple[str, ...]] = ("tf32", "cudnn_benchmark", "compile")
    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Size = Field(
        1,
        description="equal parts that a batch goes through the network in, one after another: less memory "
        "for the same step, but BatchNorm normalises each part by itself",
    )
    channels_last: bool = Field(True, description="memory format; measured faster, on a CPU too")
    tf32: bool = Field(
        False,
        description="let a GPU round the factors of float32 products to 10 bits; faster with precision fp32",
    )
    cudnn_benchmark: bool = Field(
        False,
        description="let a GPU try algorithms for each shape of a convolution and keep the fastest; results of "
        "two runs may differ in the last digits",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the encoder: a minute and more at the first step; needs a C++ compiler",
    )
    cache: bool = Field(True, description="reuse pretrained networks whose every cause is equal")


Auto = Field(None, description="milder up to 16 px if absent")
Chance = Annotated[float, Field(ge=0, le=1)]
Shift = Annotated[float, Field(ge=0, le=0.5)]
Strength = Annotated[float, Field(ge=0, le=4)]


class WeakView(Spec):
    """Flip and a crop that is moved by up to `shift` of each side."""

    shift: Shift = 0.125


class Jitter(Spec):
    """Colour jitter, as torchvision's: brightness, contrast and saturation by `jitter`, and hue, with a chance."""

    jitter: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    jitter_p: Chance = 0.8


class StrongView(WeakView, Jitter):
    """Weak, then colour jitter, histogram operations (each with `histogram_p`) and random erasing."""

    histogram_p: Chance = 0.2
    erase_p: Chance = 0.5
    erase_area: Annotated[float, Field(ge=0.02, le=1)] | None = Auto


class RandAugmentView(WeakView):
    """Weak, `count` of 14 operations, each with chance `p`, and Cutout."""

    count: Annotated[int, Field(ge=0, le=14)] = 2
    p: Chance = 0.5
    degrees: Annotated[float, Field(ge=0, le=180)] | None = Auto
    move: Annotated[float, Field(ge=0, le=1)] | None = Auto
    cutout: Chance | None = Auto


class ContrastiveView(Jitter):
    """A crop of at least `least_area`, flip, colour jitter, grey, and blur from 96 px on."""

    least_area: Share | None = Auto
    grayscale_p: Chance = 0.2
    blur_p: Chance = 0.5


class ContrastiveNoiseView(Jitter):
    """A crop of at least `least_area`, colour jitter, Gaussian noise and flip."""

    least_area: Share | None = Auto
    noise: Chance = 0.05


class ColorMatrixView(Spec):
    """Flip, move and zoom to at least `least_area`, and a random colour matrix."""

    least_area: Share | None = Auto
    brightness: Strength = 0.6
    color: Strength = 0.2


class ViewsSpec(Spec):
    """How strong each view is; the defaults are the papers'."""

    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    randaugment: RandAugmentView = RandAugmentView()
    contrastive: ContrastiveView = ContrastiveView()
    contrastive_noise: ContrastiveNoiseView = ContrastiveNoiseView()
    joint_contrastive: ColorMatrixView = ColorMatrixView()
    joint_classification: ColorMatrixView = ColorMatrixView(
        least_area=0.75, brightness=0.3, color=0.1
    )


AS_PUBLISHED = ViewsSpec()


class LossSpec(Spec):
    """How much one named loss term counts: weight x ramp(progress)."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    ramp_up: Fraction = Field(0.0, description="share of the stage until the full weight")


class SupervisedLossSpec(LossSpec):
    """A cross-entropy of labeled images, which may count unbalanced classes alike; of a stage one term at most."""

    balance: Literal["none", "class_weights", "logit_adjustment"] = Field(
        "none",
        description="of the labeled images: class_weights: each class counts as much as each other one; "
        "logit_adjustment: the logits learn what is left beside the classes' shares",
    )


class LossesSpec(Spec):
    """One LossSpec per term; a method's own terms are added as fields by `trial.trial_model`."""

    def items(self) -> list[tuple[str, LossSpec]]:
        return [(name, getattr(self, name)) for name in type(self).model_fields]


class MethodSpec(Spec):
    """Base of the methods' specs; `name` is the file name in tune_ssl/methods."""

    name: str


def _has_a_name(named: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(named, dict) and not isinstance(named.get("name"), str):
        raise ValueError(f"is {named}, but must have a name: {{name: NAME, argument: value}}")
    return named


Named = Annotated[str | dict[str, Any], AfterValidator(_has_a_name)]
"""A sampler or a scheduler: its name, or a mapping of its name and its arguments."""


def _named_first(value: Any) -> Any:
    """`{mlflow: {experiment: mine}}` as `{name: mlflow, experiment: mine}`."""
    if isinstance(value, dict) and len(value) == 1 and "name" not in value:
        ((name, arguments),) = value.items()
        if arguments is None or isinstance(arguments, dict):
            return {"name": name, **(arguments or {})}
    return value


Logger = Annotated[Named, BeforeValidator(_named_first)]


class StudySpec(Spec):
    """How the search runs. Trials are counted per condition, so that budgets are equal."""

    name: Name | None = None
    num_trials: Size = Field(16, description="trials in each condition")
    searcher: Literal["optuna", "random", "grid"] = "optuna"
    sampler: Named = Field(
        "tpe",
        description="of searcher optuna: tpe, gp, cmaes, qmc, or a sampler of Optuna's by its dotted name; "
        "{name: tpe, n_ei_candidates: 48} gives it arguments",
    )
    scheduler: Named = Field(
        "asha",
        description="asha, hyperband, median, percentile, patient, none, or a pruner of Optuna's by its dotted name; "
        "{name: percentile, percentile: 30} gives it arguments",
    )
    grace_period: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="share of a trial's evaluations before it can be stopped; auto: what leaves rungs that pay",
    )
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    start_from: list[str | dict[str, Any]] = Field(
        ["defaults", "winners"],
        description="the first trials of each condition: defaults (the method's own values of the searched keys), a "
        "run (its winners), {key: value}, and winners (of the method's conditions that are decided by then)",
    )
    time_budget: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="minutes for the whole study, counted from the command's start; nothing is begun later",
    )
    metric: str = "val/mean_class_accuracy"
    mode: Literal["max", "min"] = "max"
    tuning_seed: Annotated[int, Field(ge=0)] = Field(
        1000, description="the seed of every search trial; never one of `seeds`"
    )
    finalists: Size = Field(
        4, description="best finished trials that are run again before one is chosen; 1: none"
    )
    finalist_seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [1001, 1002], description="further tuning seeds for the finalists; never among `seeds`"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        list(range(10)), description="fresh seeds on which the chosen config is confirmed"
    )
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    memory_per_trial: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GiB of main memory that a trial reserves"
    )
    max_concurrent: Size | None = None
    max_retries: Annotated[int, Field(ge=0)] = Field(2, description="after a worker's death")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        5.0, description="least time between two checkpoints of a running trial"
    )
    storage: str | None = Field(
        None, description="folder or URL (s3://, gs://) that keeps the runs; --runs if absent"
    )
    loggers: list[Logger] = Field(
        [],
        description="other tools that follow the trials: tensorboard, mlflow, wandb; "
        "{name: wandb, project: mine} gives one arguments",
    )

    @field_validator("gpus_per_trial")
    @classmethod
    def _one_at_most(cls, gpus: float | str) -> float | str:
        if not isinstance(gpus, str) and gpus > 1:
            raise ValueError(f"is {gpus}, but must be at most 1: a trial trains on one GPU")
        return gpus

    @field_validator("finalist_seeds", "seeds")
    @classmethod
    def _fresh(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"is {seeds}, but must have each seed once")
        if info.data.get("tuning_seed") in seeds:
            tuning = info.data["tuning_seed"]
            raise ValueError(f"is {seeds}, but must not have the tuning_seed, {tuning}")
        if info.field_name == "seeds" and (
            both := set(seeds) & set(info.data.get("finalist_seeds", []))
        ):
            raise ValueError(
                f"is {seeds}, but must have none of the finalist_seeds, {sorted(both)}"
            )
        return seeds

    @property
    def tuning_seeds(self) -> list[int]:
        """Every seed on which configs are compared; none of them is a reporting seed."""
        return [self.tuning_seed, *self.finalist_seeds]


def digest(value: Spec | Mapping[str, Any]) -> str:
    """Content hash: 12 hex digits of the SHA-256 of the value's canonical JSON."""
    plain = value.model_dump(mode="json") if isinstance(value, Spec) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
