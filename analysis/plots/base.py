"""What a figure of the report is, and what several of them draw with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from analysis import style

Tables = Mapping[str, pd.DataFrame]  # the report's tables by stem: report.all_tables


@dataclass(frozen=True)
class Plot:
    """A figure with the numbers that it draws, which the report offers as CSV.

    `section` is the part of the report it stands in; `name` is unique in a report; `group` is the
    condition, where a section has a figure of each; `caption` names the selection rule wherever
    trials were chosen.
    """

    section: str
    name: str
    title: str
    figure: go.Figure
    table: pd.DataFrame
    caption: str = ""
    group: str = ""


def by_condition(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(condition, its rows), in order of appearance."""
    for condition, rows in table.groupby("condition", sort=False):
        yield str(condition), rows


def band(
    fig: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, method: str
) -> None:
    """Add the area between `low` and `high`, in the method's colour."""
    fig.add_scatter(
        x=pd.concat([x, x[::-1]]),
        y=pd.concat([high, low[::-1]]),
        fill="toself",
        fillcolor=style.faded(colour),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=style.safe(method),
    )
