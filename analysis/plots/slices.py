"""Slices: the value of every search trial against each key that was searched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, file_name
from analysis.plots.figure import Figure
from analysis.plots.search import MOST_POINTS, all_search_trials, subset_note, thinned, value_scale
from analysis.read.load import Runs
from analysis.read.search_space import Key, search_cells, searched_keys, spread
from tune_ssl.records import log
from tune_ssl.records.domain import LOG_UNIFORM, UNIFORM

COLUMNS = str.split("condition method panel trial status setting x value metric")
PANEL_COLUMNS = 2

Axes = Mapping[tuple[str, str], tuple[str, Key]]  # (run label, key) -> (its panel, the panel's key)


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition."""
    axes = slice_axes(runs)
    counts = runs.trials[runs.trials["phase"] == log.SEARCH]["condition"].value_counts()
    for condition, rows in by_condition(slice_table(runs, axes)):
        shown = thinned(rows, MOST_POINTS)
        note = subset_note(len(shown), len(rows)).replace("trials", "points")
        caption = (
            f"{all_search_trials(rows, int(counts[condition]))} Keys were varied together, so that a slope in "
            f"one panel may be the work of another key.{only_active(runs, condition)}{note}"
        )
        figure = slice_figure(shown, dict(axes.values()), colours)
        name = file_name("search-slices", condition)
        yield Plot("search", name, "Slices", figure, shown, caption, condition)


def only_active(runs: Runs, condition: str) -> str:
    """A caption's sentence on keys that only some trials of a condition have; empty where there are none."""
    keys = (
        key
        for study, where, _ in search_cells(runs)
        if where == condition
        for key in searched_keys(study)
    )
    names = dict.fromkeys(key.name for key in keys if key.when)
    return (
        f" Of {', '.join(names)} only trials in which the key is active are shown." if names else ""
    )


def slice_axes(runs: Runs) -> Axes:
    """The panel of each run's keys: runs share one, unless the key is a range in one and a choice in another."""
    by_name: dict[str, list[tuple[str, Key]]] = {}
    for study in runs.studies:
        for key in searched_keys(study):
            by_name.setdefault(key.name, []).append((study.label, key))
    axes: dict[tuple[str, str], tuple[str, Key]] = {}
    for name, found in by_name.items():
        if len({bool(key.choices) for _, key in found}) > 1:
            axes |= {(label, name): (f"{name} ({label})", key) for label, key in found}
            continue
        shared = merged_key([key for _, key in found])
        axes |= {(label, name): (name, shared) for label, _ in found}
    return axes


def merged_key(keys: list[Key]) -> Key:
    """One key with the choices of all, or the widest range."""
    if keys[0].choices:
        named = {(type(value), value): value for key in keys for value in key.choices}
        return replace(keys[0], values=tuple(named.values()))
    low, high = min(key.low for key in keys), max(key.high for key in keys)
    log = low > 0 and any(key.log for key in keys)
    return replace(keys[0], kind=LOG_UNIFORM if log else UNIFORM, values=(low, high), step=None)


def slice_table(runs: Runs, axes: Axes) -> pd.DataFrame:
    """A row per search trial with a value and searched key.

    `x` is the number, or the place of the choice, off its tick by up to a quarter so that trials do
    not cover each other. `value` is the one at the end, or the last one reported.
    """
    parts = []
    for study, condition, trials in search_cells(runs):
        trials = trials.assign(value=trials["value"].fillna(trials["last"]))
        trials = trials[trials["value"].notna()]
        for key in searched_keys(study):
            panel, shared = axes[study.label, key.name]
            x = shared.column(trials)
            own = {"condition": condition, "method": study.label, "panel": panel}
            rows = trials[["trial", "status", "value"]].assign(
                **own, x=x + spread(trials, shared), setting=shared.texts(x), metric=study.metric
            )
            parts.append(rows.loc[x.notna(), COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def slice_figure(
    slices: pd.DataFrame, keys: Mapping[str, Key], colours: Mapping[str, str]
) -> Figure:
    """One condition's slices: colour is the method, the symbol how the trial ended.

    Takes `slice_table` and the key of each panel.
    """
    scale, unit = value_scale(slices["metric"])
    titles = list(dict.fromkeys(slices["panel"]))
    fig = style.panels(titles, PANEL_COLUMNS, unit, height=200)
    columns = min(PANEL_COLUMNS, len(titles))
    alone = slices["method"].nunique() == 1
    for name, symbol, colour in _entries(slices, colours, alone):
        marker = {"symbol": symbol, "size": 7, "color": colour}
        fig.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)
    for place, title in enumerate(titles):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        shown = slices[slices["panel"] == title]
        for (method, status), rows in shown.groupby(["method", "status"], sort=False):
            fig.add_scatter(
                x=rows["x"],
                y=scale * rows["value"],
                mode="markers",
                showlegend=False,
                marker={
                    "symbol": style.SYMBOLS[str(status)],
                    "size": 7,
                    "color": colours[str(method)],
                },
                text=[
                    f"{style.safe(trial)}, {style.safe(setting)}"
                    for trial, setting in zip(rows["trial"], rows["setting"], strict=True)
                ],
                hovertemplate="%{text}: %{y:.4g}<extra>"
                + f"{style.safe(method)}, {str(status).replace('_', ' ')}</extra>",
                **at,
            )
        fig.update_xaxes(**key_axis(keys[title]), **at)
    return fig


def _entries(
    slices: pd.DataFrame, colours: Mapping[str, str], alone: bool
) -> Iterator[tuple[str, str, str]]:
    """The legend's (name, symbol, colour): the statuses of one method, or the methods of several."""
    first = colours[str(slices["method"].iloc[0])]
    for name in slices["status" if alone else "method"].unique():
        if alone:
            yield str(name).replace("_", " "), style.SYMBOLS[str(name)], first
        else:
            yield style.safe(name), "circle", colours[str(name)]


def key_axis(key: Key) -> dict[str, Any]:
    """The axis of a searched key: logarithmic where the search was, choices by name."""
    if key.choices:
        places = list(range(len(key.choices)))
        names = [style.safe(name) for name in key.texts(pd.Series(places))]
        return {"tickvals": places, "ticktext": names, "range": [-0.5, len(places) - 0.5]}
    if key.log:
        ticks = log_ticks(key.low, key.high)
        names = [f"{tick:g}" for tick in ticks]
        return {"type": "log", "tickvals": ticks, "ticktext": names, "range": _padded(key)}
    return {"nticks": 6, "range": _padded(key)}


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with 2 and 5 or 3 between them where those are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = -(-len(decades) // 4)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        wanted = decades[::every] if steps == (1,) else decades
        found = [step * 10.0**power for power in wanted for step in steps]
        found = [tick for tick in found if 0.999 * low <= tick <= 1.001 * high]
        if len(found) > 2:
            break
    return found


def _padded(key: Key) -> list[float]:
    low, high = float(key.scaled(key.low)), float(key.scaled(key.high))
    return [low - 0.05 * (high - low), high + 0.05 * (high - low)]
