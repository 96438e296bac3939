"""One look for all figures: readable in print, on a dark page, and to the colour-blind."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from analysis.plots.figure import Figure, panel_grid
from tune_ssl.records import log

# After Okabe and Ito (2008), for the colour-blind, with those of theirs that vanish on a white or on a dark
# page replaced: each has a contrast of at least 3 on both.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B97A00", "#1F95B8", "#8E63C7", "#7F8F1F")
# Read against both page colours, so that a figure is legible before the page sets its own.
NEUTRAL = "#777B82"
GRID = "rgba(128,128,128,0.25)"
PAGE = {"light": "#ffffff", "dark": "#14171b"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SYMBOLS = {
    log.FINISHED: "circle",
    log.STOPPED: "triangle-down-open",
    log.DIVERGED: "x",
    log.COLLAPSED: "x-open",
    log.FAILED: "cross",
    "running": "circle-open",
}
# Low to high values, each seen on both page colours.
SCALE = ("#4B62B0", "#8463A8", "#B56A93", "#DB7A6C", "#EA943F", "#DDA63A")
STATUS_COLOURS = {
    log.FINISHED: "#009E73",
    log.STOPPED: "#1F95B8",
    log.DIVERGED: "#D55E00",
    log.COLLAPSED: "#CC79A7",
    log.FAILED: "#AA4A7A",
    "running": "#8A8A8A",
}
# Methods differ by these too, for print in grey.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "3px,2px", "12px,2px")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "bowtie")
AXIS_ROOM = 62  # pixels of an axis' ticks and title
LEGEND_ON_TOP = {"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"}
CONFIG = {
    "showSendToCloud": False,
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["toImage", "resetScale2d"]],
}


def colours(labels: Sequence[str]) -> dict[str, str]:
    """label -> colour, the same on every figure of a report."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def faded(colour: str, alpha: float = 0.18) -> str:
    """A hex colour as rgba, for bands."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def safe(text: object) -> str:
    """A name as plotly may draw it: its own small markup language is switched off."""
    return html.escape(str(text), quote=False)


def figure(x_title: str, y_title: str, height: int = 320) -> Figure:
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
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13, "color": NEUTRAL},
        "margin": {"l": 56, "r": 12, "t": 30, "b": 48},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": COLOURS[0]},
        "height": height,
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": safe(x_title), "standoff": 8}},
        "yaxis": {**axis, "title": {"text": safe(y_title), "standoff": 8}},
    }
    return Figure(layout)


def wrapped(key: str, longest: int = 12) -> str:
    """A config or metric key as a tick label: a line for each part, and of long parts each word."""
    parts = safe(key).replace(".", ".<br>").replace("/", "/<br>").split("<br>")
    return "<br>".join(p.replace("_", "_<br>") if len(p) > longest else p for p in parts)


def halved(key: str) -> str:
    """A config key as an axis title: of a long one the last part stands below."""
    first, dot, last = key.rpartition(".")
    return f"{safe(first)}.<br>{safe(last)}" if dot and len(key) > 18 else safe(key)


def panels(
    titles: Sequence[str],
    columns: int,
    y_title: str = "",
    height: int = 230,
    row_heights: Sequence[float] | None = None,
    gap: float | None = None,
) -> Figure:
    """Panels side by side in the common look, `columns` to a row of `height` pixels."""
    columns = max(1, min(columns, len(titles)))
    rows = -(-len(titles) // columns)
    shown = [safe(title) for title in titles]
    fig = panel_grid(shown, columns, gap or 0.3 / (columns + 2), 0.34 / rows, row_heights)
    look = figure("", y_title, height=height * rows + 60).layout
    x_axis, y_axis = look.pop("xaxis"), look.pop("yaxis")
    title = y_axis.pop("title")
    fig.update_layout(**look)
    fig.update_xaxes(**x_axis, tickangle=0, tickfont={"size": 11})
    fig.update_yaxes(**y_axis)
    fig.update_yaxes(title=title, col=1)
    for note in fig.layout.get("annotations", ()):
        note["font"] = {"size": 12}
    fig.update_layout(margin={"t": 58}, legend=LEGEND_ON_TOP)
    return fig


def on_paper(figure: Figure, title: str, width: int) -> Figure:
    """A copy for a paper: black on white, `width` pixels wide, the title above."""
    text = json.dumps(figure.to_dict()).replace(NEUTRAL, "#000000").replace(GRID, "#d9d9d9")
    spec = json.loads(text)
    copy = Figure(spec["layout"])
    copy.data = spec["data"]
    above = 26 if title else 0
    copy.update_layout(
        width=width,
        height=copy.layout["height"] + above,
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        font={"color": "#000000", "family": "Helvetica, Arial, sans-serif"},
        margin={"t": copy.layout["margin"]["t"] + above},
        modebar=None,
    )
    legend = copy.layout.get("legend", {})
    height, margin = copy.layout["height"], copy.layout["margin"]
    if legend.get("yref") == "container":
        copy.update_layout(legend={"y": 1 - above / height})
    else:  # below the axis: above the plot it would run into the title
        below = AXIS_ROOM / max(height - margin["t"] - margin["b"], 1)
        copy.update_layout(legend={"y": -below, "yanchor": "top"})
    if title:
        look = {"text": safe(title), "font": {"size": 15}, "x": 0.02, "xanchor": "left"}
        place = {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 8}}
        copy.update_layout(title={**look, **place})
    return copy


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two hex colours, 1 to 21."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
