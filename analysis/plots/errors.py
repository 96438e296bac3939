"""Which images are taken for what: confusion matrices, and precision, recall and F1 per class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.numbers.stats import mean_interval
from analysis.numbers.tables import Tables, confirm_trials
from analysis.plots import style
from analysis.plots.base import Plot, confirmed_by, error_bars, file_name, look
from analysis.plots.figure import Figure, merged
from analysis.read.load import Runs
from analysis.read.study import Study
from analysis.words.display import INTERVALS, interval
from tune_ssl.records import log

CONFUSION = "test/confusion"
CONFUSION_COLUMNS = str.split("condition method true predicted share count images n")
CLASS_COLUMNS = str.split("condition method class measure mean low high n")
MEASURES = ("precision", "recall", "F1")
READABLE = 30  # classes: beyond, cells have no text
TICKS = 16  # class names on an axis
LONG = 12  # characters of a class name on an axis
ROOM = 45  # characters of all of them side by side
# From the page's ground to a blue that both dark and light numbers are read on; steps grow with the square,
# since errors are rare.
SHADES = [(t * t, f"rgba(74,125,184,{t:.3f})") for t in np.linspace(0, 1, 9)]

Floats = npt.NDArray[np.float64]
# study, condition, K class names, counts of S seeds (S, K, K), trials whose matrix is left out
Cell = tuple[Study, str, list[str], Floats, int]


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Per condition: the classes of all methods, and each method's confusion matrix."""
    cells = list(confusions(runs))
    confused, classes = confusion_table(cells), class_table(cells)
    for condition, rows in classes.groupby("condition", sort=False):
        seeds = confirmed_by(rows["n"])
        caption = (
            f"Per class of the test images, with {INTERVALS}. A class that is never given has "
            f"precision 0. {seeds}"
        )
        figure = class_figure(rows, colours)
        name = file_name("classes", condition)
        title = "Precision, recall and F1 per class"
        yield Plot("errors", name, title, figure, rows, caption, str(condition))
    for study, condition, names, counts_SKK, others in cells:
        mine = (confused["condition"] == condition) & (confused["method"] == study.label)
        caption = (
            "Share of the test images of each true class (row), in percent, mean over seeds. "
            "The shade grows with the root of the share. " + confirmed_by([len(counts_SKK)])
        )
        if others:
            caption += f" {others} trial(s) whose matrix does not fit the classes are left out."
        figure = confusion_figure(confused[mine], names)
        name = file_name("confusion", condition, study.label)
        title = f"Confusion, {study.label}"
        yield Plot("errors", name, title, figure, confused[mine], caption, condition)


def matrices(
    runs: Runs, column: str, fits: Callable[[Study, tuple[int, ...]], bool]
) -> Iterator[tuple[Study, str, Floats, int]]:
    """(study, condition, the matrices of S finished confirm trials (S, ., .), how many are left out).

    Left out are those that are no matrix of counts, do not `fit`, are all 0, or have another shape
    than the first one that does. Nothing where no trial of a condition has one.
    """
    trials = confirm_trials(runs)
    if column not in trials:
        return
    trials = trials[trials["status"] == log.FINISHED]
    for row in runs.conditions.to_dict("records"):
        study = runs.study(str(row["run"]))
        own = (trials["run"] == study.run) & (trials["condition"] == row["condition"])
        listed = [value for value in trials.loc[own, column] if isinstance(value, list)]
        counts = [matrix for matrix in map(_matrix, listed) if matrix is not None]
        found = [matrix for matrix in counts if fits(study, matrix.shape) and matrix.any()]
        same = [matrix for matrix in found if matrix.shape == found[0].shape]
        if same:
            yield study, str(row["condition"]), np.stack(same), len(listed) - len(same)


def confusions(runs: Runs) -> Iterator[Cell]:
    """The confusion matrices of each condition and method."""

    def fits(study: Study, shape: tuple[int, ...]) -> bool:
        return shape[0] == shape[1] and len(_classes(study)) in (0, shape[0])

    for study, condition, counts_SKK, others in matrices(runs, CONFUSION, fits):
        names = _classes(study) or [str(number) for number in range(counts_SKK.shape[1])]
        yield study, condition, names, counts_SKK, others


def confusion_table(cells: list[Cell]) -> pd.DataFrame:
    """A row per condition, method, true and predicted class that occur together.

    `count` is summed over the n seeds, as `images`, the row's total; `share` is the mean over seeds
    of count / images.
    """
    parts = []
    for study, condition, names, counts_SKK, _ in cells:
        images_SK1 = counts_SKK.sum(axis=2, keepdims=True)
        shares_SKK = np.divide(
            counts_SKK, images_SK1, out=np.full_like(counts_SKK, np.nan), where=images_SK1 > 0
        )
        total_KK = counts_SKK.sum(axis=0)
        true, predicted = np.nonzero(total_KK)
        part = {
            "condition": condition,
            "method": study.label,
            "true": np.array(names, dtype=object)[true],
            "predicted": np.array(names, dtype=object)[predicted],
            "share": np.nanmean(shares_SKK[:, true, predicted], axis=0),
            "count": total_KK[true, predicted],
            "images": total_KK.sum(axis=1)[true],
            "n": (images_SK1[:, :, 0] > 0).sum(axis=0)[true],
        }
        parts.append(pd.DataFrame(part))
    if not parts:
        return pd.DataFrame(columns=CONFUSION_COLUMNS)
    return pd.concat(parts, ignore_index=True)[CONFUSION_COLUMNS]


