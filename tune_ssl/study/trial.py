"""TrialSpec: all that shapes one training run. `override` is the one way a value gets into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, create_model

from tune_ssl.base.errors import Problem, UserError, shown, unknown
from tune_ssl.base.spec import (
    BudgetSpec,
    ComputeSpec,
    DataSpec,
    LossesSpec,
    MethodSpec,
    ModelSpec,
    OptimSpec,
    Spec,
    ViewsSpec,
)
from tune_ssl.data.datasets import find_dataset
from tune_ssl.methods import find_method, method_names
from tune_ssl.models import TIMM, check_encoder
from tune_ssl.models.weights import pinned
from tune_ssl.study.messages import validation_problems

if TYPE_CHECKING:
    from tune_ssl.methods.base import Method, Stage


RENAMED = {"method.freeze": "model.freeze"}  # keys in the records of older runs


class TrialSpec(Spec):
    """One training run, complete. Two equal specs give the same numbers on a CPU."""

    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    method: MethodSpec
    losses: LossesSpec
    optim: OptimSpec = OptimSpec()
    views: ViewsSpec = ViewsSpec()
    budget: BudgetSpec = BudgetSpec()
    compute: ComputeSpec = ComputeSpec()
    seed: Annotated[int, Field(ge=0, description="initial weights, order, augmentation")] = 0

    @property
    def split_seed(self) -> int:
        return self.seed if self.data.split_seed is None else self.data.split_seed

    def stage_steps(self) -> dict[str, int]:
        """Optimizer steps of each stage, in order; 1 of one that is fitted at once."""
        steps = self.budget.steps
        return {
            stage.name: 1 if stage.fits else steps if isinstance(steps, int) else steps[stage.name]
            for stage in self.stages()
        }

    def stages(self) -> list[Stage[Any]]:
        """The method's stages, in order."""
        return find_method(self.method.name).stages(self.method)

    def comparable(self, other: TrialSpec) -> bool:
        """Whether both train equally many steps in each of equally many stages: only such trials share a search."""
        return [*self.stage_steps().values()] == [*other.stage_steps().values()]

    def stage_evaluations(self) -> list[int]:
        """How many times each stage of a whole run is evaluated, in order."""
        return [ceil(steps / self.budget.eval_every) for steps in self.stage_steps().values()]


def trial_model(method_name: str) -> type[TrialSpec]:
    """TrialSpec narrowed to one method: its own spec, its own loss terms and optimizer parts."""
    return _trial_model(find_method(method_name))  # type: ignore[arg-type]


@cache  # by class, for a plugin's name may come to stand for another one
def _trial_model(method: type[Method[Any]]) -> type[TrialSpec]:
    losses = _with_defaults(f"LossesSpec[{method.name}]", LossesSpec, method.losses)
    optim = _with_defaults(f"OptimSpec[{method.name}]", OptimSpec, method.optim_parts)
    fields: dict[str, Any] = {
        "method": (method.Spec, ...),
        "losses": (losses, losses()),
        "optim": (optim, optim()),
    }
    return create_model(f"TrialSpec[{method.name}]", __base__=TrialSpec, **fields)


def build_trial(raw: Mapping[str, Any], *, saved: bool = False) -> TrialSpec:
    """A TrialSpec from nested plain values, its weights pinned. UserError with every problem, keys dotted.

    `saved` says that it is a saved network's, which has its weights whatever it began with.
    """
    problems: list[Problem] = []
    model: type[TrialSpec] = TrialSpec
    wrong = _method_problem(raw.get("method"))
    if wrong is None:
        model = trial_model(raw["method"]["name"])
        raw = _with_method_defaults(raw, find_method(raw["method"]["name"]).defaults)
    else:  # everything but the method's own part can be checked all the same
        problems.append(wrong)
        raw = {**raw, "method": {"name": ""}, "losses": {}}
        if isinstance(raw.get("optim"), Mapping):
            known = OptimSpec.model_fields
            raw["optim"] = {k: v for k, v in raw["optim"].items() if k in known}
    try:
        spec = model.model_validate(raw)
    except ValidationError as error:
        problems += validation_problems(error, model, raw)
        problems += _check_names(raw)
        raise UserError(problems) from None
    problems += _check_names(spec.model_dump())
    if not problems:
        problems += _check_steps(spec)
        problems += _check_parts(spec)
        problems += _check_encoder(spec, saved)
    if problems:
        raise UserError(problems)
    if spec.model.weights != "none":
        return spec.model_copy(update={"model": pinned(spec.model)})
    return spec


def check_contrast(spec: TrialSpec, pool: int) -> None:
    """UserError if a stage contrasts images, and its steps have fewer than 2 of them or more than the `pool` has."""
    size, mu = spec.data.batch_size, spec.data.mu
    if not any(stage.contrasts for stage in spec.stages()) or 2 <= size * mu <= pool:
        return
    has = f"is {mu}, so that a step has {size * mu} unlabeled image{'s' * (size * mu != 1)} (data.batch_size {size})"
    if size * mu < 2:
        text = f"{has}, but must leave at least 2: each is a negative of the others"
    else:
        way = f"data.mu={pool // size}" if size <= pool else f"data.batch_size={pool} data.mu=1"
        text = f"{has}, but there are {pool}, and each is a negative of the others; {way} does"
    raise UserError(Problem(text, "data.mu"))


