"""`key=value` on the command line: written into a study file's data before it is checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tune_ssl.base.errors import Problem, nearest
from tune_ssl.base.yaml_file import Keys, YamlFile, parse_value
from tune_ssl.study.trial import TrialSpec

SECTIONS = ("fixed", "conditions", "search", "ablate", "compare", "study")


def apply_overrides(file: YamlFile, overrides: Iterable[str]) -> Iterator[Problem]:
    """Write each override into `file`, later ones over earlier ones, and yield what is wrong.

    `null` takes a key out of conditions, search, ablate and study; a trial's key becomes null.
    """
    for text in overrides:
        place = f"override {text}"
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            yield Problem("must have the form key=value", where=place)
            continue
        keys = keys_of(key.strip())
        if unknown := _unknown_section(keys):
            yield Problem(unknown, key.strip(), place)
            continue
        try:
            parsed = parse_value(value)
        except ValueError as error:
            yield Problem(f"has a value that is not YAML: {error}", key.strip(), place)
            continue
        file.override(keys, parsed, place, remove=parsed is None and keys[0] != "fixed")


def keys_of(key: str) -> Keys:
    """Where `key` is in the file: `optim.lr` is short for `fixed.optim.lr`."""
    section, _, rest = key.partition(".")
    if section not in SECTIONS:
        return ("fixed", *key.split("."))
    if not rest:
        return (section,)
    if section in ("conditions", "search"):  # their keys are dotted themselves
        return (section, rest)
    if section == "compare":  # compare.fixmatch.search.optim.lr: an entry, and a key as above
        label, _, inner = rest.partition(".")
        first = inner.partition(".")[0]
        known = first in SECTIONS or first in TrialSpec.model_fields
        return (section, label, *(keys_of(inner) if known else filter(None, inner.split("."))))
    return (section, *rest.split(".", 1 if section == "ablate" else -1))


def _unknown_section(keys: Keys) -> str:
    """A first part that is neither a section of the file nor one of the trial."""
    if keys[0] != "fixed" or len(keys) == 1 or keys[1] in TrialSpec.model_fields:
        return ""
    known = [*TrialSpec.model_fields, *SECTIONS]
    inside = [f"{name}.{keys[1]}" for name in known if keys[1] in _fields(name)]
    hint = f"; did you mean '{inside[0]}'?" if inside else nearest(keys[1], known)
    return f"is not a known key{hint} (known: {', '.join(known)})"


def _fields(section: str) -> Iterable[str]:
    from tune_ssl.study.messages import fields_at

    return fields_at(TrialSpec, (section,))
