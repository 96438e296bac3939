"""What was found on test data: accuracy, and its paired differences, against the number of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.numbers.stats import ALPHA
from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, band, confirmed_by, error_bars, look, spans_wide
from analysis.plots.figure import Figure
from analysis.read.load import Runs
from analysis.words.display import INTERVALS, interval

DODGE = 0.025  # of the axis: how far methods stand apart at one label count
SPAN = 0.2  # of the axis, at most, over which all methods at one label count stand
MOST_BANDS = 4  # methods; the bands of more hide each other, and bars take their place
LEGEND_ROW = 20  # pixels
NEAR = 0.06  # of an axis: of two label counts nearer than that one has no tick


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Label efficiency and differences, once configurations have been confirmed."""
    results, differences = tables["results"], tables["differences"]
    if results["mean"].notna().any():
        seeds = confirmed_by(results.loc[results["mean"].notna(), "n"])
        caption = f"Test accuracy with {INTERVALS}. {seeds}"
        figure = label_efficiency_figure(results, colours)
        title = "Test accuracy against labels"
        yield Plot("efficiency", "label-efficiency", title, figure, results, caption)
    if differences["mean"].notna().any():
        reference = " or ".join(dict.fromkeys(differences["reference"]))
        seeds = confirmed_by(differences.loc[differences["mean"].notna(), "n"])
        caption = (
            f"Test accuracy of each method minus that of {reference}, paired by seed. Filled: p < 0.05 after Holm's "
            f"correction over all of them. Bars are {INTERVALS}, not corrected. {seeds} Points of one label count "
            "are set apart to be seen."
        )
        figure = difference_figure(differences, colours)
        title = f"Difference to {reference}"
        yield Plot("efficiency", "label-differences", title, figure, differences, caption)


def label_efficiency_figure(
    results: pd.DataFrame, colours: Mapping[str, str], logarithmic: bool | None = None
) -> Figure:
    """Test accuracy against the number of labels, a band per method. Takes `results_table`.

    Where a method has one label count twice or unknown, conditions differ in something else: then
    points over the conditions, no line.
    """
    found = results.dropna(subset=["mean"])
    methods = list(dict.fromkeys(found["method"]))
    height = 360 + LEGEND_ROW * -(-len(methods) // 2)
    fig = style.figure("labels", "mean per-class accuracy, %", height=height)
    over_labels = _label_axis(fig, found, logarithmic)
    for place, method in enumerate(methods):
        own = look(method, colours)
        rows = found[found["method"] == method].sort_values("labels", kind="stable")
        curve = over_labels and len(rows) > 1
        banded = curve and bool(rows["low"].notna().all()) and len(methods) <= MOST_BANDS
        if banded:
            low, high = 100 * rows["low"], 100 * rows["high"]
            band(fig, rows["labels"], low, high, own.colour, str(method))
        fig.add_scatter(
            x=_aside(rows["labels"], found["labels"], 0 if banded else _step(place, len(methods)))
            if over_labels
            else rows["condition"].map(style.safe),
            y=100 * rows["mean"],
            error_y=None if banded else {**error_bars(rows, 100), "thickness": 1, "width": 0},
            mode="lines+markers" if curve else "markers",
            name=style.safe(method),
            legendgroup=style.safe(method),
            line={"color": own.colour, "width": 2, "dash": own.dash},
            marker={"size": 9, "symbol": own.symbol, "color": own.colour},
            text=_cells(rows, "seeds"),
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    fig.update_layout(showlegend=len(methods) > 1, legend={"font": {"size": 11}})
    return fig


def difference_figure(differences: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Paired differences in points against the number of labels. Takes `difference_table`."""
    fig = style.figure("labels", "difference, points", height=360)
    found = differences.dropna(subset=["mean"])
    over_labels = _label_axis(fig, found, None)
    zero = {"color": style.NEUTRAL, "width": 1.5}
    fig.add_line(x0=0, x1=1, xref="x domain", y0=0, y1=0, line=zero)
    methods = list(dict.fromkeys(found["method"]))
    for place, method in enumerate(methods):
        rows = found[found["method"] == method]
        own = look(method, colours)
        aside = _step(place, len(methods))
        fig.add_scatter(
            x=_aside(rows["labels"], found["labels"], aside)
            if over_labels
            else rows["condition"].map(style.safe),
            y=100 * rows["mean"],
            error_y=error_bars(rows, 100),
            mode="markers",
            name=style.safe(method),
            marker={
                "size": 9,
                "symbol": [own.symbol + ("" if p < ALPHA else "-open") for p in rows["p_holm"]],
                "color": own.colour,
            },
            text=_cells(rows, "pairs", "+"),
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    fig.update_layout(showlegend=True)
    return fig


def _label_axis(fig: Figure, found: pd.DataFrame, logarithmic: bool | None) -> bool:
    """Sets the axis of labels, or of conditions where labels do not tell them apart; whether labels."""
    known = found["labels"].notna().all()
    if not known or found.duplicated(["method", "labels"]).any():
        fig.update_xaxes(type="category", title={"text": "condition"})
        fig.update_layout(scattermode="group", scattergap=0.8)
        return False
    counts = sorted(found["labels"].unique())
    if logarithmic is None:
        logarithmic = spans_wide(found["labels"])
    shown = _apart(counts, logarithmic)
    fig.update_xaxes(
        type="log" if logarithmic else "linear",
        tickvals=shown,
        ticktext=[f"{count:,.0f}" for count in shown],
    )
    return True


def _step(place: int, methods: int) -> float:
    """How many steps of DODGE a method stands aside: of many, less, so that all have room."""
    return (place - (methods - 1) / 2) * min(1.0, SPAN / DODGE / methods)


def _apart(counts: list[float], logarithmic: bool) -> list[float]:
    """The label counts whose ticks have room beside each other, the smallest and the largest among them."""
    places = np.log(counts) if logarithmic else np.array(counts)
    least = NEAR * float(np.ptp(places))
    kept = [0]
    for place in range(1, len(counts)):
        if places[place] - places[kept[-1]] >= least:
            kept.append(place)
        elif place == len(counts) - 1 and len(kept) > 1:
            kept[-1] = place
    return [counts[place] for place in kept]


def _aside(labels: pd.Series, all_labels: pd.Series, steps: float) -> pd.Series:
    """Label counts moved by steps of DODGE of the axis that they are drawn on."""
    low, high = all_labels.min(), all_labels.max()
    if spans_wide(all_labels):
        return labels.mul((high / low) ** (steps * DODGE))
    return labels.add(steps * DODGE * ((high - low) or 1))


def _cells(rows: pd.DataFrame, what: str, sign: str = "") -> list[str]:
    numbers = zip(
        rows["condition"], rows["mean"], rows["low"], rows["high"], rows["n"], strict=True
    )
    unit = "points" if sign else "%"
    return [
        f"{style.safe(condition)}<br>{interval(mean, low, high, sign)} {unit}, {n} {what}"
        for condition, mean, low, high, n in numbers
    ]
