"""Configs that a search begins with: the method's own, those of earlier runs, and those that the study writes down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tune_ssl.base.spec import StudySpec
from tune_ssl.records.domain import Domain, active
from tune_ssl.study.study import ABOUT, FROM, OF, Condition
from tune_ssl.study.trial import TrialSpec

DEFAULTS = "defaults"
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
    """The config inside the domains: a number goes to the nearest value, and a choice that is none is left out."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        domain = domains[key]
        if domain.choices:
            if value in domain:
                found[key] = value
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[key] = _nearest(domain, value)
    return active(domains, found) if set(found) == set(domains) else found


def _nearest(domain: Domain, value: float) -> float:
    inside = min(max(value, domain.low), domain.high)
    step = domain.step or (1 if domain.whole else 0)
    if step:
        inside = domain.low + round((inside - domain.low) / step) * step
    return int(inside) if domain.whole else float(inside)
