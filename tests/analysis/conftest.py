"""A factory of synthetic run folders, written through the same `records` as real ones."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import pytest
from ruamel.yaml import YAML

from analysis.plots.figure import Figure
from analysis.read.load import Runs
from analysis.report import paper
from analysis.report.report import all_tables, write_report
from analysis.words.display import columns_of, shown_cells
from analysis.words.summary import caveats, summary, what_ran
from tune_ssl.records import log

METRIC = "val/mean_class_accuracy"
CONFIRMED = {0: 0.80, 1: 0.84, 2: 0.82, 3: 0.86, 4: 0.83}
# (ending, value at the end, reason); None is a trial that still runs.
SEARCH: tuple[tuple[str | None, float | None, str | None], ...] = (
    (log.FINISHED, 0.70, None),
    (log.FINISHED, 0.81, None),
    (log.STOPPED, 0.95, "asha"),
    (log.DIVERGED, None, "loss/total is nan at step 40"),
    (log.FAILED, None, "out of memory"),
    (log.FINISHED, 0.79, None),
)


def write_run(
    path: Path,
    name: str | None = None,
    method: str = "soft_kmeans",
    labels: tuple[int, ...] = (50, 200),
    search: Any = SEARCH,
    confirm: dict[int, float | None] | None = None,
    shift: float | dict[int, float] = 0.0,
    digest: str = "d1",
    classes: tuple[str, ...] = ("cat", "dog"),
    metric: str = METRIC,
    conditions: list[str] | None = None,
    split: str = "same",
    diag: bool = True,
    steps: int = 100,
) -> Path:
    """Write a run folder. `confirm` maps seed -> test value; {} leaves the run unconfirmed."""
    confirm = CONFIRMED if confirm is None else confirm
    path.mkdir(parents=True)
    ids = conditions or [f"data.num_labels={count}" for count in labels]
    study = {
        "schema": 1,
        "name": name or path.name,
        "created": "2026-01-02T03:04:05",
        "command": f"tune-ssl search {method}.yaml",
        "source": f"{method}.yaml",
        "method": method,
        "dataset": {
            "name": "digits",
            "digest": digest,
            "classes": list(classes),
            "counts": {"train": 1000, "val": 200, "test": 300, "unlabeled": 800},
            "image_shape": [8, 8, 1],
        },
        "metric": metric,
        "mode": "max",
        "loss_terms": ["supervised", "cluster"],
        "versions": {"tune_ssl": "0.1", "python": "3.11"},
        "git": {"revision": "abc123", "dirty": True},
        "machine": {"platform": "linux", "cpus": 2, "gpus": []},
        "conditions": [
            {"id": i, "values": {"data.num_labels": c}, "labels": c, "validation": 200}
            for i, c in zip(ids, labels, strict=True)
        ],
        "study": {
            "search": {"optim.lr": {"log_uniform": [0.001, 1.0]}},
            "ablate": {},
            "study": {"num_trials": len(search), "seeds": 5, "tuning_seed": 100},
        },
    }
    with open(path / log.STUDY, "w") as file:
        YAML(typ="safe", pure=True).dump(study, file)
    for index, (condition, count) in enumerate(zip(ids, labels, strict=True)):
        _write_search(path, condition, index, search, metric, steps)
        if confirm:
            own = shift[count] if isinstance(shift, dict) else shift + 0.03 * index
            _write_confirm(path, condition, index, count, confirm, own, split)
    (path / log.TRIALS).touch()
    if diag:
        _write_history(path)
    return path


def event(path: Path, kind: str, trial: str, condition: str, **more: Any) -> None:
    """Append one event to trials.jsonl."""
    own = {"event": kind, "phase": log.SEARCH, "trial": trial, "condition": condition}
    log.append(path / log.TRIALS, {**own, **more})


def _write_search(
    path: Path, condition: str, index: int, search: Any, metric: str, steps: int
) -> None:
    for number, (status, value, reason) in enumerate(search):
        trial = f"c{index}-t{number:04d}"
        config = {"optim.lr": 0.01 * (number + 1), "method.temperature": 0.5}
        start = {"number": number, "config": config, "seed": 100, "digest": f"g{number}"}
        event(path, log.STARTED, trial, condition, **start)
        if status:
            ending = {"step": steps, "value": value, "metrics": {metric: value}, "reason": reason}
            event(path, status, trial, condition, **ending, seconds=10.0, images_seen=640, reused=0)


def _write_confirm(
    path: Path,
    condition: str,
    index: int,
    count: int,
    confirm: dict[int, float | None],
    shift: float,
    split: str,
) -> None:
    config = {"optim.lr": 0.02, "method.temperature": 0.5, "data.num_labels": count}
    lock = {"digest": "g1", "config": config, "value": 0.81, "rule": "best finished", "ties": 1}
    more = {**lock, "half_width": 0.096, "time": 1_760_000_000.0 + index}
    event(path, log.LOCKED, f"c{index}-t0001", condition, **{**more, "phase": "confirm"})
    for seed, value in confirm.items():
        trial = f"c{index}-confirm-s{seed}"
        start = {"number": seed, "config": config, "seed": seed, "digest": "g1"}
        event(path, log.STARTED, trial, condition, **start, phase=log.CONFIRM)
        test = None if value is None else value + shift
        metrics = {
            "test/mean_class_accuracy": test,
            "test/accuracy": test,
            "test/count": 100,
            "test/confusion": None
            if test is None
            else [[100 * test, 100 - 100 * test], [100 - 100 * test, 100 * test]],
            METRIC: 0.78,
        }
        ending = {"step": 100, "value": 0.78, "metrics": metrics, "reason": None}
        kind = log.FINISHED
        own = {"seconds": 12.0, "images_seen": 640, "reused": 0, "phase": log.CONFIRM}
        event(path, kind, trial, condition, **ending, **own)
        digest = {"condition": condition, "seed": seed, "digest": f"{split}-{seed}"}
        log.append(path / log.SPLITS, digest)


def _write_history(path: Path) -> None:
    reports = []
    for line in (path / log.TRIALS).read_text().splitlines():
        start = json.loads(line)
        if start["event"] != log.STARTED:
            continue
        for stage, steps in (("pretrain", (0, 10)), ("train", (0, 20, 40))):
            for step in steps:
                metrics = {
                    "loss/supervised": 1 / (1 + step),
                    "loss/cluster": 2.0,
                    "loss/total": None if step == 40 else 1.5,
                    "weight/cluster": step / 40,
                    "diag/mask_rate": 0.5,
                    METRIC: 0.5 + step / 100,
                }
                own = {"trial": start["trial"], "stage": stage, "step": step, "seconds": step}
                reports.append({**own, "metrics": metrics})
    if reports:
        log.append_all(path / log.HISTORY, reports)


def searched_run(
    path: Path,
    trials: Any,
    search: dict[str, Any],
    method: str = "soft_kmeans",
    mode: str = "max",
    metric: str = METRIC,
    searcher: str = "optuna",
) -> Path:
    """A run folder of search trials (value, config) under one condition, over the space `search`.

    A config's `status`, `step` and `history` (step -> value) say how it ended, if not as finished.
    """
    write_run(path, method=method, labels=(50,), search=(), confirm={}, diag=False, metric=metric)
    yaml = YAML(typ="safe", pure=True)
    study = yaml.load(path / log.STUDY)
    study["mode"] = mode
    study["study"]["search"] = search
    study["study"]["study"]["searcher"] = searcher
    with open(path / log.STUDY, "w") as file:
        yaml.dump(study, file)
    for number, (value, given) in enumerate(trials):
        config, trial = dict(given), f"c0-t{number:04d}"
        status, step = config.pop("status", log.FINISHED), config.pop("step", 100)
        history = config.pop("history", {})
        start = {"number": number, "config": config, "seed": 100, "digest": f"g{number}"}
        event(path, log.STARTED, trial, "data.num_labels=50", **start)
        for at, reached in history.items():
            own = {"trial": trial, "stage": "train", "step": at, "seconds": at}
            log.append(path / log.HISTORY, {**own, "metrics": {metric: reached}})
        if status:
            ending = {"step": step, "value": value, "metrics": {metric: value}, "reason": None}
            event(path, status, trial, "data.num_labels=50", **ending, seconds=step / 10)
    return path


def checked(figure: Figure) -> go.Figure:
    """The figure as plotly's own classes have it, which refuse what plotly.js does not know."""
    return go.Figure(figure.data, figure.layout)


