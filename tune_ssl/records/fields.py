"""What the fields of a run's records may be: what was changed or damaged is named, and not taken for a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LARGEST = 1e39  # beyond every float32: no loss and no metric is that large
LONGEST = 80  # characters of a value in a message
DEEPEST = 50  # lists and mappings within each other
# A trial's name is the name of a folder too.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,249}")


class Kind(NamedTuple):
    """What a field must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> Kind:
        return Kind(f"{self.words} or null", lambda value: value is None or self.fits(value))


class Shape(NamedTuple):
    """The fields that a record must have, and those that must be of a kind where it has them."""

    needed: Mapping[str, Kind]
    optional: Mapping[str, Kind]

    def problem(self, record: Mapping[str, Any]) -> str:
        """What is wrong with a record, as a sentence that its place begins; empty if nothing is."""
        for key, kind in self.needed.items():
            if key not in record:
                return f"has a record without {key!r}"
            if not kind.fits(record[key]):
                return _wrong(key, record[key], kind)
        for key, kind in self.optional.items():
            if key in record and not kind.fits(record[key]):
                return _wrong(key, record[key], kind)
        return ""


def _wrong(key: str, value: Any, kind: Kind) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."
    return f"`{key}` is {shown}, but must be {kind.words}"


def is_number(value: Any) -> bool:
    """A finite one that a measurement can be; nan fits no comparison."""
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _is_values(value: Any, depth: int = 4) -> bool:
    """A number, one that is not finite too, null, or lists of such."""
    if isinstance(value, list):
        return depth > 0 and all(_is_values(item, depth - 1) for item in value)
    return value is None or (type(value) in (int, float) and not abs(value) >= LARGEST)


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_values(item) for item in value.values())


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """What a config may hold: scalars, and lists and mappings of them."""
    if isinstance(value, dict):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (str, bool)) or is_number(value)


TEXT = Kind("a text", lambda value: isinstance(value, str))
FILE_NAME = Kind(
    "letters, digits, '.', '_', '+' and '-' with a letter or digit first",
    lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None,
)
NUMBER = Kind("a finite number", is_number)
AMOUNT = Kind("a number of at least 0", lambda value: is_number(value) and value >= 0)
WHOLE = Kind(
    "a whole number of at least 0", lambda value: type(value) is int and 0 <= value < 1 << 63
)
CONFIG = Kind("a mapping of keys to values", lambda v: isinstance(v, dict) and is_plain(v))
TEXTS = Kind(
    "a list of texts", lambda v: isinstance(v, list) and all(isinstance(t, str) for t in v)
)
METRICS = Kind(
    "a mapping of metrics to numbers, lists of them, or null",
    _are_metrics,
)


def one_of(names: tuple[str, ...]) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)
