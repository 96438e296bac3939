"""A study: a YAML file, checked whole: what is fixed, compared, searched and ablated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_ssl.base.errors import Problem, UserError, shown, unknown
from tune_ssl.base.spec import DataSpec, StudySpec
from tune_ssl.base.yaml_file import YamlFile, read_yaml
from tune_ssl.methods.plugins import Plugin, load_plugins
from tune_ssl.records.domain import Domain, idle_key
from tune_ssl.study.checks import Checks, condition_cells, condition_id
from tune_ssl.study.comparison import OWN_DATA, SECTION, entries
from tune_ssl.study.messages import validation_problems
from tune_ssl.study.overrides import apply_overrides
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.study.variants import Variant, variants_from_file

# Of a config of `study.start_from`: its source, and the entry it is for
FROM, OF = ABOUT = ("from", "method")
SIZES = ("data.image_size", "data.store_size")


@dataclass(frozen=True)
class Condition:
    """One cell in which results are compared, of one method: never searched over. `spec` is its fixed part.

    `cell` is its id without the method: where several methods are compared, theirs share it. `search` and `ablate` are
    the method's own.
    """

    id: str
    values: dict[str, Any]
    spec: TrialSpec
    search: dict[str, Domain]
    ablate: dict[str, dict[str, Any]]
    method: str
    cell: str

    @property
    def data(self) -> DataSpec:
        """Which images its store holds; where their size is searched alone, of the first size."""
        first = {k: d.ends()[0] for k, d in self.search.items() if k in SIZES}
        given = self.spec.data
        return given if given.image_size or not first else override(self.spec, first).data

    @property
    def variants(self) -> list[Variant]:
        """The ablation variants that the file writes down."""
        return variants_from_file(self.ablate)


@dataclass(frozen=True)
class Entry:
    """One method of a study: its fixed part, and what is searched and ablated of it."""

    label: str
    fixed: TrialSpec
    axes: dict[str, list[Any]]
    search: dict[str, Domain]
    ablate: dict[str, dict[str, Any]]
    file: YamlFile = field(compare=False, repr=False)


@dataclass(frozen=True)
class Study:
    """A checked study. Every condition, and both ends of every domain, build a sound TrialSpec.

    It has one entry, or several methods that are compared. `plugins` are the files that bring methods of their
    own; workers load them too.
    """

    file: YamlFile = field(compare=False, repr=False)
    name: str
    entries: tuple[Entry, ...]
    settings: StudySpec
    plugins: tuple[Plugin, ...] = ()

    @property
    def source(self) -> Path:
        return self.file.path or Path()

    @property
    def compares(self) -> bool:
        """Whether it has several methods."""
        return len(self.entries) > 1

    @property
    def fixed(self) -> TrialSpec:
        """The fixed part of its only method, or of the first one."""
        return self.entries[0].fixed

    @property
    def axes(self) -> dict[str, list[Any]]:
        return self.entries[0].axes

    @property
    def search(self) -> dict[str, Domain]:
        """What is searched of its only method, or of the first one."""
        return self.entries[0].search

    @property
    def ablate(self) -> dict[str, dict[str, Any]]:
        return self.entries[0].ablate

    def where(self, key: str, label: str | None = None) -> str:
        """file:line of a trial's dotted key: where it is a condition, searched, or fixed."""
        if not key:
            return ""
        entry = next((e for e in self.entries if e.label == label), self.entries[0])
        for section, keys in (("conditions", entry.axes), ("search", entry.search)):
            if key in keys:
                return entry.file.where((section, key))
        return entry.file.where(("fixed", *key.split(".")))

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Errors that the block raises about the fixed spec say where in the file its key is."""
        try:
            yield
        except UserError as error:
            raise UserError(
                replace(p, where=p.where or self.where(p.key)) for p in error.problems
            ) from error

    @cached_property
    def conditions(self) -> list[Condition]:
        """The product of the condition axes, in the file's order; `all` without any. Method by method."""
        return [
            Condition(
                id=f"{condition_id(cell)},method={entry.label}"
                if self.compares
                else condition_id(cell),
                values=cell,
                spec=override(entry.fixed, cell),
                search=entry.search,
                ablate=entry.ablate,
                method=entry.label,
                cell=condition_id(cell),
            )
            for entry in self.entries
            for cell in condition_cells(entry.axes)
        ]

    def resolved(self) -> dict[str, Any]:
        """Nested plain values that `study_from` reads back into an equal study."""
        parts = {
            entry.label: {
                "fixed": entry.fixed.model_dump(mode="json"),
                "search": {key: domain.leaf() for key, domain in entry.search.items()},
                "ablate": entry.ablate,
            }
            for entry in self.entries
        }
        one = {SECTION: parts} if self.compares else parts[self.entries[0].label]
        return {
            **one,
            "conditions": self.axes,
            "study": self.settings.model_dump(mode="json"),
        }


def load_study(
    path: str | Path, overrides: Iterable[str] = (), plugins: Iterable[str | Path] = ()
) -> Study:
    """Read, override and check a study. UserError lists every problem with its file:line.

    `plugins` are Python files with methods that the study may name.
    """
    loaded = load_plugins(plugins)
    file = read_yaml(Path(path))
    return replace(checked(file, list(apply_overrides(file, overrides))), plugins=loaded)


