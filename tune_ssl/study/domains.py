"""Search domains as a user writes them: a YAML leaf `{log_uniform: [1e-4, 1e-1]}` is checked here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from tune_ssl.base.spec import StudySpec
from tune_ssl.records.domain import Domain, Value, shape


class DomainSpec(BaseModel):
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
        shape(leaf)
        return leaf

    @model_validator(mode="after")
    def _order(self) -> DomainSpec:
        self.domain()
        return self

    def domain(self) -> Domain:
        [(kind, values)] = self.model_dump(by_alias=True, exclude_none=True).items()
        return Domain(kind, tuple(values))


def domain(leaf: Any) -> Domain:
    """A Domain from a YAML leaf; pydantic's ValidationError names what is wrong."""
    return DomainSpec.model_validate(leaf).domain()


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
    """How many trials a search of `budget` has: a grid has its points, which may be fewer; over nothing it has one."""
    if not domains:
        return 1
    return len(grid(domains, budget)) if searcher == "grid" else budget


def repeats_of(settings: StudySpec, domains: Mapping[str, Domain]) -> int:
    """How many trials the finalists of such a search have, at most; none where there is one candidate."""
    trials = trials_of(settings.searcher, domains, settings.num_trials)
    best = min(settings.finalists, trials)
    return best * len(settings.finalist_seeds) if best > 1 else 0
