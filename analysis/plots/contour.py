"""Contour: the value of finished search trials over the two numeric keys that mattered most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.numbers.importance import FANOVA
from analysis.plots import style
from analysis.plots.base import Plot, file_name
from analysis.plots.figure import Figure
from analysis.plots.search import value_scale
from analysis.plots.slices import key_axis
from analysis.read.load import Runs
from analysis.read.search_space import Key, finished, search_cells, searched_keys

COLUMNS = str.split("condition method kind trial x_key x y_key y value metric")
SMOOTHED = 10  # finished trials from which a surface is drawn
GRID = 24  # places along each key
MOST = 300
CLIPPED = 0.1  # of the values at each end share the end's colour
NEAR = float(np.exp(-0.5 * 2.0**2))  # a surface ends where no trial is within two bandwidths


def plots(runs: Runs, importance: pd.DataFrame) -> Iterator[Plot]:
    """One figure per condition and metric, a panel per method. `importance` orders the keys."""
    keys = {(study.label, key.name): key for study in runs.studies for key in searched_keys(study)}
    table = contour_table(runs, importance)
    for (condition, metric), rows in table.groupby(["condition", "metric"], sort=False):
        caption = (
            f"Finished search trials by {metric} on validation, over the two numeric keys of the "
            "largest fANOVA share where that is known, else the first two. The surface, drawn from "
            f"{SMOOTHED} trials, is their kernel-weighted mean, and ends where no trial is near; other "
            "keys vary beneath it. The tenth of the values at each end share a colour."
        )
        figure = contour_figure(rows, keys)
        name = file_name("search-contour", condition, metric)
        yield Plot("search", name, "Two keys", figure, rows, caption, str(condition))


def contour_table(runs: Runs, importance: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind `trial`, and of kind `surface` on a grid. Values in the metric's unit.

    Of more than MOST finished trials a random subset is taken.
    """
    parts = []
    for study, condition, trials in search_cells(runs):
        ended = finished(trials)
        pair = _two_keys(searched_keys(study), ended, importance, study.label, condition)
        if pair is None:
            continue
        if len(ended) > MOST:
            ended = ended.sample(MOST, random_state=0)
        x, y = (key.column(ended) for key in pair)
        points = ended[["trial", "value"]].assign(kind="trial", x=x, y=y)
        points = points[x.notna() & y.notna()]
        both = [points]
        if len(points) >= SMOOTHED:
            both.append(surface(points, *pair).assign(kind="surface"))
        own = {"condition": condition, "method": study.label, "metric": study.metric}
        names = {"x_key": pair[0].name, "y_key": pair[1].name}
        parts += [part.assign(**own, **names).reindex(columns=COLUMNS) for part in both]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def surface(points: pd.DataFrame, x_key: Key, y_key: Key) -> pd.DataFrame:
    """x, y and value on a grid: the Gaussian-kernel mean of the trials' values (Nadaraya 1964).

    Bandwidths by Scott's rule in the unit square of the two domains; it cannot leave the range of
    the values. Places far from all trials are left out.
    """
    at = np.column_stack([x_key.unit(points["x"]), y_key.unit(points["y"])])
    bandwidth = np.maximum(at.std(axis=0, ddof=1), 0.05) * len(at) ** (-1 / 6)
    ticks = (np.arange(GRID) + 0.5) / GRID
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    distance = (((grid[:, None] - at[None]) / bandwidth) ** 2).sum(axis=2)
    weight = np.exp(-0.5 * distance)
    value = weight @ points["value"].to_numpy(float) / np.maximum(weight.sum(axis=1), 1e-300)
    found = pd.DataFrame({"x": x_key.place(grid[:, 0]), "y": y_key.place(grid[:, 1])})
    found["value"] = np.where(weight.max(axis=1) >= NEAR, value, np.nan)
    return found.dropna()


def contour_figure(table: pd.DataFrame, keys: Mapping[tuple[str, str], Key]) -> Figure:
    """One condition: a panel per method. Takes `contour_table` and (method, key name) -> Key."""
    scale, unit = value_scale(table["metric"])
    methods = list(dict.fromkeys(table["method"]))
    columns = min(2, len(methods))
    fig = style.panels(methods if len(methods) > 1 else [""], 2, "", height=300, gap=0.26)
    for place, (method, rows) in enumerate(table.groupby("method", sort=False)):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        smooth, trials = rows[rows["kind"] == "surface"], rows[rows["kind"] == "trial"]
        if len(smooth):
            grid = smooth.pivot(index="y", columns="x", values="value")
            fig.add_heatmap(
                x=grid.columns,
                y=grid.index,
                z=(scale * grid).round(6),
                coloraxis="coloraxis",
                opacity=0.55,
                hovertemplate="smoothed %{z:.4g}<extra></extra>",
                **at,
            )
        fig.add_scatter(
            x=trials["x"],
            y=trials["y"],
            mode="markers",
            marker={
                "color": scale * trials["value"],
                "coloraxis": "coloraxis",
                "size": 9,
                "line": {"color": style.NEUTRAL, "width": 1},
            },
            text=[
                f"{style.safe(trial)}: {scale * value:.4g}"
                for trial, value in zip(trials["trial"], trials["value"], strict=True)
            ],
            hovertemplate="%{text}<br>x %{x:.4g}, y %{y:.4g}<extra></extra>",
            showlegend=False,
            **at,
        )
        x_key, y_key = (keys[str(method), rows[f"{axis}_key"].iloc[0]] for axis in "xy")
        small = {"font": {"size": 11}, "standoff": 4}
        fig.update_xaxes(**key_axis(x_key), title=small | {"text": style.halved(x_key.name)}, **at)
        fig.update_yaxes(**key_axis(y_key), title=small | {"text": style.halved(y_key.name)}, **at)
    colours = [(i / (len(style.SCALE) - 1), colour) for i, colour in enumerate(style.SCALE)]
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    values = scale * table.loc[table["kind"] == "trial", "value"]
    ends = {"cmin": values.quantile(CLIPPED), "cmax": values.quantile(1 - CLIPPED)}
    if ends["cmin"] == ends["cmax"]:
        ends = {}
    fig.update_layout(coloraxis={"colorscale": colours, "colorbar": bar, **ends})
    return fig


def _two_keys(
    keys: list[Key], ended: pd.DataFrame, importance: pd.DataFrame, method: str, condition: str
) -> tuple[Key, Key] | None:
    """The two numeric keys of the largest fANOVA share that vary together; in the study's order without it.

    Keys that are never active in one trial are no pair.
    """
    own = importance[(importance["method"] == method) & (importance["condition"] == condition)]
    own = own[own["evaluator"] == FANOVA]
    share = dict(zip(own["key"], own["share"].fillna(0), strict=True))
    found = [key for key in keys if not key.choices and key.column(ended).nunique() > 1]
    found.sort(key=lambda key: -share.get(key.name, 0.0))
    columns = {key.name: key.column(ended) for key in found}
    for x, y in itertools.combinations(found, 2):
        both = pd.DataFrame({"x": columns[x.name], "y": columns[y.name]}).dropna()
        if (both.nunique() > 1).all():
            return x, y
    return None
