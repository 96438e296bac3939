"""How the search went: every trial, and the best so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
import plotly.graph_objects as go

from analysis import style
from analysis.load import Runs
from analysis.plots.base import Plot, Tables, by_condition
from tune_ssl import records

PROGRESS_COLUMNS = str.split("condition method order trial status value best metric")


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition."""
    for condition, rows in by_condition(search_progress(runs)):
        without = unplaced(rows)
        caption = "Validation value: " + ", ".join(dict.fromkeys(rows["metric"])) + "."
        caption += f" {without} trial(s) without a value are not drawn." if without else ""
        figure = search_figure(rows, colours)
        yield Plot("search", f"search-{condition}", condition, figure, rows, caption, condition)


def search_progress(runs: Runs) -> pd.DataFrame:
    """Every search trial in start order; `best` is the best value of a finished trial so far.

    `value` is the value at the end, or the last one reported where the trial did not finish.
    """
    trials = runs.trials[runs.trials["phase"] == records.SEARCH]
    parts = []
    for (run, condition), own in trials.groupby(["run", "condition"], sort=False):
        study = runs.study(str(run))
        own = own.sort_values("number", kind="stable")
        finished = own["value"].where(own["status"] == records.FINISHED)
        best = finished.cummax() if study.mode == "max" else finished.cummin()
        shown = own["value"].fillna(own["last"])
        part = (
            own[["trial", "status"]]
            .assign(value=shown)
            .assign(best=best.ffill(), metric=study.metric)
        )
        part = part.assign(
            condition=str(condition), method=study.label, order=range(1, len(own) + 1)
        )
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=PROGRESS_COLUMNS)
    return pd.concat(parts, ignore_index=True)[PROGRESS_COLUMNS]


def search_figure(progress: pd.DataFrame, colours: Mapping[str, str]) -> go.Figure:
    """One condition's search: a marker per trial, its symbol the status, and the best so far.

    Trials without a value cannot be placed; the caption counts them (`unplaced`).
    """
    metrics = list(dict.fromkeys(progress["metric"]))
    percent = all("accuracy" in metric for metric in metrics)
    scale = 100 if percent else 1
    alone = progress["method"].nunique() == 1
    fig = style.figure("trial, in order of start", "%" if percent else "", height=320)
    for method, rows in progress.groupby("method", sort=False):
        colour = colours[str(method)]
        name = style.safe(method)
        for status, trials in rows.groupby("status", sort=False):
            fig.add_scatter(
                x=trials["order"],
                y=scale * trials["value"],
                mode="markers",
                name=str(status).replace("_", " "),
                legendgroup=name,
                showlegend=alone,
                marker={"symbol": style.SYMBOLS[str(status)], "size": 9, "color": colour},
                text=[style.safe(trial) for trial in trials["trial"]],
                hovertemplate="%{text}: %{y:.4g}<extra>" + name + ", %{fullData.name}</extra>",
            )
        fig.add_scatter(
            x=rows["order"],
            y=scale * rows["best"],
            mode="lines",
            name="best finished so far" if alone else name,
            legendgroup=name,
            line={"color": colour, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    return fig


def unplaced(progress: pd.DataFrame) -> int:
    """How many trials of a search figure have no value."""
    return int(progress["value"].isna().sum())