def override(spec: TrialSpec, values: Mapping[str, Any]) -> TrialSpec:
    """`spec` with dotted keys replaced: `{"optim.lr": 0.01}`. UserError names what does not fit."""
    raw = spec.model_dump()
    whole = values.get("method")
    name = whole.get("name") if isinstance(whole, Mapping) else None
    if values.get("method.name", name or spec.method.name) != spec.method.name:
        # another method's options, loss terms and optimizer parts do not carry over
        raw["method"], raw["losses"] = {}, {}
        raw["optim"] = {key: raw["optim"][key] for key in OptimSpec.model_fields}
    return build_trial(set_dotted(raw, {RENAMED.get(key, key): v for key, v in values.items()}))


def renewed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a whole spec, those that older versions wrote under another key under today's."""
    method = raw.get("method")
    if not isinstance(method, Mapping) or "freeze" not in method:
        return dict(raw)
    kept = {key: value for key, value in method.items() if key != "freeze"}
    return set_dotted({**raw, "method": kept}, {"model.freeze": method["freeze"]})


def set_dotted(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `raw` in which each dotted key holds its new value."""
    result: dict[str, Any] = _copy(raw)
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = result
        for parent in parents:
            following = inner.get(parent)
            if not isinstance(following, dict):
                following = inner[parent] = {}
            inner = following
        inner[last] = _copy(value)
    return result


def _method_problem(method: Any) -> Problem | None:
    names = method_names()
    if method is None or (isinstance(method, Mapping) and method.get("name") is None):
        return Problem(f"is missing, but must be one of: {', '.join(names)}", "method.name")
    if not isinstance(method, Mapping):
        hint = f"{{name: {method}}}" if method in names else f"{{name: {names[0]}}}"
        return Problem(f"is {shown(method)}, but must be a mapping such as {hint}", "method")
    if method["name"] not in names:
        return Problem(unknown("method", method["name"], names), "method.name")
    return None


def _check_names(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that a schema cannot know: datasets and encoders."""
    checks = (("data", "dataset", find_dataset), ("model", "encoder", check_encoder))
    for section, key, check in checks:
        inner = raw.get(section)
        value = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(value, str):
            try:
                check(value)
            except UserError as error:
                yield from error.problems


def _check_steps(spec: TrialSpec) -> Iterator[Problem]:
    """Each stage needs its steps; a stage that the method's options left out may have some too."""
    names = [stage.name for stage in spec.stages() if not stage.fits]
    every = {stage.name for stage in find_method(spec.method.name).stage_types}
    steps = spec.budget.steps
    if isinstance(steps, dict) and not set(names) <= set(steps) <= every:
        wanted = "{" + ", ".join(f"{name}: STEPS" for name in names) + "}"
        text = f"is {shown(steps)}, but must be one number, or {wanted} for the method's stages"
        yield Problem(text, "budget.steps")


def _check_parts(spec: TrialSpec) -> Iterator[Problem]:
    """A batch goes through in equal parts, and only where no loss compares its images."""
    parts, size = spec.compute.accumulate, spec.data.batch_size
    if parts == 1:
        return
    if size % parts:
        text = f"is {parts}, but must divide data.batch_size, {size}"
        yield Problem(text, "compute.accumulate")
    whole = [stage.name for stage in spec.stages() if not stage.splits_batches]
    if whole:
        which = f"stage {whole[0]!r} of {spec.method.name}"
        text = f"is {parts}, but must be 1: {which} needs all images of a batch at once"
        yield Problem(text, "compute.accumulate")


def _check_encoder(spec: TrialSpec, saved: bool) -> Iterator[Problem]:
    """What no weights train or bring says nothing of an image; and a stem is what our own encoders have."""
    model = spec.model
    random = model.weights == "none" and model.encoder != "pixels" and not saved
    if random and all(s.fits for s in spec.stages()):
        text = (
            f"is {model.encoder} with random weights, which {spec.method.name} does not train: give model.weights, or "
            "model.encoder: pixels"
        )
        yield Problem(text, "model.encoder")
    if model.encoder == "pixels" and model.weights != "none":
        yield Problem(
            f"is {model.weights!r}, but must be none: pixels have no weights", "model.weights"
        )
    name, dot, tag = model.encoder.partition(".")
    if dot and model.encoder.startswith(TIMM) and model.weights == "none":
        text = f"names the weights {tag}, but model.weights is none: pretrained takes them, {name} begins at random"
        yield Problem(text, "model.encoder")
    if model.stem != "auto" and (model.encoder.startswith(TIMM) or model.encoder == "pixels"):
        text = f"is {model.stem!r}, but must be auto: {model.encoder} has no stem to choose"
        yield Problem(text, "model.stem")


def _with_method_defaults(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """`raw` with the method's own defaults where it says nothing."""

    def given(key: str) -> bool:
        section, _, name = key.partition(".")
        return not isinstance(raw.get(section, {}), Mapping) or name in raw.get(section, {})

    return set_dotted(raw, {key: value for key, value in defaults.items() if not given(key)})


def _with_defaults(name: str, base: type[Spec], parts: Mapping[str, Spec]) -> type[Spec]:
    """`base` with a field for each part, whose own values are that field's defaults."""
    fields: dict[str, Any] = {}
    for part, given in parts.items():
        defaults: dict[str, Any] = {
            key: (
                Annotated[field.annotation, Field(description=field.description), *field.metadata],
                getattr(given, key),
            )
            for key, field in type(given).model_fields.items()
        }
        model = create_model(f"{type(given).__name__}[{part}]", __base__=type(given), **defaults)
        fields[part] = (model, model())
    return create_model(name, __base__=base, **fields)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value
