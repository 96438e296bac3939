"""A study: a YAML file, checked whole. What is fixed, compared within, searched, ablated, and how it is run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_ssl.errors import Problem, UserError, nearest
from tune_ssl.methods import method_names
from tune_ssl.space import Domain, domain
from tune_ssl.spec import StudySpec
from tune_ssl.trial import TrialSpec, build_trial, override, validation_problems
from tune_ssl.yamlfile import YamlFile, parse_value, read_yaml

SECTIONS = ("fixed", "conditions", "search", "ablate", "study")


@dataclass(frozen=True)
class Condition:
    """One cell in which results are compared: never searched over. `spec` is the fixed part in it."""

    id: str
    values: dict[str, Any]
    spec: TrialSpec


@dataclass(frozen=True)
class Study:
    """A checked study. Every condition, and both ends of every domain, build a sound TrialSpec."""

    file: YamlFile
    name: str
    fixed: TrialSpec
    axes: dict[str, list[Any]]
    search: dict[str, Domain]
    ablate: dict[str, dict[str, Any]]
    settings: StudySpec

    @property
    def source(self) -> Path:
        return self.file.path

    def where(self, key: str) -> str:
        """file:line of a trial's dotted key: where it is a condition, searched, or fixed."""
        for section, keys in (("conditions", self.axes), ("search", self.search)):
            if key in keys:
                return self.file.where((section, key))
        return self.file.where(("fixed", *key.split(".")))

    @cached_property
    def conditions(self) -> list[Condition]:
        """The product of the condition axes, in the file's order; one condition `all` without any."""
        cells = []
        for values in itertools.product(*self.axes.values()):
            cell = dict(zip(self.axes, values, strict=True))
            name = ",".join(f"{key}={value}" for key, value in cell.items()) or "all"
            cells.append(Condition(name, cell, override(self.fixed, cell)))
        return cells

    def resolved(self) -> dict[str, Any]:
        """Nested plain values that `study_from` reads back into an equal study."""
        return {
            "fixed": self.fixed.model_dump(mode="json"),
            "conditions": self.axes,
            "search": {
                key: d.model_dump(mode="json", by_alias=True, exclude_none=True)
                for key, d in self.search.items()
            },
            "ablate": self.ablate,
            "study": self.settings.model_dump(mode="json") | {"name": self.name},
        }


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Read, override and check a study. UserError lists every problem with its file:line."""
    file = read_yaml(Path(path))
    _apply_overrides(file, overrides)
    return _checked(file)


def load_trial(path: str | Path, overrides: Iterable[str] = ()) -> TrialSpec:
    """The fixed part of a study, with any trial key overridden, searched ones and conditions too."""
    spec = load_study(path).fixed
    values = parse_overrides(overrides)
    try:
        return override(spec, values)
    except UserError as error:
        raise UserError([replace(p, where="override") for p in error.problems]) from None


def study_from(resolved: Mapping[str, Any], source: Path) -> Study:
    """A study from `Study.resolved()`, checked again."""
    return _checked(YamlFile(source, dict(resolved), {}))


def check_name(name: str) -> None:
    """UserError unless `name` can be a run folder's."""
    try:
        StudySpec(name=name)
    except ValidationError as error:
        raise UserError([replace(p, key="--name") for p in _problems_of(error)]) from None


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as dotted keys with YAML values. UserError for a text without `=`."""
    values, problems = {}, []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(f"is {text!r}, but must be key=value", "override"))
            continue
        try:
            values[key.strip()] = parse_value(value)
        except Exception as error:
            first = str(error).split("\n")[0]
            problems.append(Problem(f"has a value that is not YAML: {first}", f"override {text}"))
    if problems:
        raise UserError(problems)
    return values


def _apply_overrides(file: YamlFile, overrides: Iterable[str]) -> None:
    """Write overrides into the file's data, and note each one as the place of its key."""
    for key, value in parse_overrides(overrides).items():
        path = _override_path(key)
        inner = file.data
        for part in path[:-1]:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        if value is None and path[0] != "fixed":
            inner.pop(path[-1], None)
        else:
            inner[path[-1]] = value
        file.overrides[path] = f"override {key}={value}"


def _override_path(key: str) -> tuple[str, ...]:
    """Where `key` is in the file: `optim.lr` is short for `fixed.optim.lr`."""
    section, _, rest = key.partition(".")
    if section not in SECTIONS:
        return ("fixed", *key.split("."))
    if not rest:
        return (section,)
    if section in ("conditions", "search"):  # their keys are dotted themselves
        return (section, rest)
    return (section, *rest.split(".", 1 if section == "ablate" else -1))


class _Problems(list[Problem]):
    """Collects problems, each with the place of its key."""

    def __init__(self, file: YamlFile) -> None:
        super().__init__()
        self.file = file

    def add(self, path: tuple[str, ...], key: str, text: str) -> None:
        self.append(Problem(text, key, self.file.where(path)))