def class_table(cells: list[Cell]) -> pd.DataFrame:
    """Per condition, method, class that has test images and measure: the mean over seeds and its interval.

    precision = TP / (TP + FP), 0 where the class is never given; recall = TP / (TP + FN);
    F1 = 2 TP / (2 TP + FP + FN).
    """
    rows = []
    for study, condition, names, counts_SKK, _ in cells:
        hits_SK = np.diagonal(counts_SKK, axis1=1, axis2=2)
        given_SK, images_SK = counts_SKK.sum(axis=1), counts_SKK.sum(axis=2)
        tops = (hits_SK, hits_SK, 2 * hits_SK)
        bottoms = (given_SK, images_SK, given_SK + images_SK)
        for measure, top_SK, bottom_SK in zip(MEASURES, tops, bottoms, strict=True):
            values_SK = np.divide(top_SK, bottom_SK, out=np.zeros_like(top_SK), where=bottom_SK > 0)
            values_SK = np.where(images_SK > 0, values_SK, np.nan)
            for name, found in zip(names, map(mean_interval, values_SK.T), strict=True):
                own = (condition, study.label, name, measure)
                rows.append((*own, found.mean, found.low, found.high, found.n))
    table = pd.DataFrame(rows, columns=CLASS_COLUMNS)
    return table[table["n"] > 0].reset_index(drop=True)


def confusion_figure(cells: pd.DataFrame, names: list[str]) -> Figure:
    """One matrix, K x K: rows are the true classes. Takes one cell's rows of `confusion_table`."""
    fig = style.figure("predicted", "true", height=320 if len(names) <= TICKS else 440)
    places = {name: index for index, name in enumerate(names)}
    true, predicted = cells["true"].map(places), cells["predicted"].map(places)
    share_KK = np.full((len(names), len(names)), np.nan, dtype=np.float32)
    share_KK[true.unique()] = 0
    share_KK[true, predicted] = 100 * cells["share"]
    counts_KK = np.zeros((len(names), len(names)), dtype=np.int32)
    counts_KK[true, predicted] = cells["count"]
    few = len(names) <= READABLE
    shown = [[f"{z:.0f}" if z >= 0.5 else "" for z in row] for row in share_KK] if few else None
    safe = [style.safe(name) for name in names]
    fig.add_heatmap(
        x=safe,
        y=safe,
        z=share_KK,
        customdata=counts_KK,
        text=shown,
        texttemplate="%{text}" if few else None,
        zmin=0,
        zmax=100,
        colorscale=SHADES,
        xgap=1 if few else 0,
        ygap=1 if few else 0,
        showscale=not few,
        colorbar={"thickness": 10, "ticksuffix": " %", "outlinewidth": 0},
        hovertemplate="%{y} taken for %{x}: %{z:.1f} %, %{customdata} images of all seeds<extra></extra>",
    )
    ticks = class_ticks(names)
    ticks["tickvals"] = [safe[place] for place in ticks["tickvals"]]
    fig.update_xaxes(type="category", showgrid=False, **ticks)
    ticks["tickangle"] = 0
    fig.update_yaxes(type="category", showgrid=False, autorange="reversed", **ticks)
    return fig


def class_figure(classes: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition: precision, recall and F1 under each other, a mark per class and method."""
    fig = style.figure("class", "", height=520)
    names = list(dict.fromkeys(classes["class"]))
    methods = list(dict.fromkeys(classes["method"]))
    plain = fig.layout["yaxis"]
    places = {name: index for index, name in enumerate(names)}
    for row, measure in enumerate(MEASURES):
        axis, top = f"y{row + 1 if row else ''}", 1 - row * 0.345
        own_axis = {**plain, "domain": [top - 0.31, top], "nticks": 5, "ticksuffix": " %"}
        own_axis |= {"title": {"text": measure}}
        fig.layout[f"yaxis{axis[1:]}"] = merged(plain, own_axis)
        for place, method in enumerate(methods):
            own = look(method, colours)
            mine = classes[(classes["method"] == method) & (classes["measure"] == measure)]
            aside = 0.7 * ((place + 0.5) / len(methods) - 0.5)
            numbers = zip(mine["class"], mine["mean"], mine["low"], mine["high"], strict=True)
            fig.add_scatter(
                x=mine["class"].map(places) + aside,
                y=100 * mine["mean"],
                error_y={**error_bars(mine, 100), "width": 0},
                yaxis=axis,
                mode="markers",
                name=style.safe(method),
                legendgroup=style.safe(method),
                showlegend=row == 0 and len(methods) > 1,
                marker={"color": own.colour, "symbol": own.symbol, "size": 7},
                text=[f"{style.safe(name)}: {interval(*cell)} %" for name, *cell in numbers],
                hovertemplate="%{text}<extra>" + f"{style.safe(method)}, {measure}</extra>",
            )
    ticks = class_ticks(names)
    fig.update_xaxes(anchor="y3", range=[-0.6, len(names) - 0.4], **ticks)
    return fig


def class_ticks(names: list[str]) -> dict[str, Any]:
    """Ticks at the places of all classes on an axis, or of every so many, long names cut."""
    step = -(-len(names) // TICKS)
    shown = [name if len(name) <= LONG else f"{name[:5]}…{name[6 - LONG :]}" for name in names]
    return {
        "tickvals": list(range(0, len(names), step)),
        "ticktext": [style.safe(name) for name in shown[::step]],
        "tickangle": 90 if sum(map(len, shown[::step])) > ROOM else 0,
    }


def _classes(study: Study) -> list[str]:
    """The names of a study's classes; none where they are not on record or not distinct."""
    found = study.dataset.get("classes")
    names = [str(name) for name in found] if isinstance(found, list) else []
    return names if len(set(names)) == len(names) else []


def _matrix(value: list[object]) -> Floats | None:
    """A list of equally long lists of counts as an array, or None if it is none."""
    try:
        found = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return None
    return found if found.ndim == 2 and np.isfinite(found).all() and (found >= 0).all() else None
