"""study.yaml: one run folder's study, and the name by which a report calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.records.ties import at_chance

BASELINE = "supervised"
REQUIRED = ("name", "method", "dataset", "metric", "mode", "conditions")


@dataclass(frozen=True)
class Study:
    """One run folder's study.yaml. `run` and `label` are unique among the runs loaded together.

    Of a run that compares several methods there is one for each: `raw` is as if it had been the only one, and `renamed`
    says what its conditions are called in the records.
    """

    run: str
    label: str
    path: Path
    raw: Mapping[str, Any]
    renamed: Mapping[str, str] | None = None
    home: str = ""  # the URL whose copy the folder is, where commands must name that one

    def own(self, event: Record) -> Record | None:
        """An event or split as if this method had run alone; None if it is another one's."""
        if self.renamed is None or "condition" not in event:
            return event
        name = self.renamed.get(event["condition"])
        return None if name is None else {**event, "condition": name}

    @property
    def address(self) -> list[str]:
        """The run as `--resume` takes it, with what says where it is."""
        if self.home:
            parent, _, name = self.home.rstrip("/").rpartition("/")
            return [name, "--storage", parent]
        if self.path.parent == Path("runs"):
            return [self.path.name]
        return [self.path.name, "--runs", str(self.path.parent.resolve())]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The `study` part of its study file."""
        found = (self.raw.get("study") or {}).get("study")
        return found if isinstance(found, Mapping) else {}

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
    def remarks(self) -> list[str]:
        """What was left out of the images, and what else the run says of them."""
        found = self.dataset.get("remarks")
        return [str(remark) for remark in found] if isinstance(found, (list, tuple)) else []

    def is_chance(self, mean: float, low: float) -> bool:
        """Whether a mean-class accuracy on the test images, from `low` on, is what guessing gives."""
        classes, counts = self.dataset.get("classes"), self.dataset.get("counts")
        images = counts.get("test") if isinstance(counts, Mapping) else 0
        if (
            not isinstance(classes, (list, tuple))
            or len(classes) < 2
            or not isinstance(images, int)
        ):
            return False
        return at_chance(mean, low, len(classes), images)

    @property
    def num_classes(self) -> int:
        classes = self.dataset.get("classes")
        return len(classes) if isinstance(classes, (list, tuple)) else 0

    @property
    def searched(self) -> list[str]:
        """The config keys that are searched; none of a run that only ablates."""
        return [*((self.raw.get("study") or {}).get("search") or {})]

    @property
    def fitted(self) -> bool:
        """Whether the method is fitted at once, so that steps say nothing of it."""
        return bool(self.raw.get("fitted"))

    @property
    def unlabeled(self) -> bool:
        """Whether the method uses unlabeled images, as far as the run says so; else whether it is no baseline."""
        return bool(self.raw.get("unlabeled", self.method != BASELINE))

    @property
    def planned_seeds(self) -> int | None:
        """How many confirm seeds the study asks for, if it says so."""
        seeds = self.settings.get("seeds")
        if isinstance(seeds, int):
            return seeds
        return len(seeds) if isinstance(seeds, (list, tuple)) else None


def read_studies(folders: Sequence[Path], home: str = "") -> list[Study]:
    """The studies of run folders, each with a name of its own. UserError as in `load_runs`."""
    parts = [part for folder in folders for part in _parts(folder, _read_study(folder))]
    studies = [replace(study, home=home) for study in _labelled(parts)]
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


class _Part(NamedTuple):
    """One method of a run folder."""

    folder: Path
    raw: dict[str, Any]
    entry: str | None = None
    renamed: dict[str, str] | None = None


def _parts(folder: Path, raw: dict[str, Any]) -> list[_Part]:
    """The run as one study, or a study for each method that it compares."""
    compared = raw.get("compare")
    if compared is None:
        return [_Part(folder, raw)]
    path = folder / log.STUDY
    whole = raw.get("study")
    own = whole.get("compare") if isinstance(whole, dict) else None
    if not isinstance(compared, dict) or not isinstance(own, dict) or not {*compared} <= {*own}:
        raise UserError(Problem("is not a mapping of methods", "compare", str(path)))
    parts = []
    for entry, about in compared.items():
        mine = [c for c in raw["conditions"] if c.get("method") == entry]
        renamed = {str(c["id"]): str(c.get("cell", c["id"])) for c in mine}
        alone = {
            **{key: value for key, value in raw.items() if key != "compare"},
            "method": about["method"],
            "loss_terms": about.get("loss_terms", []),
            "fitted": about.get("fitted", False),
            "unlabeled": about.get("unlabeled", False),
            "conditions": [{**c, "id": renamed[str(c["id"])]} for c in mine],
            "study": {**own[entry], "study": whole.get("study") if whole else {}},
        }
        parts.append(_Part(folder, alone, str(entry), renamed))
    return parts


def _labelled(found: Sequence[_Part]) -> list[Study]:
    """Give each method of each run a name of its own: by method where possible, else by the run's name or path."""
    names = Counter(name for name, _ in {(str(p.raw["name"]), p.folder) for p in found})
    called = [part.entry or str(part.raw["method"]) for part in found]
    counts = Counter(called)
    studies = []
    for part, own in zip(found, called, strict=True):
        name = str(part.raw["name"])
        run = name if names[name] == 1 else str(part.folder)
        run = f"{run}/{part.entry}" if part.entry else run
        label = own if counts[own] == 1 else run
        studies.append(Study(run, label, part.folder, part.raw, part.renamed))
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