def load_fixed(
    path: str | Path | None, overrides: Iterable[str] = (), plugins: Iterable[str | Path] = ()
) -> Study:
    """A study's fixed part alone: overrides may set what is searched or a condition there.

    Without a path the overrides are laid over the defaults of the supervised method.
    """
    loaded = load_plugins(plugins)
    file = (
        YamlFile(None, {"fixed": {"method": {"name": "supervised"}}})
        if path is None
        else read_yaml(Path(path))
    )
    problems = list(apply_overrides(file, overrides))
    return replace(checked(file, problems, fixed_only=True), plugins=loaded)


def study_from(
    resolved: Mapping[str, Any], source: Path, plugins: tuple[Plugin, ...] = ()
) -> Study:
    """A study from `Study.resolved()`, checked again; its plugins are loaded already."""
    return replace(checked(YamlFile(source, dict(resolved)), []), plugins=plugins)


def check_name(name: str) -> None:
    """UserError unless `name` can be a run folder's."""
    try:
        StudySpec(name=name)
    except ValidationError as error:
        found = validation_problems(error, StudySpec, {"name": name})
        raise UserError(replace(problem, key="--name") for problem in found) from None


def checked(file: YamlFile, problems: list[Problem], *, fixed_only: bool = False) -> Study:
    """The study that a file's data are. UserError with every problem, those given included."""
    files: dict[str, YamlFile] = {"": file}
    if SECTION in file.data and fixed_only:
        text = "is of a comparison, which has no single fixed part: name a study of one method"
        raise UserError(Problem(text, SECTION, file.where((SECTION,))))
    if SECTION in file.data:
        problems += file.twice
        files = dict(entries(file, problems))
        if problems:
            raise UserError(dict.fromkeys(problems))
    found: list[Entry] = []
    settings = StudySpec()
    for label, own in files.items():
        checks = Checks(own, problems if not label else [])
        settings, fixed = checks.settings(), checks.fixed
        checks.metric(settings)
        axes: dict[str, list[Any]] = {}
        search: dict[str, Domain] = {}
        ablate: dict[str, dict[str, Any]] = {}
        if not fixed_only:
            axes, search, ablate = checks.axes(), checks.search(), checks.ablate()
            checks.overridden_elsewhere()
        if fixed is not None and not checks.problems:
            checks.together(fixed, axes, search, settings)
        if not label:
            checks.finish()
        problems += checks.problems
        if fixed is not None:
            label = label or fixed.method.name
            found.append(Entry(label, fixed, axes, search, ablate, own))
    if not problems:
        problems += _unequal(found)
    if not problems and not fixed_only:
        problems += _wrong_starts(file, settings, found)
    if problems:
        raise UserError(dict.fromkeys(problems))
    name = settings.name or (file.path.stem if file.path else "")
    return Study(file, name, tuple(found), settings)


def _wrong_starts(file: YamlFile, settings: StudySpec, found: Sequence[Entry]) -> Iterator[Problem]:
    """The configs of `study.start_from` have searched keys, of one method at least, with values in their domains."""
    for i, entry in enumerate(settings.start_from):
        if entry == "":
            text = "has an empty name, but must name defaults, a run or {key: value}"
            yield Problem(text, "study.start_from", file.where(("study", "start_from")))
        if not isinstance(entry, dict):
            continue
        key, place = "study.start_from", file.where(("study", "start_from", str(i)))
        config = {k: v for k, v in entry.items() if k not in ABOUT}
        fits = [one for one in found if config and set(config) <= set(one.search)]
        every = list(dict.fromkeys(k for one in found for k in one.search))
        if not fits:
            wrong = next((k for k in config if k not in every), None)
            text = f"is {shown(entry)}, whose keys no method searches together"
            if wrong is not None:
                text = unknown("searched key", wrong, every)
            yield Problem(text, key, place)
        for name, value in config.items() if fits else ():
            idle = idle_key(fits[0].search[name], config)
            if idle:
                text = f"has {name}, which is not active with {idle}: {shown(config[idle])}"
                yield Problem(text, key, place)
            if not any(value in one.search[name] for one in fits):
                yield Problem(
                    f"has {name}: {shown(value)}, which is outside {fits[0].search[name]}",
                    key,
                    place,
                )


def _unequal(found: Sequence[Entry]) -> Iterator[Problem]:
    """All methods have the same images, labels and splits; those that are trained in steps have equally many."""
    for entry in found[1:]:
        ours, theirs = entry.fixed.data, found[0].fixed.data
        for key in type(ours).model_fields:
            if key not in OWN_DATA and getattr(ours, key) != getattr(theirs, key):
                text = "must not be changed for one method: all of a comparison share images, labels and splits"
                place = entry.file.where(("fixed", "data", key))
                yield Problem(text, f"{SECTION}.{entry.label}.fixed.data.{key}", place)
    steps = [
        (entry, sum(entry.fixed.stage_steps().values()))
        for entry in found
        if not all(stage.fits for stage in entry.fixed.stages())
    ]
    most = max((own for _, own in steps), default=0)
    for entry, own in steps:
        if own != most:
            text = (
                f"makes {own} steps in all, but must make {most} as the others: budgets are equal"
            )
            yield Problem(
                text, f"{SECTION}.{entry.label}", entry.file.where(("fixed", "budget", "steps"))
            )
