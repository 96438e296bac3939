"""Rung survival: how many search trials reached each evaluation, and how the others ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, file_name, look
from analysis.plots.figure import Figure
from analysis.read.history import counted_on
from analysis.read.load import STATUSES, Runs
from analysis.read.search_space import search_cells
from tune_ssl.records import log

COLUMNS = ["condition", "method", "step", "reached", *STATUSES]
MOST_LEVELS = 100  # of a method; of more evaluations evenly spaced ones are kept
CAPTION = (
    "Search trials that reached each evaluation. A trial that the scheduler stopped, or that "
    "diverged, collapsed or failed, is lost after the last evaluation that it reached; one that "
    "still runs counts up to where it is."
)


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition under which a trial was lost."""
    for condition, rows in by_condition(rung_survival(runs)):
        if rows[[log.STOPPED, *log.BAD_ENDINGS]].to_numpy().any():
            figure = rung_figure(rows, colours)
            name = file_name("search-rungs", condition)
            yield Plot("search", name, "Rung survival", figure, rows, CAPTION, condition)


def rung_survival(runs: Runs) -> pd.DataFrame:
    """Per condition, method and evaluation, of any stage: how many search trials `reached` its step.

    The columns of STATUSES count the trials whose last evaluation that is; step 0 holds those
    without any. Steps count on over stages. Trials without history are left out with their method
    if no trial of it has any.
    """
    parts = []
    history = {key: rows for key, rows in runs.history.groupby(["run", "condition"], sort=False)}
    for study, condition, trials in search_cells(runs):
        reports = history.get((study.run, condition))
        if reports is None:
            continue
        reports = reports[reports["trial"].isin(trials["trial"])]
        if reports.empty:
            continue
        reports = counted_on(reports)
        steps = reports["total_step"]
        last = steps.groupby(reports["trial"]).max().reindex(trials["trial"]).fillna(0)
        levels = _levels(steps)
        # A level that was dropped counts for the one before it.
        place = pd.Series(levels).searchsorted(last, side="right") - 1
        ended = pd.crosstab(place, trials["status"].to_numpy())
        ended = ended.reindex(index=range(len(levels)), columns=list(STATUSES), fill_value=0)
        reached = ended.sum(axis=1)[::-1].cumsum()[::-1]
        own = {"condition": condition, "method": study.label}
        parts.append(ended.assign(**own, step=levels, reached=reached)[COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def rung_figure(survival: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition's survival, a step line per method. Takes `rung_survival`."""
    fig = style.figure("training step", "search trials", height=320)
    for method, rows in survival.groupby("method", sort=False):
        own = look(method, colours)
        fig.add_scatter(
            x=rows["step"],
            y=rows["reached"],
            mode="lines+markers" if len(rows) <= 30 else "lines",
            name=style.safe(method),
            line={"color": own.colour, "dash": own.dash, "width": 2, "shape": "vh"},
            marker={"size": 6, "symbol": own.symbol},
            text=[_endings(row) for row in rows.to_dict("records")],
            hovertemplate="%{y} reached step %{x}%{text}<extra>%{fullData.name}</extra>",
        )
    fig.update_yaxes(rangemode="tozero")
    return fig


def _levels(steps: pd.Series) -> list[float]:
    found = sorted({0.0, *map(float, steps)})
    if len(found) <= MOST_LEVELS:
        return found
    last = len(found) - 1
    return [found[round(i * last / (MOST_LEVELS - 1))] for i in range(MOST_LEVELS)]


def _endings(row: Mapping[Any, Any]) -> str:
    lost = [f"{row[status]} {status.replace('_', ' ')}" for status in STATUSES if row[status]]
    return "<br>last step of: " + ", ".join(lost) if lost else ""
