"""Parallel coordinates: the finished search trials through all searched keys to their value.

Drawn as plain lines, as plotly's own need WebGL, of which a page gets only a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, file_name
from analysis.plots.figure import Figure
from analysis.plots.search import value_scale
from analysis.read.load import Runs
from analysis.read.search_space import Key, finished, search_cells, searched_keys, spread

COLUMNS = str.split("condition method trial axis setting place value group metric")
MOST_LINES = 200
GROUPS = len(style.SCALE)


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition and method with at least two finished trials and searched keys."""
    for study, condition, trials in search_cells(runs):
        keys = searched_keys(study)
        ended = finished(trials)
        rows = line_table(ended, keys, study.metric, study.mode)
        rows = rows.assign(condition=condition, method=study.label)[COLUMNS]
        if rows["trial"].nunique() < 2 or len(keys) < 2:
            continue
        count = rows["trial"].nunique()
        which = f"All {count}" if count == len(ended) else f"{count} of {len(ended):,}"
        caption = (
            f"{which} finished search trials of {study.label}, a line each, coloured by {study.metric} "
            "on validation in groups of about equal size, the lightest the best."
            + (
                " A line breaks at a key that is inactive in its trial."
                if any(k.when for k in keys)
                else ""
            )
        )
        name = file_name("search-parallel", condition, study.label)
        title = f"Parallel coordinates, {study.label}"
        figure = parallel_figure(rows, keys)
        yield Plot("search", name, title, figure, rows, caption, condition)


def line_table(trials: pd.DataFrame, keys: list[Key], metric: str, mode: str) -> pd.DataFrame:
    """A row per finished trial and axis, the metric's last; columns COLUMNS without the cell's.

    `place` is 0 to 1 along the axis, on the scale that was searched; `group` is by
    value, in up to GROUPS of about equal size, the best last. Of more than MOST_LINES trials a random subset is kept.
    A trial has no row at a key that is inactive in it.
    """
    whole = pd.Series(True, index=trials.index)
    for key in (key for key in keys if not key.when):
        whole &= key.column(trials).notna()
    trials = trials[whole]
    if len(trials) > MOST_LINES:
        trials = trials.sample(MOST_LINES, random_state=0).sort_index()
    value = trials["value"]
    best_last = value if mode == "max" else -value
    groups = max(1, min(GROUPS, len(trials) // 2))
    rank = best_last.rank(method="first") - 1
    group = (rank * groups // max(1, len(trials))).astype(int)
    span = value.max() - value.min()
    ends = (value - value.min()) / span if span else value * 0 + 0.5
    parts = []
    for key in keys:
        x = key.column(trials)
        place = key.unit(x) + spread(trials, key) / max(1, len(key.choices))
        rows = trials[["trial"]].assign(axis=key.name, setting=key.texts(x), place=place)
        parts.append(rows[x.notna()])
    shown = (value_scale([metric])[0] * value).map("{:.4g}".format)
    parts.append(trials[["trial"]].assign(axis=metric, setting=shown, place=ends))
    own = [
        part.assign(value=value.loc[part.index], group=group.loc[part.index], metric=metric)
        for part in parts
    ]
    return pd.concat(own, ignore_index=True)


def parallel_figure(lines: pd.DataFrame, keys: list[Key]) -> Figure:
    """One condition's and method's lines. Takes rows of `line_table`, and the keys."""
    metric = lines["metric"].iloc[0]
    axes = [*(key.name for key in keys), metric]
    fig = style.figure("", "", height=360)
    at = {axis: i for i, axis in enumerate(axes)}
    scale, _ = value_scale([metric])
    steps = (GROUPS - 1) / max(1, lines["group"].max())
    for group, rows in lines.sort_values(["group", "trial"], kind="stable").groupby("group"):
        values = scale * rows["value"]
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial, own in rows.groupby("trial", sort=False):
            there = own.set_index("axis")
            settings, places = there["setting"].to_dict(), there["place"].to_dict()
            x += [*at.values(), None]
            y += [places.get(axis) for axis in axes] + [None]  # a line breaks at an inactive key
            text += [style.safe(f"{trial}: {a} {settings.get(a, '')}") for a in axes] + [""]
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=f"{values.min():.4g} to {values.max():.4g}",
            line={"color": style.SCALE[round(group * steps)], "width": 1.5},
            text=text,
            hovertemplate="%{text}<extra></extra>",
        )
    line = {"color": style.NEUTRAL, "width": 1}
    ticks = [(at[key.name], *tick) for key in keys for tick in _ticks(key)]
    low, high = scale * lines["value"].min(), scale * lines["value"].max()
    ticks += [(at[metric], 0.0, f"{low:.4g}"), (at[metric], 1.0, f"{high:.4g}")]
    beside = {"showarrow": False, "xanchor": "right", "xshift": -4, "font": {"size": 11}}
    fig.update_layout(
        meta="wide",  # the page gives it a row of its own
        annotations=[{"x": x, "y": y, "text": style.safe(t), **beside} for x, y, t in ticks],
        shapes=[
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line, "layer": "below"}
            for x in at.values()
        ],
    )
    names = [style.wrapped(axis) for axis in axes]
    fig.update_xaxes(tickvals=list(at.values()), ticktext=names, range=[-0.6, len(axes) - 0.7])
    fig.update_xaxes(showgrid=False, showline=False, ticks="", tickangle=0, tickfont={"size": 11})
    fig.update_yaxes(visible=False, range=[-0.06, 1.06])
    return fig


def _ticks(key: Key) -> list[tuple[float, str]]:
    """(place, label): every choice, or both ends and the middle."""
    values = pd.Series(range(len(key.choices)) if key.choices else [key.low, key.high], dtype=float)
    if not key.choices and not key.whole:
        middle = (key.low * key.high) ** 0.5 if key.log else (key.low + key.high) / 2
        values = pd.Series([key.low, middle, key.high])
    names = key.texts(values) if key.choices else [f"{value:.2g}" for value in values]
    return list(zip(key.unit(values), names, strict=True))