def _checked(file: YamlFile) -> Study:
    problems = _Problems(file)
    for key in file.data:
        if key not in SECTIONS:
            text = f"is not a known key{nearest(key, SECTIONS)} (known: {', '.join(SECTIONS)})"
            problems.add((str(key),), str(key), text)
    sections = {name: _section(file.data, name, problems) for name in SECTIONS}

    settings = StudySpec()
    try:
        settings = StudySpec.model_validate(sections["study"])
    except ValidationError as error:
        for problem in _problems_of(error):
            key = f"study.{problem.key}".rstrip(".")
            problems.add(tuple(key.split(".")), key, problem.text)

    fixed, base = None, None
    try:
        fixed = base = build_trial(sections["fixed"])
    except UserError as error:
        for problem in error.problems:
            problems.add(("fixed", *problem.key.split(".")), problem.key, problem.text)
        method = sections["fixed"].get("method")
        name = method.get("name") if isinstance(method, dict) else None
        if name in method_names():  # keys of the other sections can still be checked
            base = build_trial({"method": {"name": name}})

    axes = _axes(sections["conditions"], base, problems)
    search = _domains(sections["search"], base, axes, problems)
    _check_ablations(sections["ablate"], base, problems)
    for section, keys in (("conditions", axes), ("search", search)):
        for path in file.overrides:
            key = ".".join(path[1:])
            if path[0] == "fixed" and key in keys:
                text = f"is set by {section} too; {section}.{key}=null takes it out of there"
                problems.add(path, key, text)
    if problems:
        raise UserError(problems)
    assert fixed is not None
    name = settings.name or file.path.stem
    return Study(file, name, fixed, axes, search, sections["ablate"], settings)


def _problems_of(error: ValidationError) -> list[Problem]:
    return validation_problems(error, StudySpec)


def _section(data: Mapping[str, Any], name: str, problems: _Problems) -> dict[str, Any]:
    section = data.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        problems.add((name,), name, f"is {section!r}, but must be a mapping")
        return {}
    return section


def _axes(
    section: dict[str, Any], base: TrialSpec | None, problems: _Problems
) -> dict[str, list[Any]]:
    axes = {}
    for key, values in section.items():
        path = ("conditions", str(key))
        if not isinstance(values, list) or not values:
            text = f"is {values!r}, but must be a list of at least one value"
            problems.add(path, f"conditions.{key}", text)
            continue
        if len({repr(value) for value in values}) < len(values):
            problems.add(path, f"conditions.{key}", f"is {values}, but must name each value once")
        axes[str(key)] = values
        for i, value in enumerate(values):
            for problem in _override_problems(base, {str(key): value}):
                problems.add((*path, str(i)), f"conditions.{problem.key}", problem.text)
    return axes


def _domains(
    section: dict[str, Any],
    base: TrialSpec | None,
    axes: dict[str, list[Any]],
    problems: _Problems,
) -> dict[str, Domain]:
    search: dict[str, Domain] = {}
    for key, leaf in section.items():
        path, shown = ("search", str(key)), f"search.{key}"
        if key in axes:
            text = "is a condition too, but a key is either compared within or searched, not both"
            problems.add(path, shown, text)
        if key in ("seed", "data.split_seed"):
            problems.add(path, shown, "is searched, but a seed is not a hyperparameter")
        try:
            search[str(key)] = domain(leaf)
        except ValidationError as error:
            for problem in validation_problems(error, Domain):  # type: ignore[arg-type]
                inner = f"{shown}.{problem.key}".rstrip(".")
                problems.add((*path, *problem.key.split(".")), inner, problem.text)
            continue
        for value in search[str(key)].ends():
            for problem in _override_problems(base, {str(key): value}):
                problems.add(path, f"search.{problem.key}", problem.text)
    return search


def _check_ablations(
    section: dict[str, Any], base: TrialSpec | None, problems: _Problems
) -> None:
    for variant, values in section.items():
        path = ("ablate", str(variant))
        if not isinstance(values, dict) or not values:
            text = f"is {values!r}, but must map dotted keys to values"
            problems.add(path, f"ablate.{variant}", text)
            continue
        for problem in _override_problems(base, values):
            problems.add((*path, problem.key), f"ablate.{variant}.{problem.key}", problem.text)


def _override_problems(base: TrialSpec | None, values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with `values` on top of a sound spec; nothing when there is none to build on."""
    if base is None:
        return
    try:
        override(base, values)
    except UserError as error:
        keys = list(values)
        for problem in error.problems:
            own = next((k for k in keys if problem.key.startswith(k) or k.startswith(problem.key)), None)
            yield Problem(problem.text, problem.key if own else f"{keys[0]}: {problem.key}")
