"""TrialSpec: all that shapes one training run. `override` is the one way a value gets into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import ceil
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model

from tune_ssl.data.datasets import find_dataset
from tune_ssl.errors import Problem, UserError, shown, unknown
from tune_ssl.grammar import validation_problems
from tune_ssl.methods import find_method, method_names
from tune_ssl.models import check_encoder
from tune_ssl.spec import (
    BudgetSpec,
    ComputeSpec,
    DataSpec,
    LossesSpec,
    LossSpec,
    MethodSpec,
    ModelSpec,
    OptimSpec,
    Spec,
)


class TrialSpec(Spec):
    """One training run, complete. Two equal specs give the same numbers on a CPU."""

    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    method: MethodSpec
    losses: LossesSpec
    optim: OptimSpec = OptimSpec()
    budget: BudgetSpec = BudgetSpec()
    compute: ComputeSpec = ComputeSpec()
    seed: Annotated[int, Field(ge=0, description="initial weights, order, augmentation")] = 0

    @property
    def split_seed(self) -> int:
        return self.seed if self.data.split_seed is None else self.data.split_seed

    def stage_steps(self) -> dict[str, int]:
        """Optimizer steps of each stage, in order."""
        names = [stage.name for stage in find_method(self.method.name).stages(self.method)]
        steps = self.budget.steps
        each = dict.fromkeys(names, steps) if isinstance(steps, int) else steps
        return {name: each[name] for name in names}

    def evaluations(self) -> int:
        """How many times a whole run is evaluated."""
        return sum(ceil(steps / self.budget.eval_every) for steps in self.stage_steps().values())


@cache
def trial_model(method_name: str) -> type[TrialSpec]:
    """TrialSpec narrowed to one method: its own spec, its own loss terms with their defaults."""
    method = find_method(method_name)
    terms: dict[str, Any] = {}
    for term, default in method.losses.items():
        loss = create_model(f"LossSpec[{term}]", __base__=LossSpec, **_defaults(default))
        terms[term] = (loss, loss())
    losses = create_model(f"LossesSpec[{method_name}]", __base__=LossesSpec, **terms)
    fields: dict[str, Any] = {"method": (method.Spec, ...), "losses": (losses, losses())}
    return create_model(f"TrialSpec[{method_name}]", __base__=TrialSpec, **fields)


def build_trial(raw: Mapping[str, Any]) -> TrialSpec:
    """A TrialSpec from nested plain values. UserError with every problem, keys dotted."""
    problems: list[Problem] = []
    model: type[TrialSpec] = TrialSpec
    wrong = _method_problem(raw.get("method"))
    if wrong is None:
        model = trial_model(raw["method"]["name"])
    else:  # everything but the method's own part can be checked all the same
        problems.append(wrong)
        raw = {**raw, "method": {"name": ""}, "losses": {}}
    try:
        spec = model.model_validate(raw)
    except ValidationError as error:
        problems += validation_problems(error, model, raw)
        problems += _check_names(raw)
        raise UserError(problems) from None
    problems += _check_names(spec.model_dump())
    if not problems:
        problems += _check_steps(spec)
    if problems:
        raise UserError(problems)
    return spec


def override(spec: TrialSpec, values: Mapping[str, Any]) -> TrialSpec:
    """`spec` with dotted keys replaced: `{"optim.lr": 0.01}`. UserError names what does not fit."""
    raw = spec.model_dump()
    whole = values.get("method")
    name = whole.get("name") if isinstance(whole, Mapping) else None
    if values.get("method.name", name or spec.method.name) != spec.method.name:
        raw["method"], raw["losses"] = (
            {},
            {},
        )  # another method's options and terms do not carry over
    return build_trial(set_dotted(raw, values))


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
        inner[last] = value
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
    names = [stage.name for stage in find_method(spec.method.name).stages(spec.method)]
    steps = spec.budget.steps
    if isinstance(steps, dict) and set(steps) != set(names):
        wanted = "{" + ", ".join(f"{name}: STEPS" for name in names) + "}"
        text = f"is {shown(steps)}, but must be one number, or {wanted} for the method's stages"
        yield Problem(text, "budget.steps")


def _defaults(loss: LossSpec) -> dict[str, Any]:
    fields = LossSpec.model_fields
    return {
        name: (Annotated[field.annotation, *field.metadata], getattr(loss, name))
        for name, field in fields.items()
    }


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value
