"""Importance of the searched keys by two evaluators, and the contour of the two that lead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.numbers.importance import FANOVA, LEVEL, MOST, PED_ANOVA, REST, importance_table
from analysis.numbers.tables import Tables
from analysis.plots import contour, style
from analysis.plots.base import Plot, by_condition, file_name
from analysis.plots.figure import Figure
from analysis.read.load import Runs

LOOKS = {FANOVA: ("circle", "#0072B2", 0.17), PED_ANOVA: ("diamond-open", "#D55E00", -0.17)}
ROW = 34  # pixels of a key


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition that has enough finished trials, and its contour."""
    found = importance_table(runs)
    for condition, rows in by_condition(found):
        figure = importance_figure(rows)
        name = file_name("importance", condition)
        yield Plot(
            "importance", name, "Importance", figure, rows, importance_caption(rows), condition
        )
    yield from contour.plots(runs, found)


def importance_caption(rows: pd.DataFrame) -> str:
    """What one condition's figure rests on. Takes rows of `importance_table`."""
    cells = rows[rows["evaluator"] == FANOVA].groupby("method", sort=False).first()
    counts, fits = [], []
    for method, cell in cells.iterrows():
        used, ended = int(cell["used"]), int(cell["finished"])
        random = f" (a random {used} of {ended:,})" if used < ended else ""
        counts.append(f"{method} {used}{random}")
        fits.append(f"{method} {cell['explained']:.2f}")
    resamples = int(rows["resamples"].max())
    if resamples:
        bars = f"Bars: {LEVEL:.0%} percentile bootstrap over trials, {resamples} resamples."
    else:
        bars = "No intervals: there are too many conditions for a bootstrap of each."
    return (
        f"Exploratory: claims belong to the ablation. fANOVA: the share of the variance over the domain that a "
        f"key explains alone. '{REST}' is what keys do together, and noise. PED-ANOVA: how far the best trials' "
        f"values of a key are from all trials', scaled to sum to 1. Finished search trials only, at most {MOST}: "
        f"{', '.join(counts)}. "
        f"{bars} Out-of-bag R2 of fANOVA's forest: {', '.join(fits)}; "
        "near 0 or below, its shares say nothing."
    )


def importance_figure(importance: pd.DataFrame) -> Figure:
    """One condition: a panel per method, its keys by fANOVA share. Takes `importance_table`."""
    methods = list(dict.fromkeys(importance["method"]))
    keys = {m: _ordered(importance[importance["method"] == m]) for m in methods}
    sizes = [len(keys[method]) + 0.6 for method in methods]
    fig = style.panels(methods if len(methods) > 1 else [""], 1, "", row_heights=sizes)
    fig.update_layout(height=int(sum(sizes) * ROW + 46 * len(methods) + 90))
    for row, method in enumerate(methods, 1):
        own = importance[importance["method"] == method]
        height = {key: float(i) for i, key in enumerate(reversed(keys[method]))}
        for evaluator, (symbol, colour, shift) in LOOKS.items():
            shown = own[(own["evaluator"] == evaluator) & own["share"].notna()]
            fig.add_scatter(
                x=shown["share"],
                y=[height[key] + shift for key in shown["key"]],
                error_x={
                    "symmetric": False,
                    "array": (shown["high"] - shown["share"]).clip(lower=0),
                    "arrayminus": (shown["share"] - shown["low"]).clip(lower=0),
                    "thickness": 1.5,
                    "width": 3,
                },
                mode="markers",
                name=evaluator,
                legendgroup=evaluator,
                showlegend=row == 1,
                marker={"symbol": symbol, "color": colour, "size": 9},
                text=[style.safe(key) for key in shown["key"]],
                hovertemplate="%{text}: %{x:.2f}<extra>%{fullData.name}</extra>",
                row=row,
                col=1,
            )
        names = [style.safe(key) for key in height]
        ticks = {"tickvals": list(height.values()), "ticktext": names}
        fig.update_yaxes(**ticks, range=[-0.6, len(height) - 0.4], row=row, col=1)
        fig.update_xaxes(range=[-0.02, 1.02], row=row, col=1)
    fig.update_xaxes(title={"text": "share of importance"}, row=len(methods), col=1)
    return fig


def _ordered(rows: pd.DataFrame) -> list[str]:
    found = rows[rows["evaluator"] == FANOVA].sort_values("share", ascending=False, kind="stable")
    keys = [str(key) for key in found["key"] if key != REST]
    return [*keys, REST]
