"""A figure as the plain data that plotly.js draws, without what plotly's own classes check at every step.

The tests hand each figure to those classes, which refuse a key or value that plotly.js does not know.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

AXIS = re.compile(r"[xy]axis\d*")  # of a layout's keys

Layout = dict[str, Any]


class Figure:
    """Traces and a layout, which grow by the methods; columns of tables may stand in both.

    `columns` panels stand in a row of a figure that has several; `row` and `col` count from 1.
    """

    def __init__(self, layout: Mapping[str, Any] | None = None, columns: int = 1) -> None:
        self.data: list[dict[str, Any]] = []
        self.layout: Layout = merged({}, layout or {})
        self.columns = columns

    def add_scatter(self, **trace: Any) -> None:
        """Marks at the frame are drawn whole."""
        whole = {"cliponaxis": False} if "markers" in trace.get("mode", "") else {}
        self._add("scatter", {**whole, **trace})

    def add_bar(self, **trace: Any) -> None:
        self._add("bar", trace)

    def add_heatmap(self, **trace: Any) -> None:
        self._add("heatmap", trace)

    def add_line(self, **line: Any) -> None:
        """A straight line from (x0, y0) to (x1, y1)."""
        self.layout.setdefault("shapes", []).append({"type": "line", **line})

    def add_note(self, **note: Any) -> None:
        """A text at (x, y)."""
        self.layout.setdefault("annotations", []).append({"showarrow": False, **note})

    def update_layout(self, **own: Any) -> None:
        self.layout = merged(self.layout, own)

    def update_xaxes(self, row: int | None = None, col: int | None = None, **own: Any) -> None:
        """Of the panel at row and col; of all panels of a row or column, or of the figure, without."""
        self._update("xaxis", row, col, own)

    def update_yaxes(self, row: int | None = None, col: int | None = None, **own: Any) -> None:
        self._update("yaxis", row, col, own)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, as plotly.js takes it."""
        return {"data": plain(self.data), "layout": plain(self.layout)}

    def _add(self, kind: str, trace: dict[str, Any]) -> None:
        if "row" in trace:
            number = _number((trace.pop("row") - 1) * self.columns + trace.pop("col") - 1)
            trace |= {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        self.data.append({"type": kind, **trace})

    def _update(self, axis: str, row: int | None, col: int | None, own: Layout) -> None:
        for place, key in enumerate(self._axes(axis)):
            at_row, at_col = divmod(place, self.columns)
            if row in (None, at_row + 1) and col in (None, at_col + 1):
                self.layout[key] = merged(self.layout[key], own)

    def _axes(self, axis: str) -> Iterator[str]:
        return (key for key in list(self.layout) if AXIS.fullmatch(key) and key.startswith(axis))


def panel_grid(
    titles: Sequence[str],
    columns: int,
    gap: float,
    row_gap: float,
    row_heights: Sequence[float] | None = None,
) -> Figure:
    """A figure of panels, `columns` in a row, each with a title above.

    Gaps are shares of the figure; heights are relative to each other.
    """
    rows = -(-len(titles) // columns)
    heights = row_heights or [1.0] * rows
    scale = (1 - row_gap * (rows - 1)) / sum(heights)
    width = (1 - gap * (columns - 1)) / columns
    fig = Figure(columns=columns)
    for place, title in enumerate(titles):
        row, col = divmod(place, columns)
        left, below = col * (width + gap), sum(heights[row + 1 :]) * scale
        bottom = below + (rows - 1 - row) * row_gap
        top, number = bottom + heights[row] * scale, _number(place)
        x_axis = {"anchor": f"y{number}", "domain": [left, left + width]}
        y_axis = {"anchor": f"x{number}", "domain": [bottom, top]}
        fig.layout |= {f"xaxis{number}": x_axis, f"yaxis{number}": y_axis}
        if title:
            at = {"x": left + width / 2, "xref": "paper", "xanchor": "center"}
            fig.add_note(text=title, **at, y=top, yref="paper", yanchor="bottom")
    return fig


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> Layout:
    """`common` with what `own` says otherwise, at any depth."""
    found = dict(common)
    for key, value in own.items():
        inner = found.get(key)
        if isinstance(value, Mapping):
            value = merged(inner if isinstance(inner, Mapping) else {}, value)
        found[key] = value
    return found


def plain(value: Any) -> Any:
    """A value as JSON takes it: columns of fractions as plotly's typed arrays, nan as null, no unset keys."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (pd.Series, pd.Index, pd.DataFrame)):
        value = value.to_numpy()
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and value.size:
            kind = f"f{value.dtype.itemsize}"
            found = {"dtype": kind, "bdata": base64.b64encode(value.tobytes()).decode()}
            shape = {"shape": ", ".join(map(str, value.shape))} if value.ndim > 1 else {}
            return found | shape
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(place: int) -> str:
    """The number in the name of a panel's axes: the first one has none."""
    return str(place + 1) if place else ""
