"""The critical-difference diagram: which methods' average ranks differ (Demsar 2006, figure 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.plots import style
from analysis.plots.base import Plot, Tables, confirmed_by, look
from analysis.plots.figure import Figure
from analysis.read.load import Runs

ROW = 34  # pixels
BAR = 0.06  # of the span of ranks: between the bars of groups


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One diagram, where there are methods and conditions enough for a rank table."""
    ranks = tables.get("ranks", pd.DataFrame())
    if ranks.empty:
        return
    row = ranks.iloc[0]
    results = tables["results"]
    p = row["friedman_p"]
    test = "all scores tie" if math.isnan(p) else f"Friedman's test: p = {p:.3g}"
    caption = (
        f"Average rank by test accuracy over {row['conditions']} conditions, 1 is best (Demsar "
        f"2006). Bars join methods that do not differ: by less than Nemenyi's critical difference "
        f"of {row['critical_difference']:.2f}, or all of them where Friedman's test finds no "
        f"difference at p < 0.05 ({test}). "
        + confirmed_by(results.loc[results["mean"].notna(), "n"])
    )
    if row["left_out"]:
        caption += f" Left out: {row['left_out']}."
    figure = critical_difference_figure(ranks, colours)
    yield Plot("results", "critical-difference", "Average ranks", figure, ranks, caption)


def critical_difference_figure(ranks: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """A line per method, best at the top, and at the right a bar over the lines of each group.

    Demsar's diagram turned upright, so that long names have room. Takes `comparisons.rank_table`.
    """
    table = ranks.sort_values("rank", kind="stable", ignore_index=True)
    names = [style.safe(method) for method in table["method"]]
    looks = [look(method, colours) for method in table["method"]]
    count = len(table)
    fig = style.figure("average rank", "", height=130 + ROW * count)
    for place, (own, rank) in enumerate(zip(looks, table["rank"], strict=True)):
        line = {"color": own.colour, "width": 1.5}
        fig.add_line(x0=1, x1=rank, y0=place, y1=place, line=line)
    fig.add_scatter(
        x=table["rank"],
        y=list(range(count)),
        mode="markers+text",
        marker={
            "size": 11,
            "color": [own.colour for own in looks],
            "symbol": [own.symbol for own in looks],
        },
        text=[f"{rank:.2f}" for rank in table["rank"]],
        textposition="top center",
        customdata=names,
        hovertemplate="%{customdata}: average rank %{x:.2f}<extra></extra>",
        showlegend=False,
    )
    bars = groups(table)
    aside = BAR * (count - 1)
    for place, rows in enumerate(bars):
        x = count + (place + 1) * aside
        thick = {"color": style.NEUTRAL, "width": 6}
        ends = {"y0": rows[0] - 0.25, "y1": rows[-1] + 0.25}
        fig.add_line(x0=x, x1=x, **ends, line=thick)
    difference = table["critical_difference"].iloc[0]
    ruler = {"color": style.NEUTRAL, "width": 2}
    fig.add_line(x0=1, x1=1 + difference, y0=-1.1, y1=-1.1, line=ruler)
    text = f"critical difference {difference:.2f}"
    fig.add_note(x=1, y=-1.1, text=text, xanchor="left", yanchor="bottom")
    last = max(count + (len(bars) + 1) * aside, 1 + difference)
    fig.update_xaxes(range=[1 - aside, last], tickvals=list(range(1, count + 1)))
    fig.update_yaxes(
        range=[count - 0.4, -2], tickvals=list(range(count)), ticktext=names, showgrid=False
    )
    return fig


def groups(ranks: pd.DataFrame) -> list[list[int]]:
    """For each letter that two or more methods share, the places of its methods by rank."""
    found: dict[str, list[int]] = {}
    for place, letters in enumerate(ranks.sort_values("rank", kind="stable")["groups"]):
        for letter in str(letters).split():
            found.setdefault(letter, []).append(place)
    return [places for places in found.values() if len(places) > 1]
