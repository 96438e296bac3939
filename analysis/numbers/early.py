"""Ranks on the way: how the search trials' order at each evaluation agrees with their order at the end.

Early stopping believes the first; the config is chosen by the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.read.history import counted_on
from analysis.read.load import Runs
from analysis.read.search_space import finished, search_cells
from tune_ssl.records import log

COLUMNS = str.split("condition labels method metric step share correlation trials stopped rung")
LEAST = 4  # trials with a value, of which a rank correlation is shown
MOST = 12  # evaluations of a condition and method; those where trials were stopped come on top


def early_ranks(runs: Runs) -> pd.DataFrame:
    """Per condition, method and evaluation: Spearman's rank `correlation` of the value there and at the end.

    It is over the finished search `trials` with a value there, of at least LEAST. `share` is the
    evaluation's part of their training steps. `stopped` trials ended there by the scheduler, and
    `rung` says whether any did. An evaluation at which all values tie, or all ends, is left out.
    """
    history = {key: rows for key, rows in runs.history.groupby(["run", "condition"], sort=False)}
    cells = zip(runs.conditions["run"], runs.conditions["condition"], strict=True)
    labels = dict(zip(cells, runs.conditions["labels"], strict=True))
    rows: list[dict[str, Any]] = []
    for study, condition, trials in search_cells(runs):
        reports = history.get((study.run, condition))
        if reports is None or study.metric not in reports:
            continue
        own = {"condition": condition, "labels": labels[study.run, condition]}
        own |= {"method": study.label, "metric": study.metric}
        rows += [{**own, **row} for row in _cell_rows(trials, reports, study.metric)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _cell_rows(
    trials: pd.DataFrame, reports: pd.DataFrame, metric: str
) -> Iterator[dict[str, Any]]:
    """The evaluations of one condition and method, in order."""
    reports = reports[reports["trial"].isin(trials["trial"])]
    if reports.empty:
        return
    reports = counted_on(reports)[["trial", "total_step", metric]]
    # Of any stage, also where the metric is not measured yet
    stopped = _stopped_at(trials, reports)
    reports = reports[np.isfinite(reports[metric])]
    ended = finished(trials).set_index("trial")["value"].astype(float)
    reports = reports[reports["trial"].isin(ended.index)]
    reports = reports.assign(end=reports["trial"].map(ended))
    found = reports.groupby("total_step").agg(
        trials=("trial", "size"), here=(metric, "nunique"), ends=("end", "nunique")
    )
    usable = (found["trials"] >= LEAST) & (found["here"] > 1) & (found["ends"] > 1)
    kept = _kept(list(found.index[usable]), set(stopped.index))
    for step, there in reports[reports["total_step"].isin(kept)].groupby("total_step"):
        yield {
            "step": step,
            "share": step / reports["total_step"].max(),
            # Spearman's, of its definition: scipy.stats takes seconds to import
            "correlation": float(there[metric].rank().corr(there["end"].rank())),
            "trials": len(there),
            "stopped": int(stopped.get(step, 0)),
            "rung": step in stopped.index,
        }


def _stopped_at(trials: pd.DataFrame, reports: pd.DataFrame) -> pd.Series:
    """Step -> how many trials the scheduler stopped there; one that ran out of time is none of them."""
    stopped = trials[trials["status"] == log.STOPPED]
    cut = [
        log.was_cut({"event": log.STOPPED, "reason": reason})
        for reason in stopped["reason"].fillna("").astype(str)
    ]
    names = stopped.loc[~np.array(cut, dtype=bool), "trial"]
    last = reports.groupby("trial")["total_step"].max()
    return last[last.index.isin(names)].value_counts()


def _kept(steps: list[float], rungs: set[float]) -> list[float]:
    """At most MOST steps, evenly spaced with the first and the last, and all `rungs` among them."""
    if len(steps) <= MOST:
        return steps
    needed = rungs & set(steps)
    places = np.linspace(0, len(steps) - 1, max(2, MOST - len(needed))).round().astype(int)
    return sorted(needed | {steps[place] for place in places})
