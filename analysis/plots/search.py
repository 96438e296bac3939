"""How the search went: every trial, and the best so far against trials and against compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, file_name, look
from analysis.plots.figure import Figure
from analysis.read.load import RUNNING, Runs
from analysis.read.search_space import search_cells
from analysis.read.values import is_share
from tune_ssl.records import log

PROGRESS_COLUMNS = str.split("condition method order trial status value best metric")
COST_COLUMNS = str.split("condition method metric order trial steps seconds best")
MOST_POINTS = 2000  # of a figure; of more trials a random subset is drawn


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Per condition: every trial in order, and the best so far against compute."""
    for condition, rows in by_condition(search_progress(runs)):
        shown = thinned(rows)
        caption = f"{all_search_trials(rows, len(rows))} The line is the best finished one so far."
        caption += subset_note(len(shown), len(rows))
        figure = search_figure(shown, colours)
        name = file_name("search", condition)
        yield Plot("search", name, "Search progress", figure, shown, caption, condition)
    cost = search_cost(runs)
    for (cell, metric), rows in cost.groupby(["condition", "metric"], sort=False):
        condition = str(cell)
        name = file_name("search-cost", condition, metric)
        figure = search_cost_figure(rows, colours)
        caption = (
            f"Best {metric} of a finished search trial so far, against what all trials up to it cost. In order of "
            "start, as if they ran one after the other; trials that still run are left out."
        )
        yield Plot("search", name, "Best against compute", figure, rows, caption, condition)


def all_search_trials(rows: pd.DataFrame, of: int) -> str:
    """A caption's sentences on figures of search trials, of which there are `of`: `metric` names what is shown."""
    shown = rows.loc[rows["value"].notna(), ["method", "trial"]].drop_duplicates()
    lost = of - len(shown)
    which = f"All {of} search trials" if not lost else f"{len(shown)} of {of} search trials"
    why = f"; the other {lost} ended before the metric was measured" if lost else ""
    return (
        f"{which}, one seed each{why}. Discs finished, triangles were stopped early, crosses ended badly, and rings "
        f"still run. Shown is {', '.join(dict.fromkeys(rows['metric']))} on validation at the end, or as last reported "
        "by a trial that did not finish."
    )


def value_scale(metrics: Iterable[str]) -> tuple[int, str]:
    """(factor, axis title) of validation values: a share is shown in percent."""
    names = list(dict.fromkeys(metrics))
    percent = bool(names) and all(map(is_share, names))
    return (100, "validation, %") if percent else (1, "validation")


def thinned(rows: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """At most `most` rows, in order: a random subset, the same each time.

    Each method's first and last row stay, and where `best` changes.
    """
    if len(rows) <= most:
        return rows
    kept = set(rows.sample(most, random_state=0).index)
    if "best" in rows:
        by_method = rows.groupby("method", sort=False)["best"]
        steps = rows["best"].ne(by_method.shift()) & rows["best"].notna()
        kept |= {*rows.index[steps], *rows.groupby("method").tail(1).index}
    return rows[rows.index.isin(kept)]


def subset_note(shown: int, of: int) -> str:
    """A caption's sentence on what `thinned` left out."""
    return "" if shown == of else f" A random {shown:,} of {of:,} trials are drawn."


def search_progress(runs: Runs) -> pd.DataFrame:
    """Every search trial in start order; `best` is the best value of a finished trial so far.

    `value` is the value at the end, or the last one reported where the trial did not finish.
    """
    parts = []
    for study, condition, own in search_cells(runs):
        own = own.assign(
            value=own["value"].fillna(own["last"]),
            best=_best_so_far(own, study.mode),
            metric=study.metric,
            condition=condition,
            method=study.label,
            order=range(1, len(own) + 1),
        )
        parts.append(own[PROGRESS_COLUMNS])
    if not parts:
        return pd.DataFrame(columns=PROGRESS_COLUMNS)
    return pd.concat(parts, ignore_index=True)


def search_cost(runs: Runs) -> pd.DataFrame:
    """Per ended search trial in start order: steps and device-seconds of it and all before it.

    `best` is the best value of a finished trial so far. A trial without a count adds nothing.
    """
    parts = []
    for study, condition, own in search_cells(runs):
        own = own[own["status"] != RUNNING]
        own = own.assign(
            best=_best_so_far(own, study.mode),
            steps=own["step"].fillna(0).cumsum(),
            seconds=own["seconds"].fillna(0).cumsum(),
            metric=study.metric,
            condition=condition,
            method=study.label,
            order=range(1, len(own) + 1),
        )
        parts.append(thinned(own[own["best"].notna()])[COST_COLUMNS])
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COST_COLUMNS)


def search_figure(progress: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition's search: a marker per trial, its symbol the status, and the best so far.

    Trials without a value cannot be placed; the caption counts them (`unplaced`).
    """
    scale, unit = value_scale(progress["metric"])
    alone = progress["method"].nunique() == 1
    fig = style.figure("trial, in order of start", unit, height=320)
    for method, rows in progress.groupby("method", sort=False):
        colour = colours[str(method)]
        name = style.safe(method)
        for status, trials in rows.groupby("status", sort=False):
            fig.add_scatter(
                x=trials["order"],
                y=scale * trials["value"],
                mode="markers",
                name=str(status).replace("_", " "),
                legendgroup=None if alone else name,
                showlegend=alone,
                marker={"symbol": style.SYMBOLS[str(status)], "size": 9, "color": colour},
                text=[style.safe(trial) for trial in trials["trial"]],
                hovertemplate="%{text}: %{y:.4g}<extra>" + name + ", %{fullData.name}</extra>",
            )
        fig.add_scatter(
            x=rows["order"],
            y=scale * rows["best"],
            mode="lines",
            name="best so far" if alone else name,
            legendgroup=None if alone else name,
            line={"color": colour, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    fig.update_layout(legend=style.LEGEND_ON_TOP, margin={"t": 58})
    return fig


def search_cost_figure(cost: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition: the best so far against steps and against device-seconds, a line per method."""
    scale, unit = value_scale(cost["metric"])
    fig = style.panels(["", ""], 2, unit, height=270)
    for method, rows in cost.groupby("method", sort=False):
        own = look(method, colours)
        for column, spent in enumerate(("steps", "seconds"), 1):
            fig.add_scatter(
                x=rows[spent],
                y=scale * rows["best"],
                mode="lines+markers" if len(rows) == 1 else "lines",
                name=style.safe(method),
                legendgroup=style.safe(method),
                showlegend=column == 1,
                line={"color": own.colour, "dash": own.dash, "width": 2, "shape": "hv"},
                hovertemplate="%{y:.4g} after %{x:,.0f} "
                + spent
                + "<extra>%{fullData.name}</extra>",
                row=1,
                col=column,
            )
    fig.update_xaxes(title={"text": "training steps"}, col=1)
    fig.update_xaxes(title={"text": "device-seconds"}, col=2)
    return fig


def _best_so_far(trials: pd.DataFrame, mode: str) -> pd.Series:
    values = trials["value"].where(trials["status"] == log.FINISHED)
    values = values.where(np.isfinite(values))
    return (values.cummax() if mode == "max" else values.cummin()).ffill()
