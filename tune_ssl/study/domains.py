"""Search domains: a YAML leaf `{log_uniform: [1e-4, 1e-1]}` is a Domain. Ends are inclusive."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from tune_ssl.base.errors import nearest, shown

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str | None

KINDS = ("uniform", "log_uniform", "int", "choice")
FORMS = (
    "{uniform: [low, high]}, {log_uniform: [low, high]}, {int: [low, high]} "
    "or {choice: [value, ...]}"
)


class Domain(BaseModel):
    """Exactly one kind of domain.

    uniform, log_uniform: [low, high] of floats; int: [low, high] of whole numbers;
    choice: a list of at least one value.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"minProperties": 1, "maxProperties": 1},
    )

    uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    log_uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    int_: Annotated[tuple[int, int], Strict(False)] | None = Field(None, alias="int")
    choice: Annotated[tuple[Value, ...], Strict(False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _shape(cls, leaf: Any) -> Any:
        if not isinstance(leaf, dict) or len(leaf) != 1:
            raise ValueError(f"is {shown(leaf)}, but must be a domain: {FORMS}")
        [(kind, values)] = leaf.items()
        if kind not in KINDS:
            hint = nearest(kind, KINDS)
            raise ValueError(f"is {shown(leaf)}, but must be a domain{hint} ({FORMS})")
        if kind == "choice":
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f"is {shown(leaf)}, but must list at least one value")
            if len(set(map(repr, values))) < len(values):
                raise ValueError(f"is {shown(leaf)}, but must name each choice once")
        elif not isinstance(values, (list, tuple)) or len(values) != 2:
            raise ValueError(f"is {shown(leaf)}, but must be {{{kind}: [low, high]}}")
        return leaf

    @model_validator(mode="after")
    def _order(self) -> Domain:
        if self.choice is not None:
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"is {self}, but low must be below high")
        if self.log_uniform is not None and low <= 0:
            raise ValueError(f"is {self}, but must start above 0")
        return self

    def __str__(self) -> str:
        return shown(self.model_dump(by_alias=True, exclude_none=True))

    @property
    def bounds(self) -> tuple[float, float]:
        found = self.uniform or self.log_uniform or self.int_
        assert found is not None
        return found

    def ends(self) -> list[Value]:
        """The values that are built into a spec before any training: both ends, or every choice."""
        return list(self.choice) if self.choice is not None else list(self.bounds)

    def suggest(self, trial: optuna.trial.BaseTrial, key: str) -> Value:
        """Ask an Optuna trial for this key's value."""
        if self.choice is not None:
            return trial.suggest_categorical(key, self.choice)
        low, high = self.bounds
        if self.int_ is not None:
            return trial.suggest_int(key, int(low), int(high))
        return trial.suggest_float(key, low, high, log=self.log_uniform is not None)

    def points(self, wanted: int) -> int:
        """How many values `grid(wanted)` has: every choice; of whole numbers no more than exist."""
        if self.choice is not None:
            return len(self.choice)
        return min(wanted, int(self.bounds[1] - self.bounds[0]) + 1) if self.int_ else wanted

    def grid(self, wanted: int) -> list[Value]:
        """Both ends exactly, and even steps between (in the log for log_uniform); every choice."""
        if self.choice is not None:
            return list(self.choice)
        low, high = self.bounds
        steps = self.points(wanted) - 1
        if self.log_uniform is not None:
            log, width = math.log(low), math.log(high) - math.log(low)
            inner = [math.exp(log + width * i / steps) for i in range(1, steps)]
        else:
            inner = [low + (high - low) * i / steps for i in range(1, steps)]
        if self.int_ is not None:
            inner = [round(value) for value in inner]
        return [low, *inner, high]


def domain(leaf: Any) -> Domain:
    """A Domain from a YAML leaf; pydantic's ValidationError names what is wrong."""
    return Domain.model_validate(leaf)


def grid(domains: Mapping[str, Domain], budget: int) -> list[dict[str, Value]]:
    """A grid of at most `budget` points: all choices, and as many even steps of ranges as fit.

    ValueError when two points per range (and every choice) are more than `budget`.
    """

    def size(points: int) -> int:
        return math.prod(d.points(points) for d in domains.values())

    if size(2) > budget:
        raise ValueError(
            f"is {budget}, but the smallest grid over the domains has {size(2)} points"
        )
    points = 2
    while size(points) < size(points + 1) <= budget:
        points += 1
    axes = [d.grid(points) for d in domains.values()]
    return [dict(zip(domains, values, strict=True)) for values in itertools.product(*axes)]


def trials_of(searcher: str, domains: Mapping[str, Domain], budget: int) -> int:
    """How many trials a search of `budget` has: a grid has its points, which may be fewer."""
    return len(grid(domains, budget)) if searcher == "grid" else budget
