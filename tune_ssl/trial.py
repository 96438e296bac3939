"""TrialSpec: all that shapes one training run. `override` is the one way a value gets into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import ceil
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model

from tune_ssl.data.datasets import find_dataset
from tune_ssl.errors import Problem, UserError, nearest, unknown
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
        return dict.fromkeys(names, steps) if isinstance(steps, int) else {n: steps[n] for n in names}


    def evaluations(self) -> int:
        """How many times a whole run is evaluated."""
        return sum(ceil(steps / self.budget.eval_every) for steps in self.stage_steps().values())


@cache
def trial_model(method_name: str) -> type[TrialSpec]:
    """TrialSpec narrowed to one method: its own spec, and its own loss terms with their defaults."""
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
    method = raw.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if not isinstance(name, str) or name not in method_names():
        text = unknown("method", name, method_names()) if name is not None else (
            f"is missing, but must be one of: {', '.join(method_names())}"
        )
        problems.append(Problem(text, "method.name"))
        model: type[TrialSpec] = TrialSpec
        raw = {key: value for key, value in raw.items() if key not in ("method", "losses")}
        raw |= {"method": {"name": "unknown"}, "losses": {}}
    else:
        model = trial_model(name)
    try:
        spec = model.model_validate(raw)
    except ValidationError as error:
        problems += validation_problems(error, model)
        spec = None
    problems += list(_check_names(raw if spec is None else spec.model_dump(mode="python")))
    if spec is not None and not problems:
        problems += list(_check_steps(spec))
    if problems:
        raise UserError(problems)
    assert spec is not None
    return spec


def override(spec: TrialSpec, values: Mapping[str, Any]) -> TrialSpec:
    """`spec` with dotted keys replaced: `{"optim.lr": 0.01}`. UserError names what does not fit."""
    raw = spec.model_dump(mode="python", exclude_unset=False)
    name = values.get("method.name", spec.method.name)
    if name != spec.method.name:  # another method's options and terms do not carry over
        raw["method"], raw["losses"] = {}, {}
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


def validation_problems(error: ValidationError, model: type[Spec]) -> list[Problem]:
    """Pydantic's errors in our grammar: the dotted key, its value, what is allowed, the nearest name."""
    return list({str(p): p for p in (_problem(item, model) for item in error.errors())}.values())


def _problem(item: Any, model: type[Spec]) -> Problem:
    path = [str(part) for part in item["loc"] if not _is_tag(part)]
    key, message, value = ".".join(path), item["msg"], item["input"]
    if item["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, path[:-1]))
        return Problem(
            f"is not a known key{nearest(path[-1], known)} (known: {', '.join(known)})", key
        )
    if item["type"] == "missing":
        return Problem("is missing, but must be given", key)
    if item["type"] == "value_error":
        return Problem(message.removeprefix("Value error, "), key)
    allowed = message.replace("Input should be", "must be").replace("should", "must")
    allowed = allowed[0].lower() + allowed[1:]
    hint = ""
    if item["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, item["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    return Problem(f"is {value!r}, but {allowed}{hint}", key)


def _is_tag(part: Any) -> bool:
    """Pydantic puts the name of a union's branch into the path; a user never wrote it."""
    branches = ("constrained-int", "constrained-float", "int", "float", "bool", "dict[", "literal[")
    return isinstance(part, str) and (part in branches or part.startswith(branches[-2:]))


def _fields_at(model: type[Spec], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return []
        if not issubclass(field.annotation, Spec):
            return []
        model = field.annotation
    return list(model.model_fields)


def _check_names(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that a schema cannot know: datasets and encoders."""
    for section, key, check in (("data", "dataset", find_dataset), ("model", "encoder", check_encoder)):
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
        text = f"has stages {sorted(steps)}, but must have exactly {names}, or be one number"
        yield Problem(text, "budget.steps")


def _defaults(loss: LossSpec) -> dict[str, Any]:
    fields = LossSpec.model_fields
    return {
        name: (Annotated[field.annotation, *field.metadata], getattr(loss, name))
        for name, field in fields.items()
    }


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value
