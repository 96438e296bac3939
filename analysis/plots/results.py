"""What was found on test data: accuracy against the number of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
import plotly.graph_objects as go

from analysis import style
from analysis.display import interval
from analysis.load import Runs
from analysis.plots.base import Plot, Tables, band

WIDE = 8  # a label axis that spans more than this factor is logarithmic


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Label efficiency, once configurations have been confirmed."""
    results = tables["results"]
    if results["mean"].notna().any():
        figure = label_efficiency_figure(results, colours)
        yield Plot("efficiency", "label-efficiency", "", figure, results)


def label_efficiency_figure(
    results: pd.DataFrame, colours: Mapping[str, str], logarithmic: bool | None = None
) -> go.Figure:
    """Test accuracy against the number of labels, a band per method. Takes `results_table`.

    Several conditions with one label count differ in something else: then points, no line.
    """
    fig = style.figure("labels", "mean per-class accuracy, %", height=420)
    found = results.dropna(subset=["labels", "mean"])
    for method, rows in found.groupby("method", sort=False):
        rows = rows.sort_values("labels")
        colour = colours[str(method)]
        curve = rows["labels"].is_unique and len(rows) > 1
        if curve and rows["low"].notna().all():
            band(fig, rows["labels"], 100 * rows["low"], 100 * rows["high"], colour, str(method))
        error = {
            "symmetric": False,
            "array": 100 * (rows["high"] - rows["mean"]),
            "arrayminus": 100 * (rows["mean"] - rows["low"]),
            "thickness": 1.5,
        }
        cells = zip(rows["mean"], rows["low"], rows["high"], strict=True)
        fig.add_scatter(
            x=rows["labels"],
            y=100 * rows["mean"],
            error_y=None if curve else error,
            mode="lines+markers" if curve else "markers",
            name=style.safe(method),
            legendgroup=style.safe(method),
            line={"color": colour, "width": 2},
            marker={"size": 9},
            text=[
                f"{style.safe(c)}<br>{interval(*cell)} %, {n} seeds"
                for c, cell, n in zip(rows["condition"], cells, rows["n"], strict=True)
            ],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    counts = sorted(found["labels"].unique())
    if logarithmic is None:
        logarithmic = bool(counts) and counts[0] > 0 and counts[-1] / counts[0] > WIDE
    ticks = {"tickvals": counts, "ticktext": [f"{count:,.0f}" for count in counts]}
    fig.update_xaxes(type="log" if logarithmic else "linear", **(ticks if len(counts) < 9 else {}))
    return fig
