"""The section `compare:` of a study file: several methods in one run, on the same data, labels, splits and budget.

    fixed: {data: {dataset: digits}, budget: {steps: 600}}   # of every method
    conditions: {data.num_labels: [20, 50]}
    compare:                                                 # one entry for each method
      supervised:                                            # searched as the method itself proposes
      fixmatch: {search: {optim.lr: {log_uniform: [1e-3, 1e-2]}}, fixed: {method: {threshold: 0.9}}}
      frozen: {fixed: {method: {name: supervised}, model: {freeze: all}}}

Each entry becomes a study of its own with the shared parts below it. An entry's name is its method's, unless its
`fixed` says otherwise. What is under the file's `search` is searched for every method that is trained in steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tune_ssl.base.errors import Problem, UserError, nearest, shown
from tune_ssl.base.spec import BudgetSpec, ModelSpec
from tune_ssl.base.yaml_file import Keys, YamlFile
from tune_ssl.methods import find_method
from tune_ssl.methods.base import Method

SECTION = "compare"
PARTS = ("fixed", "search", "ablate")
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,59}")
OWN_DATA = ("batch_size", "mu")  # of an entry's own `data`: the rest decides what is compared
FEWEST = 2


class EntryFile(YamlFile):
    """One entry's view of a comparison's file: its data, and the lines that they come from."""

    def __init__(self, file: YamlFile, label: str, data: dict[str, Any]) -> None:
        super().__init__(file.path, data)
        self.file, self.label = file, label

    def where(self, keys: Keys) -> str:
        own = (SECTION, self.label, *keys)
        written = (*self.file.lines, *self.file.overrides)
        if any(own[:end] in written for end in range(len(own), 3, -1)) or not self.file.lines:
            return self.file.where(own)
        if keys[:2] == ("fixed", "method"):  # the entry's name names it
            return self.file.where((SECTION, self.label))
        return self.file.where(keys)


def entries(file: YamlFile, problems: list[Problem]) -> dict[str, EntryFile]:
    """Each entry's study file, by its name; what is wrong with the section itself goes into `problems`."""
    section = file.data[SECTION]
    if not isinstance(section, Mapping) or len(section) < FEWEST:
        text = f"is {shown(section)}, but must name at least {FEWEST} methods"
        problems.append(Problem(text, SECTION, file.where((SECTION,))))
        return {}
    shared = file.data.get("fixed") or {}
    if isinstance(shared, Mapping) and "method" in shared:
        text = f"must not stand beside {SECTION}, whose entries name the methods"
        problems.append(Problem(text, "method", file.where(("fixed", "method"))))
    found = {}
    for label, entry in section.items():
        wrong = list(_wrong(str(label), entry, file))
        problems += wrong
        if not wrong:
            found[str(label)] = EntryFile(file, str(label), _data(str(label), entry or {}, file))
    return found


def _wrong(label: str, entry: Any, file: YamlFile) -> Iterator[Problem]:
    place, key = (SECTION, label), f"{SECTION}.{label}"
    if not LABEL.fullmatch(label):
        text = "must be named with letters, digits, '.', '_' and '-', up to 60, a letter first"
        yield Problem(text, key, file.where(place))
    if entry is None:
        return
    if not isinstance(entry, Mapping):
        text = f"is {shown(entry)}, but must be a mapping of {', '.join(PARTS)}, or empty"
        yield Problem(text, key, file.where(place))
        return
    for part, value in entry.items():
        if part not in PARTS:
            text = f"is not a known key{nearest(part, PARTS)} (known: {', '.join(PARTS)})"
            yield Problem(text, f"{key}.{part}", file.where((*place, str(part))))
        elif value is not None and not isinstance(value, Mapping):
            text = f"is {shown(value)}, but must be a mapping"
            yield Problem(text, f"{key}.{part}", file.where((*place, str(part))))


def _data(label: str, entry: Mapping[str, Any], file: YamlFile) -> dict[str, Any]:
    """The entry's study as plain values: the shared parts with its own over them."""
    shared = {key: value for key, value in file.data.items() if key != SECTION}
    fixed = _merged(shared.get("fixed") or {}, entry.get("fixed") or {})
    method = fixed.setdefault("method", {})
    if isinstance(method, dict):
        method.setdefault("name", label)
    kind = _method(method)
    own: Mapping[str, Any] = kind.searched if kind is not None and "search" not in entry else {}
    search = dict(entry.get("search") or own)
    if kind is not None and all(stage.fits for stage in kind.stage_types):
        _read_pixels(fixed, entry)
    elif isinstance(shared.get("search"), Mapping):
        search = {**search, **shared["search"]}
    if kind is not None:
        _share_steps(fixed, entry, kind)
    ablate = {**(shared.get("ablate") or {}), **(entry.get("ablate") or {})}
    return {**shared, "fixed": fixed, "search": search, "ablate": ablate}


def _read_pixels(fixed: dict[str, Any], entry: Mapping[str, Any]) -> None:
    """A classical method has the others' encoder where that comes with weights, and else the images themselves."""
    model = fixed.get("model")
    own = (entry.get("fixed") or {}).get("model") or {}
    if not isinstance(model, dict) or "encoder" in own:
        return
    if model.get("weights", "none") == "none":
        fixed["model"] = {**model, "encoder": "pixels", "stem": "auto"}
    else:
        fixed["model"] = {"encoder": ModelSpec().encoder, **model}


def _share_steps(fixed: dict[str, Any], entry: Mapping[str, Any], kind: type[Method[Any]]) -> None:
    """Steps in all, where stages follow one another: two thirds for the first, one for what comes after."""
    own = (entry.get("fixed") or {}).get("budget") or {}
    budget = fixed.get("budget") or {}
    if not isinstance(budget, dict):
        return
    steps = budget.get("steps", BudgetSpec().steps)
    names = [stage.name for stage in kind.stage_types]
    if len(names) < 2 or not isinstance(steps, int) or "steps" in own or steps < len(names):
        return
    rest = steps // 3
    each = {names[0]: steps - rest, **dict.fromkeys(names[1:], rest)}
    fixed["budget"] = {**budget, "steps": each}


def _method(method: Any) -> type[Method[Any]] | None:
    try:
        return find_method(method["name"])
    except (UserError, KeyError, TypeError):  # the entry's own check says so
        return None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` over its own, mapping by mapping; a copy."""
    result = {
        key: _merged(value, {}) if isinstance(value, Mapping) else value
        for key, value in below.items()
    }
    for key, value in above.items():
        inner = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _merged(inner if isinstance(inner, dict) else {}, value)
        else:
            result[key] = value
    return result
