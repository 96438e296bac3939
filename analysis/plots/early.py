"""Ranks on the way against the end: whether early stopping could know which trials are good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.numbers.early import LEAST
from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, file_name, look
from analysis.plots.figure import Figure
from analysis.read.load import Runs

CAPTION = (
    "Spearman's rank correlation of the value at an evaluation with the one at the end, over the finished "
    f"search trials (at least {LEAST}). Stopped trials are not in it: it is measured among those that survived. "
    "Markers: evaluations at which trials were stopped."
)


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition with at least two such evaluations of a method."""
    table = tables.get("early_ranks", pd.DataFrame(columns=["condition"]))
    for condition, rows in by_condition(table):
        if rows["method"].duplicated().any():
            name = file_name("search-early-ranks", condition)
            figure = early_figure(rows, colours)
            yield Plot("search", name, "Ranks on the way", figure, rows, CAPTION, condition)


def early_figure(ranks: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition: a line per method, marked where trials were stopped. Takes `early_ranks`."""
    fig = style.figure(
        "share of the training steps, %", "rank correlation with the end", height=320
    )
    for method, rows in ranks.groupby("method", sort=False):
        own = look(method, colours)
        stopped = [f"<br>stopped there: {n}" if n else "" for n in rows["stopped"]]
        texts = zip(rows["step"], rows["trials"], stopped, strict=True)
        fig.add_scatter(
            x=100 * rows["share"],
            y=rows["correlation"],
            mode="lines+markers",
            name=style.safe(method),
            line={"color": own.colour, "dash": own.dash, "width": 2},
            marker={
                "symbol": own.symbol,
                "size": [9 if rung else 0 for rung in rows["rung"]],
                "opacity": 1,
            },
            text=[f"step {step:,.0f}, {trials} trials{more}" for step, trials, more in texts],
            hovertemplate="%{y:.2f} at %{text}<extra>%{fullData.name}</extra>",
        )
    fig.update_xaxes(range=[0, 102])
    fig.update_yaxes(range=[-1.05, 1.05])
    return fig
