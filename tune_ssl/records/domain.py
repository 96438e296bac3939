"""What a leaf of a study's `search` means: `{log_uniform: [1e-4, 1e-1]}`. Ends are inclusive.

A range may have a `step` (`{uniform: [0, 1], step: 0.1}`), and any domain a `when`: `{uniform: [0, 1], when:
{optim.name: sgd}}` is of a key that a config has only where the other searched keys have those values.

The search draws from a domain, a grid walks over it, and the report's axes and shares are laid over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from tune_ssl.base.errors import nearest, shown
from tune_ssl.records.fields import is_number

Value = bool | int | float | str | None

UNIFORM, LOG_UNIFORM, INT, LOG_INT, CHOICE = KINDS = (
    *("uniform", "log_uniform", "int", "log_int"),
    "choice",
)
STEP, WHEN = MORE = ("step", "when")
FORMS = (
    "{uniform: [low, high]}, {log_uniform: [low, high]}, {int: [low, high]}, {log_int: [low, high]} "
    "or {choice: [value, ...]}"
)
When = tuple[tuple[str, tuple[Value, ...]], ...]


@dataclass(frozen=True)
class Domain:
    """The values that a key may take: [low, high] of a range, or every choice.

    `step` leaves only low, low + step, ... of a range. `when` names other searched keys and the values of them with
    which this one is active; a config has no inactive key.

    ValueError, as a sentence that the key begins, for a range that has nothing in it, or a step that does not fit it.
    """

    kind: str
    values: tuple[Value, ...]
    step: float | None = None
    when: When = ()

    def __post_init__(self) -> None:
        if not self.choices and self.low >= self.high:
            raise ValueError(f"is {self}, but low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"is {self}, but must start above 0")
        if self.step is None:
            return
        if self.log or self.choices:
            raise ValueError(f"is {self}, but only uniform and int have a step")
        steps = (self.high - self.low) / self.step if self.step > 0 else 0.5
        if steps < 1 or abs(steps - round(steps)) > 1e-6 or (self.whole and self.step % 1):
            raise ValueError(
                f"is {self}, but its step must go into high - low a whole number of times"
            )

    @classmethod
    def of(cls, leaf: Any) -> Domain:
        """The domain that a leaf says. ValueError, as a sentence that the key begins, if it says none."""
        kind, values = shape(leaf)
        if kind != CHOICE and not all(map(is_number, values)):
            raise ValueError(f"is {shown(leaf)}, but must have two numbers")
        return Domain(kind, tuple(values), leaf.get(STEP), conditions(leaf.get(WHEN)))

    def leaf(self) -> dict[str, Any]:
        """What a study file says of it."""
        leaf: dict[str, Any] = {self.kind: list(self.values)}
        if self.step is not None:
            leaf[STEP] = self.step
        if self.when:
            leaf[WHEN] = {key: list(wanted) for key, wanted in self.when}
        return leaf

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
        return self.kind in (LOG_UNIFORM, LOG_INT)

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are in it."""
        return self.kind in (INT, LOG_INT)

    @property
    def count(self) -> float:
        """How many values it has; inf of a range without steps."""
        if self.choices:
            return len(self.choices)
        return round((self.high - self.low) / self.stride) + 1 if self.stride else math.inf

    @property
    def stride(self) -> float:
        """From one value of a range to the next; 0 where any number between its ends is in it."""
        return self.step or (1 if self.whole else 0)

    def active_in(self, config: Mapping[str, Any]) -> bool:
        """Whether a key of this domain is active where the others have the config's values."""
        return all(key in config and config[key] in values for key, values in self.when)

    def __contains__(self, value: Value) -> bool:
        if self.choices:
            return any(type(choice) is type(value) and choice == value for choice in self.choices)
        if not is_number(value) or not self.low <= cast(float, value) <= self.high:
            return False
        return abs(self.nearest(cast(float, value)) - cast(float, value)) < 1e-6 * (
            self.stride or 1
        )

    def nearest(self, value: float) -> float:
        """Of a range, the value in it that is nearest to a number."""
        inside = min(max(value, self.low), self.high)
        if self.stride:
            steps = round((inside - self.low) / self.stride)
            inside = min(self.low + steps * self.stride, self.high)
        return int(inside) if self.whole else float(inside)

    def all(self) -> list[Value]:
        """Every value of a domain whose `count` is finite, in order."""
        if self.choices:
            return list(self.choices)
        return [self.nearest(self.low + i * self.stride) for i in range(int(self.count))]

    def ends(self) -> list[Value]:
        """The values that are built into a spec before any training: both ends, or every choice."""
        return list(self.values)

    def points(self, wanted: int) -> int:
        """How many values `grid(wanted)` has: every choice; of whole numbers no more than exist."""
        return len(self.choices) if self.choices else int(min(wanted, self.count))

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
        if self.stride:
            inner = [self.nearest(value) for value in inner]
        return list(dict.fromkeys([low, *inner, high]))


def active(domains: Mapping[str, Domain], config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config's values, one for each domain, counts: without keys whose `when` does not hold."""
    kept: dict[str, Any] = {}
    for key in in_order(domains):
        if key in config and domains[key].active_in(kept):
            kept[key] = config[key]
    return {key: value for key, value in config.items() if key in kept or key not in domains}


def idle_key(domain: Domain, config: Mapping[str, Any]) -> str | None:
    """A key of the config with whose value a key of this domain is not active, if there is one."""
    return next((key for key, of in domain.when if key in config and config[key] not in of), None)


def in_order(domains: Mapping[str, Domain]) -> list[str]:
    """The keys, each after those that its `when` names. ValueError where two wait for each other."""
    order: list[str] = []
    left = list(domains)
    while left:
        free = [key for key in left if not {w for w, _ in domains[key].when} & set(left)]
        if not free:
            raise ValueError(f"has keys that are active only with each other: {', '.join(left)}")
        order += free
        left = [key for key in left if key not in free]
    return order


def alone(domains: Mapping[str, Domain], keys: Iterable[str]) -> dict[str, Domain]:
    """The domains of some keys, where all others have values already: with these the keys are active."""
    chosen = list(keys)
    return {
        key: replace(domains[key], when=tuple(w for w in domains[key].when if w[0] in chosen))
        for key in chosen
    }


def conditions(when: Any) -> When:
    """The `when` of a leaf: one value or a list of values for each key. ValueError as `shape`."""
    if when is None:
        return ()
    if not isinstance(when, Mapping) or not when:
        raise ValueError(
            f"has when {shown(when)}, but must map searched keys to values, as {{optim.name: sgd}}"
        )
    found = tuple(
        (str(key), tuple(value) if isinstance(value, (list, tuple)) else (value,))
        for key, value in when.items()
    )
    if empty := [key for key, values in found if not values]:
        raise ValueError(f"has when {shown(when)}, but must name at least one value of {empty[0]}")
    return found


def shape(leaf: Any) -> tuple[str, list[Any]]:
    """A leaf's kind and its values, of the right number. ValueError, as a sentence that the key begins."""
    own = (
        {key: value for key, value in leaf.items() if key not in MORE}
        if isinstance(leaf, dict)
        else {}
    )
    if len(own) != 1:
        raise ValueError(f"is {shown(leaf)}, but must be a domain: {FORMS}")
    [(kind, values)] = own.items()
    if STEP in leaf and not is_number(leaf[STEP]):
        raise ValueError(f"has step {shown(leaf[STEP])}, but must have a number")
    conditions(leaf.get(WHEN))
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
