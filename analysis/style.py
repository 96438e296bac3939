"""One look for all figures: readable in print, on a dark page, and to the colour-blind."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from tune_ssl import records

# Okabe and Ito (2008), without black and yellow, which vanish on a dark and on a light page;
# the last one is from Tol (2021), so that eight methods differ.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#882255")
# Read against both page colours, so that a figure is legible before the page sets its own.
NEUTRAL = "#777B82"
GRID = "rgba(128,128,128,0.25)"
PAGE = {"light": "#ffffff", "dark": "#14171b"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SYMBOLS = {
    records.FINISHED: "circle",
    records.STOPPED: "triangle-down-open",
    records.DIVERGED: "x",
    records.COLLAPSED: "x-open",
    records.FAILED: "cross",
    "running": "circle-open",
}
DASHES = ("solid", "dash", "dot", "dashdot")
CONFIG = {
    "showSendToCloud": False,
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "resetScale2d"]],
}


def colours(labels: Sequence[str]) -> dict[str, str]:
    """label -> colour, the same on every figure of a report."""
    return {label: OKABE_ITO[i % len(OKABE_ITO)] for i, label in enumerate(labels)}


def faded(colour: str, alpha: float = 0.18) -> str:
    """A hex colour as rgba, for bands."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def safe(text: object) -> str:
    """A name as plotly may draw it: its own small markup language is switched off."""
    return html.escape(str(text), quote=False)


def figure(x_title: str, y_title: str, height: int = 320) -> go.Figure:
    """An empty figure in the common look. The page draws the background and sets text colour."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": NEUTRAL,
        "showline": True,
        "ticks": "outside",
        "tickcolor": NEUTRAL,
        "automargin": True,
        "title": {"standoff": 8},
    }
    layout = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": NEUTRAL},
        "margin": {"l": 56, "r": 12, "t": 30, "b": 48},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": OKABE_ITO[0]},
        "height": height,
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": safe(x_title), "standoff": 8}},
        "yaxis": {**axis, "title": {"text": safe(y_title), "standoff": 8}},
    }
    return go.Figure(layout=layout)


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two hex colours, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
