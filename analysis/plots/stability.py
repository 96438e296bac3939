"""Stability: how search trials ended, by method and condition and by region of the space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from scipy import special

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, file_name, look
from analysis.plots.figure import Figure
from analysis.read.load import RUNNING, STATUSES, Runs
from analysis.read.search_space import Key, search_cells, searched_keys
from tune_ssl.records import log

SHARE_COLUMNS = str.split("condition method status trials of share")
REGION_COLUMNS = str.split("condition method panel key region place bad of share low high")
HATCHES = ("", "/", "x", ".", "\\", "-")
ROW = 24  # pixels of a bar
PANEL_COLUMNS = 2


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Endings of all conditions, and where bad endings lie under each condition that has any."""
    shares = ending_shares(runs)
    if len(shares):
        caption = (
            "All search trials by how they ended. Diverged: a loss or weight was not finite. "
            "Collapsed: all embeddings became alike. Failed: the program. Stopped early: by the scheduler."
        )
        figure = ending_figure(shares)
        yield Plot("stability", "stability-endings", "How trials ended", figure, shares, caption)
    for condition, rows in by_condition(bad_regions(runs)):
        caption = (
            "Share of ended search trials that diverged, collapsed or failed, in thirds of each key's "
            "domain on the scale that was searched, or by choice, with 95 % Wilson intervals. "
            "Exploratory: the search itself chose where trials lie. A key counts only trials in which it is active."
        )
        figure = region_figure(rows, colours)
        name = file_name("stability-regions", condition)
        title = "Where trials ended badly"
        yield Plot("stability", name, title, figure, rows, caption, condition)


def ending_shares(runs: Runs) -> pd.DataFrame:
    """Per condition, method and status of STATUSES: search `trials`, `of` how many, and the share."""
    rows = [
        {
            "condition": condition,
            "method": study.label,
            "status": status,
            "trials": int((trials["status"] == status).sum()),
            "of": len(trials),
            "share": float((trials["status"] == status).mean()),
        }
        for study, condition, trials in search_cells(runs)
        for status in STATUSES
    ]
    return pd.DataFrame(rows, columns=SHARE_COLUMNS)


def bad_regions(runs: Runs) -> pd.DataFrame:
    """Per condition with a bad ending, method, searched key and region: the share of bad endings.

    Regions are the thirds of a range (numbered by `place` 0 to 2) or the choices. `bad` of the `of`
    ended trials diverged, collapsed or failed; `low` and `high` are the Wilson interval.
    """
    rows: list[dict[str, Any]] = []
    ended = {
        (study.label, condition): (study, trials[trials["status"] != RUNNING])
        for study, condition, trials in search_cells(runs)
    }
    worst = {
        condition
        for (_, condition), (_, trials) in ended.items()
        if trials["status"].isin(log.BAD_ENDINGS).any()
    }
    for (label, condition), (study, trials) in ended.items():
        if condition not in worst:
            continue
        bad = trials["status"].isin(log.BAD_ENDINGS)
        for key in searched_keys(study):
            values = key.column(trials)
            place = values if key.choices else (key.unit(values) * 3).clip(upper=2.999) // 1
            own = {"condition": condition, "method": label, "panel": key.name, "key": key.name}
            for number, region in enumerate(_regions(key)):
                inside = place == number
                counts = {"bad": int((bad & inside).sum()), "of": int(inside.sum())}
                if counts["of"]:
                    share = _wilson(counts["bad"], counts["of"])
                    rows.append({**own, "region": region, "place": number, **counts, **share})
    return pd.DataFrame(rows, columns=REGION_COLUMNS)


