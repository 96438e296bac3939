"""Configs that a search begins with: the method's own, those of earlier runs, and those that the study writes down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tune_ssl.base.spec import StudySpec
from tune_ssl.records.domain import Domain, idle_key
from tune_ssl.records.fields import is_number
from tune_ssl.study.study import ABOUT, FROM, OF, Condition
from tune_ssl.study.trial import TrialSpec

DEFAULTS, WINNERS = WORDS = ("defaults", "winners")
WRITTEN = "start_from"  # the source of a config that the study writes down


class Given(NamedTuple):
    """A config that was known beforehand, perhaps of some searched keys only, and where it comes from."""

    source: str
    config: Mapping[str, Any]


def from_start(settings: StudySpec, condition: Condition) -> list[Given]:
    """What `study.start_from` says for a condition, in order; runs are written down as their configs by now."""
    found = []
    for entry in settings.start_from:
        if entry == DEFAULTS:
            found.append(Given(DEFAULTS, defaults_of(condition.spec, condition.search)))
        elif isinstance(entry, dict):
            config = {key: value for key, value in entry.items() if key not in ABOUT}
            of = entry.get(OF, condition.method)
            if of == condition.method and set(config) <= set(condition.search):
                found.append(Given(str(entry.get(FROM, WRITTEN)), config))
    return found


def defaults_of(spec: TrialSpec, domains: Mapping[str, Domain]) -> dict[str, Any]:
    """The searched keys' values in a spec in which none of them is searched; without those that are None."""
    nested = spec.model_dump()
    found = {key: _value(nested, key) for key in domains}
    return {key: v for key, v in found.items() if v is not None or None in domains[key].choices}


def _value(nested: Mapping[str, Any], key: str) -> Any:
    parts, at = key.split("."), nested
    for part in parts:
        at = at.get(part) if isinstance(at, Mapping) else None  # type: ignore[assignment]
    if at is None and parts[0] == "optim" and len(parts) > 2:  # a part of it: as the whole
        return nested["optim"].get(parts[-1])
    return at


def fitted(domains: Mapping[str, Domain], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config inside the domains: numbers at their nearest values, without what is no choice or not active."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        domain = domains[key]
        if domain.choices:
            same = [
                c
                for c in domain.choices
                if c == value and isinstance(c, bool) == isinstance(value, bool)
            ]
            found.update({key: same[0]} if same else {})
        elif is_number(value):
            found[key] = domain.nearest(value)
    return {key: value for key, value in found.items() if idle_key(domains[key], found) is None}
