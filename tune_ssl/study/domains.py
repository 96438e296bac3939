"""Search domains as a user writes them: a YAML leaf `{log_uniform: [1e-4, 1e-1]}` is checked here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from tune_ssl.base.spec import StudySpec
from tune_ssl.records.domain import Domain, Value, active, conditions, shape

MOST_LISTED = 10_000  # configs of a space that are written out, to be counted


class DomainSpec(BaseModel):
    """Exactly one kind of domain.

    uniform, log_uniform: [low, high] of floats; int, log_int: [low, high] of whole numbers;
    choice: a list of at least one value. uniform and int may have a `step`. `when` maps other searched keys to the
    values with which the key is active.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={"minProperties": 1, "maxProperties": 3},
    )

    uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    log_uniform: Annotated[tuple[float, float], Strict(False)] | None = None
    int_: Annotated[tuple[int, int], Strict(False)] | None = Field(None, alias="int")
    log_int: Annotated[tuple[int, int], Strict(False)] | None = None
    choice: Annotated[tuple[Value, ...], Strict(False)] | None = None
    step: float | None = None
    when: dict[str, Any] | None = None

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
        given = self.model_dump(by_alias=True, exclude_none=True)
        step, when = given.pop("step", None), given.pop("when", None)
        [(kind, values)] = given.items()
        return Domain(kind, tuple(values), step, conditions(when))


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
    return distinct(domains, itertools.product(*axes))


def distinct(
    domains: Mapping[str, Domain], points: Iterable[tuple[Value, ...]]
) -> list[dict[str, Value]]:
    """Points of the domains' product as configs, without their inactive keys, each once."""
    found: dict[str, dict[str, Value]] = {}
    for values in points:
        config = active(domains, dict(zip(domains, values, strict=True)))
        found.setdefault(repr(sorted(config.items(), key=lambda item: item[0])), config)
    return list(found.values())


def every_config(domains: Mapping[str, Domain], most: int) -> list[dict[str, Value]] | None:
    """Every config that there is, if at most `most` combinations of values make them; else None."""
    if math.prod(d.count for d in domains.values()) > most:
        return None
    return distinct(domains, itertools.product(*(d.all() for d in domains.values())))


def trials_of(searcher: str, domains: Mapping[str, Domain], budget: int) -> int:
    """How many trials a search of `budget` has: a grid has its points, no config is tried twice, and over nothing it
    has one.
    """
    if not domains:
        return 1
    if searcher == "grid":
        return len(grid(domains, budget))
    every = every_config(domains, max(MOST_LISTED, budget))
    return budget if every is None else min(budget, len(every))


def repeats_of(settings: StudySpec, domains: Mapping[str, Domain]) -> int:
    """How many trials the finalists of such a search have, at most; none where there is one candidate."""
    trials = trials_of(settings.searcher, domains, settings.num_trials)
    best = min(settings.finalists, trials)
    return best * len(settings.finalist_seeds) if best > 1 else 0
