"""Search domains: a YAML leaf such as `{log_uniform: [1e-4, 1e-1]}` becomes a Domain. Ends are inclusive."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str | None


class Domain(BaseModel):
    """Exactly one kind of domain.

    uniform, log_uniform: [low, high] of floats; int: [low, high] of whole numbers;
    choice: a list of at least one value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    int_: tuple[int, int] | None = Field(None, alias="int")
    choice: tuple[Value, ...] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Domain:
        given = [name for name in ("uniform", "log_uniform", "int_", "choice") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "is not a domain, but must be one of {uniform: [low, high]}, "
                "{log_uniform: [low, high]}, {int: [low, high]}, {choice: [value, ...]}"
            )
        if self.choice:
            if len(set(map(repr, self.choice))) < len(self.choice):
                raise ValueError(f"is {list(self.choice)}, but must name each choice once")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"is [{low:g}, {high:g}], but low must be below high")
        if self.log_uniform and low <= 0:
            raise ValueError(f"is [{low:g}, {high:g}], but a log_uniform domain must start above 0")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        found = self.uniform or self.log_uniform or self.int_
        assert found is not None
        return found

    def ends(self) -> list[Value]:
        """The values that are built into a spec before any training: both ends, or every choice."""
        return list(self.choice) if self.choice else list(self.bounds)

    def suggest(self, trial: optuna.trial.BaseTrial, key: str) -> Value:
        """Ask an Optuna trial for this key's value."""
        if self.choice:
            return trial.suggest_categorical(key, self.choice)
        low, high = self.bounds
        if self.int_:
            return trial.suggest_int(key, int(low), int(high))
        return trial.suggest_float(key, low, high, log=self.log_uniform is not None)

    def grid(self, points: int) -> list[Value]:
        """`points` values from end to end (each choice once); log domains are spaced in the log."""
        if self.choice:
            return list(self.choice)
        low, high = self.bounds
        if self.log_uniform:
            low, high = math.log(low), math.log(high)
        middle = [(low + high) / 2]
        even = [low + (high - low) * i / (points - 1) for i in range(points)] if points > 1 else middle
        if self.int_:
            return list(dict.fromkeys(round(value) for value in even))
        if self.log_uniform:  # exp(log(x)) may leave the domain by one bit
            return [min(max(math.exp(v), self.bounds[0]), self.bounds[1]) for v in even]
        return list(even)


def domain(value: Any) -> Domain:
    """A Domain from a YAML leaf; pydantic's ValidationError names what is wrong."""
    return Domain.model_validate(value)