def shown(table: pd.DataFrame, stem: str) -> pd.DataFrame:
    """The texts of a table as people read it, under the shown titles."""
    rows = [[text for text, _ in cells] for cells in shown_cells(table, stem)]
    return pd.DataFrame(rows, columns=[column.title for column in columns_of(table, stem)])


def said(runs: Runs) -> list[str]:
    """The summary and the caveats at the top of a report."""
    found = all_tables(runs)
    results, chosen, ablation = found["results"], found["chosen"], found["ablation"]
    return [
        *summary(runs, results, chosen, found["differences"], ablation),
        *what_ran(runs, chosen),
        *caveats(runs, results, found["budget"], chosen, ablation),
    ]


class Report(NamedTuple):
    """A written report: its runs' folders, its own, and the page as text."""

    runs: list[Path]
    out: Path
    page: str

    def packed(self, name: str) -> str:
        """A text that the page carries."""
        found = re.search(rf'<script type="text/plain" id="{re.escape(name)}">([^<]*)<', self.page)
        assert found
        return gzip.decompress(base64.b64decode(found.group(1))).decode()


def report(folder: Path, *runs: Path, formats: Sequence[str] = paper.FORMATS) -> Report:
    page = write_report(runs, folder / "report", formats)
    return Report(list(runs), page.parent, page.read_text())


@pytest.fixture(scope="session")
def one(tmp_path_factory: Any) -> Report:
    """The report of a run with two conditions, as `write_run` makes it."""
    folder = tmp_path_factory.mktemp("one")
    return report(folder, write_run(folder / "a"))


@pytest.fixture(scope="session")
def two(tmp_path_factory: Any) -> Report:
    """That of two methods, the second after one search trial; its tables are csv alone."""
    folder = tmp_path_factory.mktemp("two")
    a = write_run(folder / "a", method="fixmatch", shift=0.1)
    b = write_run(folder / "b", method="supervised", search=(("finished", 0.6, None),))
    return report(folder, a, b, formats=["csv"])


@pytest.fixture(name="searched_run")
def _searched_run() -> Any:
    return searched_run


@pytest.fixture(name="write_run")
def _write_run() -> Any:
    return write_run


@pytest.fixture(name="event")
def _event() -> Any:
    return event