def ending_figure(shares: pd.DataFrame) -> Figure:
    """A stacked bar per condition and method. Takes `ending_shares`."""
    cells = shares.drop_duplicates(["condition", "method"])
    fig = style.figure("search trials, %", "", height=len(cells) * ROW + 130)
    several = cells["method"].nunique() > 1
    for status, hatch in zip(STATUSES, HATCHES, strict=True):
        rows = shares[shares["status"] == status]
        if not rows["trials"].any():
            continue
        names = [
            style.safe(f"{c}, {m}" if several else c)
            for c, m in zip(rows["condition"], rows["method"], strict=True)
        ]
        fig.add_bar(
            x=100 * rows["share"],
            y=names,
            orientation="h",
            name=status.replace("_", " "),
            marker={
                "color": style.STATUS_COLOURS[status],
                "pattern": {
                    "shape": hatch,
                    "size": 6,
                    "solidity": 0.25,
                    "bgcolor": style.STATUS_COLOURS[status],
                    "fgcolor": "#ffffff",
                },
            },
            text=[f"{n} of {of}" for n, of in zip(rows["trials"], rows["of"], strict=True)],
            textposition="none",
            hovertemplate="%{y}: %{text} %{fullData.name}<extra></extra>",
        )
    legend = style.LEGEND_ON_TOP | {"traceorder": "normal"}
    fig.update_layout(barmode="stack", bargap=0.25, legend=legend, margin={"t": 58})
    fig.update_xaxes(range=[0, 100])
    fig.update_yaxes(autorange="reversed", type="category")
    return fig


def region_figure(regions: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition: a panel per searched key, methods side by side. Takes `bad_regions`."""
    titles = list(dict.fromkeys(regions["panel"]))
    fig = style.panels(titles, PANEL_COLUMNS, "ended badly, %", height=200)
    columns = min(PANEL_COLUMNS, len(titles))
    methods = list(dict.fromkeys(regions["method"]))
    for place, title in enumerate(titles):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        panel = regions[regions["panel"] == title]
        names = list(dict.fromkeys(panel.sort_values("place", kind="stable")["region"]))
        for i, method in enumerate(methods):
            rows = panel[panel["method"] == method]
            own = look(method, colours)
            shift = 0.12 * (i - (len(methods) - 1) / 2)
            fig.add_scatter(
                x=[names.index(region) + shift for region in rows["region"]],
                y=100 * rows["share"],
                error_y={
                    "symmetric": False,
                    "array": 100 * (rows["high"] - rows["share"]),
                    "arrayminus": 100 * (rows["share"] - rows["low"]),
                    "thickness": 1.5,
                    "width": 3,
                },
                mode="markers",
                name=style.safe(method),
                legendgroup=style.safe(method),
                showlegend=place == 0,
                marker={"color": own.colour, "symbol": own.symbol, "size": 8},
                text=[f"{n} of {of}" for n, of in zip(rows["bad"], rows["of"], strict=True)],
                hovertemplate="%{text} trials<extra>%{fullData.name}</extra>",
                **at,
            )
        ticks: dict[str, Any] = {
            "tickvals": list(range(len(names))),
            "ticktext": [_two_lines(n) for n in names],
        }
        fig.update_xaxes(**ticks, range=[-0.5, len(names) - 0.5], **at)
    fig.update_yaxes(range=[0, 105])
    fig.update_layout(showlegend=len(methods) > 1)
    return fig


def _regions(key: Key) -> list[str]:
    """What each region is called: the choice, or the ends of its third."""
    if key.choices:
        return list(key.texts(pd.Series(range(len(key.choices)), dtype=float)))
    edges = key.place(pd.Series([0, 1 / 3, 2 / 3, 1]))
    if key.whole:
        firsts = [math.ceil(edge) for edge in edges]
        return [f"{low} to {after - 1}" for low, after in itertools.pairwise(firsts)]
    ends = [f"{edge:.2g}" for edge in edges]
    return [f"{low} to {high}" for low, high in itertools.pairwise(ends)]


def _two_lines(region: str) -> str:
    return style.safe(region).replace(" to ", "<br>to ")


def _wilson(bad: int, of: int) -> dict[str, float]:
    """The share, and its 95 % interval of Wilson (1927), which cannot leave [0, 1]."""
    z, share = float(special.ndtri(0.975)), bad / of
    scale = 2 * (of + z**2)
    middle = (2 * of * share + z**2) / scale
    reach = z / scale * math.sqrt(4 * of * share * (1 - share) + z**2)
    low, high = middle - reach if bad else 0.0, middle + reach if bad < of else 1.0
    return {"share": share, "low": low, "high": high}
