"""What a leaf of a study's `search` means: `{log_uniform: [1e-4, 1e-1]}`. Ends are inclusive.

The search draws from a domain, a grid walks over it, and the report's axes and shares are laid over it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from tune_ssl.base.errors import nearest, shown
from tune_ssl.records.fields import is_number

Value = bool | int | float | str | None

UNIFORM, LOG_UNIFORM, INT, CHOICE = KINDS = ("uniform", "log_uniform", "int", "choice")
FORMS = (
    "{uniform: [low, high]}, {log_uniform: [low, high]}, {int: [low, high]} "
    "or {choice: [value, ...]}"
)


@dataclass(frozen=True)
class Domain:
    """The values that a key may take: [low, high] of a range, or every choice.

    ValueError, as a sentence that the key begins, for a range that has nothing in it.
    """

    kind: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.choices and self.low >= self.high:
            raise ValueError(f"is {self}, but low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"is {self}, but must start above 0")

    @classmethod
    def of(cls, leaf: Any) -> Domain:
        """The domain that a leaf says. ValueError, as a sentence that the key begins, if it says none."""
        kind, values = shape(leaf)
        if kind != CHOICE and not all(map(is_number, values)):
            raise ValueError(f"is {shown(leaf)}, but must have two numbers")
        return Domain(kind, tuple(values))

    def leaf(self) -> dict[str, list[Value]]:
        """What a study file says of it."""
        return {self.kind: list(self.values)}

    def __str__(self) -> str:
        return shown(self.leaf())

    @property
    def choices(self) -> tuple[Value, ...]:
        """Every choice; none of a range."""
        return self.values if self.kind == CHOICE else ()

    @property
    def low(self) -> float:
        """The lower end; of choices the first place, as they stand at 0, 1, ... in the file's order."""
        return 0 if self.choices else cast(float, self.values[0])

    @property
    def high(self) -> float:
        """The upper end; of choices the last place."""
        return len(self.values) - 1 if self.choices else cast(float, self.values[1])

    @property
    def log(self) -> bool:
        """Whether equal factors count alike, and not equal distances."""
        return self.kind == LOG_UNIFORM

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are in it."""
        return self.kind == INT

    def ends(self) -> list[Value]:
        """The values that are built into a spec before any training: both ends, or every choice."""
        return list(self.values)

    def points(self, wanted: int) -> int:
        """How many values `grid(wanted)` has: every choice; of whole numbers no more than exist."""
        if self.choices:
            return len(self.choices)
        return min(wanted, int(self.high - self.low) + 1) if self.whole else wanted

    def grid(self, wanted: int) -> list[Value]:
        """Both ends exactly, and even steps between (in the log for log_uniform); every choice."""
        if self.choices:
            return list(self.choices)
        low, high = self.low, self.high
        steps = self.points(wanted) - 1
        if self.log:
            log, width = math.log(low), math.log(high) - math.log(low)
            inner = [math.exp(log + width * i / steps) for i in range(1, steps)]
        else:
            inner = [low + (high - low) * i / steps for i in range(1, steps)]
        if self.whole:
            inner = [round(value) for value in inner]
        return [low, *inner, high]


def shape(leaf: Any) -> tuple[str, list[Any]]:
    """A leaf's kind and its values, of the right number. ValueError, as a sentence that the key begins."""
    if not isinstance(leaf, dict) or len(leaf) != 1:
        raise ValueError(f"is {shown(leaf)}, but must be a domain: {FORMS}")
    [(kind, values)] = leaf.items()
    if kind not in KINDS:
        raise ValueError(f"is {shown(leaf)}, but must be a domain{nearest(kind, KINDS)} ({FORMS})")
    listed = isinstance(values, (list, tuple))
    if kind == CHOICE:
        if not listed or not values:
            raise ValueError(f"is {shown(leaf)}, but must list at least one value")
        if len(set(map(repr, values))) < len(values):
            raise ValueError(f"is {shown(leaf)}, but must name each choice once")
    elif not listed or len(values) != 2:
        raise ValueError(f"is {shown(leaf)}, but must be {{{kind}: [low, high]}}")
    return kind, list(values)
