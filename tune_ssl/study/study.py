"""A study: a YAML file, checked whole: what is fixed, compared within, searched and ablated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import StudySpec
from tune_ssl.base.yaml_file import YamlFile, read_yaml
from tune_ssl.methods.plugins import Plugin, load_plugins
from tune_ssl.records.domain import Domain
from tune_ssl.study.checks import Checks, condition_cells, condition_id
from tune_ssl.study.messages import validation_problems
from tune_ssl.study.overrides import apply_overrides
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.study.variants import Variant, variants_from_file


@dataclass(frozen=True)
class Condition:
    """One cell in which results are compared: never searched over. `spec` is its fixed part."""

    id: str
    values: dict[str, Any]
    spec: TrialSpec


@dataclass(frozen=True)
class Study:
    """A checked study. Every condition, and both ends of every domain, build a sound TrialSpec.

    `plugins` are the files that bring methods of their own; workers load them too.
    """

    file: YamlFile = field(compare=False, repr=False)
    name: str
    fixed: TrialSpec
    axes: dict[str, list[Any]]
    search: dict[str, Domain]
    ablate: dict[str, dict[str, Any]]
    settings: StudySpec
    plugins: tuple[Plugin, ...] = ()

    @property
    def source(self) -> Path:
        return self.file.path or Path()

    def where(self, key: str) -> str:
        """file:line of a trial's dotted key: where it is a condition, searched, or fixed."""
        if not key:
            return ""
        for section, keys in (("conditions", self.axes), ("search", self.search)):
            if key in keys:
                return self.file.where((section, key))
        return self.file.where(("fixed", *key.split(".")))

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Errors that the block raises about the fixed spec say where in the file its key is."""
        try:
            yield
        except UserError as error:
            raise UserError(
                replace(p, where=p.where or self.file.where(("fixed", *p.key.split("."))))
                if p.key
                else p
                for p in error.problems
            ) from error

    @cached_property
    def conditions(self) -> list[Condition]:
        """The product of the condition axes, in the file's order; `all` without any."""
        return [
            Condition(condition_id(cell), cell, override(self.fixed, cell))
            for cell in condition_cells(self.axes)
        ]

    @property
    def variants(self) -> list[Variant]:
        """The ablation variants that the file writes down."""
        return variants_from_file(self.ablate)

    def resolved(self) -> dict[str, Any]:
        """Nested plain values that `study_from` reads back into an equal study."""
        return {
            "fixed": self.fixed.model_dump(mode="json"),
            "conditions": self.axes,
            "search": {key: domain.leaf() for key, domain in self.search.items()},
            "ablate": self.ablate,
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
    return replace(_checked(file, overrides), plugins=loaded)


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
    return replace(_checked(file, overrides, fixed_only=True), plugins=loaded)


def study_from(
    resolved: Mapping[str, Any], source: Path, plugins: tuple[Plugin, ...] = ()
) -> Study:
    """A study from `Study.resolved()`, checked again; its plugins are loaded already."""
    return replace(_checked(YamlFile(source, dict(resolved))), plugins=plugins)


def check_name(name: str) -> None:
    """UserError unless `name` can be a run folder's."""
    try:
        StudySpec(name=name)
    except ValidationError as error:
        found = validation_problems(error, StudySpec, {"name": name})
        raise UserError(replace(problem, key="--name") for problem in found) from None


def _checked(file: YamlFile, overrides: Iterable[str] = (), *, fixed_only: bool = False) -> Study:
    checks = Checks(file, list(apply_overrides(file, overrides)))
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
    checks.finish()
    assert fixed is not None
    name = settings.name or (file.path.stem if file.path else "")
    return Study(file, name, fixed, axes, search, ablate, settings)
