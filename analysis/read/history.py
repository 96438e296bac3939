"""history.jsonl -> one column per metric, line by line: a million reports fit in memory.

A line is parsed, its numbers go into arrays of floats, and the line is forgotten.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

HISTORY_COLUMNS = str.split("run label condition phase trial seed stage step seconds")
SHARED = str.split("run label condition phase seed")  # of a trial, the same in all its reports
NAN = float("nan")

Floats = npt.NDArray[np.float64]


@dataclass
class Block:
    """Reports that have the same metrics: which rows they are, and their values one after another."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, row: int, values: Iterable[Any]) -> None:
        """A value that is no number counts as missing."""
        before = len(self.values)
        self.rows.append(row)
        try:
            self.values.extend(values)
        except TypeError:
            del self.values[before:]
            self.values.extend(map(number, values))


@dataclass
class History:
    """The reports of one run as they are read; `last` has each trial's newest (metric, step, seconds)."""

    metric: str
    last: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    trials: array[int] = field(default_factory=lambda: array("q"))
    stages: list[str] = field(default_factory=list)
    steps: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    blocks: dict[tuple[str, ...], Block] = field(default_factory=dict)

    def add(self, report: Mapping[str, Any]) -> None:
        """Take one report."""
        trial, metrics = str(report["trial"]), report["metrics"] or {}
        self.blocks.setdefault(tuple(metrics), Block()).add(len(self.trials), metrics.values())
        self.trials.append(self.names.setdefault(trial, len(self.names)))
        self.stages.append(report["stage"])
        self.steps.append(number(report["step"]))
        self.seconds.append(number(report.get("seconds")))
        self.last[trial] = (metrics.get(self.metric), report["step"], report.get("seconds"))

    def frame(self, trials: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """One row per (trial, stage, step) of the trials that are known, the report written last."""
        known = {row["trial"]: row for row in trials}
        codes = np.asarray(self.trials)
        columns: dict[str, Any] = {}
        for key in SHARED:
            values = pd.Series([known.get(name, {}).get(key) for name in self.names], dtype=object)
            columns[key] = values.take(codes).to_numpy()
        columns["seed"] = pd.to_numeric(columns["seed"])
        columns["trial"] = pd.Index(list(self.names), dtype=object).take(codes)
        columns["stage"] = pd.Series(self.stages, dtype=object)
        columns |= {"step": np.asarray(self.steps), "seconds": np.asarray(self.seconds)}
        metrics = self._metrics()
        table = pd.DataFrame({**columns, **metrics}, columns=[*HISTORY_COLUMNS, *sorted(metrics)])
        stages = pd.factorize(table["stage"])[0]
        keys = pd.DataFrame({"trial": codes, "stage": stages, "step": table["step"]})
        mine = [code for name, code in self.names.items() if name in known]
        keep = ~keys.duplicated(keep="last").to_numpy() & np.isin(codes, mine)
        return table if keep.all() else table[keep]

    def _metrics(self) -> dict[str, Floats]:
        """One column per metric, nan in the rows of reports without it."""
        found: dict[str, Floats] = {}
        for names, block in self.blocks.items():
            rows, values = np.asarray(block.rows), np.asarray(block.values)
            for name, column in zip(names, values.reshape(len(rows), -1).T, strict=True):
                if name not in found:
                    found[name] = np.full(len(self.trials), NAN)
                found[name][rows] = column
        return found


def counted_on(reports: pd.DataFrame) -> pd.DataFrame:
    """Adds `total_step`: a stage that starts again at step 0 is put behind the one before it.

    Rows are ordered by trial, stage and step, trials and stages as they come.
    """
    reports = reports.assign(stage=reports["stage"].fillna(""))
    stages = reports.groupby(["trial", "stage"], sort=False)["step"]
    spans = stages.agg(["min", "max"])
    last: dict[str, float] = {}  # step of each trial
    offsets = []
    for (trial, _), first, end in spans.itertuples():
        before = last.get(trial, 0.0)
        offsets.append(before if first <= before else 0.0)
        last[trial] = end + offsets[-1]
    stage = stages.ngroup().to_numpy()
    total = reports["step"].to_numpy() + np.array(offsets)[stage]
    order = np.lexsort((total, stage, pd.factorize(reports["trial"])[0]))
    return reports.assign(total_step=total).iloc[order]


def number(value: Any) -> float:
    """The value as a float; nan for what is none."""
    return float(value) if isinstance(value, (int, float)) else NAN
