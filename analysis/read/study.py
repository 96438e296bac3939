"""study.yaml: one run folder's study, and the name by which a report calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log

REQUIRED = ("name", "method", "dataset", "metric", "mode", "conditions")


@dataclass(frozen=True)
class Study:
    """One run folder's study.yaml. `run` and `label` are unique among the runs loaded together."""

    run: str
    label: str
    path: Path
    raw: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.raw["method"])

    @property
    def metric(self) -> str:
        return str(self.raw["metric"])

    @property
    def mode(self) -> str:
        return str(self.raw["mode"])

    @property
    def dataset(self) -> Mapping[str, Any]:
        return dict(self.raw["dataset"])

    @property
    def searched(self) -> list[str]:
        """The config keys that are searched; none of a run that only ablates."""
        return [*((self.raw.get("study") or {}).get("search") or {})]

    @property
    def planned_seeds(self) -> int | None:
        """How many confirm seeds the study asks for, if it says so."""
        seeds = ((self.raw.get("study") or {}).get("study") or {}).get("seeds")
        if isinstance(seeds, int):
            return seeds
        return len(seeds) if isinstance(seeds, (list, tuple)) else None


def read_studies(folders: Sequence[Path]) -> list[Study]:
    """The studies of run folders, each with a name of its own. UserError as in `load_runs`."""
    studies = _labelled([(folder, _read_study(folder)) for folder in folders])
    _same_dataset(studies)
    return studies


def check_schema(schema: object, path: Path) -> None:
    """UserError if a record or study was written by a version that this one does not read."""
    if schema != log.SCHEMA:
        text = f"is {schema!r}, but this version of tune-ssl reads only {log.SCHEMA}"
        raise UserError(Problem(text, "schema", str(path)))


def _read_study(folder: Path) -> dict[str, Any]:
    path = folder / log.STUDY
    if not folder.is_dir():
        raise UserError(Problem("is not a folder", where=str(folder)))
    if not path.is_file():
        raise UserError(Problem(f"is not a run folder: it has no {log.STUDY}", where=str(folder)))
    log.refuse_links(folder)
    raw = read_yaml(path, "what a run writes").data
    check_schema(raw.get("schema"), path)
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise UserError([Problem("is missing", key, str(path)) for key in missing])
    if raw["mode"] not in ("min", "max"):
        raise UserError(Problem(f"is {raw['mode']!r}, but must be min or max", "mode", str(path)))
    if not isinstance(raw["dataset"], dict):
        raise UserError(Problem("is not a mapping", "dataset", str(path)))
    conditions = raw["conditions"]
    if not isinstance(conditions, list) or not all(
        isinstance(condition, dict) and "id" in condition for condition in conditions
    ):
        raise UserError(Problem("is not a list of conditions with an id", "conditions", str(path)))
    return raw


def _labelled(found: Sequence[tuple[Path, dict[str, Any]]]) -> list[Study]:
    """Give each run a name of its own: by method where possible, else by name, else by path."""
    names = Counter(str(raw["name"]) for _, raw in found)
    methods = Counter(str(raw["method"]) for _, raw in found)
    studies = []
    for folder, raw in found:
        name, method = str(raw["name"]), str(raw["method"])
        run = name if names[name] == 1 else str(folder)
        label = method if methods[method] == 1 else run
        studies.append(Study(run, label, folder, raw))
    labels = Counter(study.label for study in studies)
    return [
        study if labels[study.label] == 1 else replace(study, label=str(study.path))
        for study in studies
    ]


def _same_dataset(studies: Sequence[Study]) -> None:
    first = studies[0]
    for study in studies[1:]:
        if study.dataset.get("digest") != first.dataset.get("digest"):
            raise UserError(
                f"{study.path} is on dataset {study.dataset.get('name')} "
                f"({study.dataset.get('digest')}), but {first.path} on "
                f"{first.dataset.get('name')} ({first.dataset.get('digest')}): "
                "runs on different data are not compared"
            )
