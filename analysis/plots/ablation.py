"""What each part of a method is worth: forest plots of paired differences to the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.numbers.stats import ALPHA
from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, error_bars, file_name, look
from analysis.plots.figure import Figure
from analysis.read.load import Runs
from analysis.read.values import is_share, missing
from analysis.words.display import INTERVALS
from tune_ssl.records import log

LONGEST = 28  # characters of a row's name before it wraps
GAP, LINE = 16, 16  # pixels: between rows, and of a line of a row's name
FOREST_COLUMNS = str.split("condition method row metric mean low high n significant detail")


VARIANTS = (
    "Each row changes one thing of the frozen chosen configuration: difference to it, paired by "
    f"seed, with {INTERVALS}. Filled: p < 0.05 after Holm's correction of the paired t test."
)
EFFECTS = (
    f"Main effects and interactions of the switches, with {INTERVALS}. Filled: p < 0.05 after Holm's "
    "correction of the t test."
)


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """A forest of variants, and one of factorial effects, per condition and method."""
    sources = (
        ("ablation", "Variant minus reference", variant_rows, VARIANTS),
        ("effects", "Factorial effects", effect_rows, EFFECTS),
    )
    modes = {study.label: study.mode for study in runs.studies}
    for stem, title, read, caption in sources:
        if stem not in tables or tables[stem].empty:
            continue
        found = read(tables[stem]).groupby(["condition", "method"], sort=False)
        for (condition, method), rows in found:
            if rows["mean"].isna().all():
                continue  # planned, but nothing finished yet
            rows = worst_first(rows, modes[str(method)])
            counts = sorted({int(n) for n in rows["n"].dropna()})
            spread = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(*counts)
            metric = rows["metric"].iloc[0]
            text = f"{caption} {metric} of ablation trials, {spread} seed(s) per row."
            figure = forest_figure(rows, look(method, colours).colour)
            name = file_name(stem, condition, method)
            yield Plot(
                "ablation",
                name,
                f"{title}: {method}",
                figure,
                rows,
                text,
                str(condition),
            )


def variant_rows(ablation: pd.DataFrame) -> pd.DataFrame:
    """`ablation_table` -> a row per variant but the reference; `mean` is its difference to it."""
    table = ablation[ablation["variant"] != log.REFERENCE]
    rows = [
        {
            "condition": row["condition"],
            "method": row["method"],
            "row": row["variant"] + (" (retuned)" if row["retuned"] else ""),
            "metric": row["metric"],
            "mean": row["diff"],
            "low": row["diff_low"],
            "high": row["diff_high"],
            "n": row["pairs"],
            "significant": bool(row["p_holm"] < ALPHA),
            "detail": _details(row),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=FOREST_COLUMNS)


def effect_rows(effects: pd.DataFrame) -> pd.DataFrame:
    """`effect_table` -> a row per effect, with the columns of `variant_rows`."""
    table = effects.rename(columns={"effect": "row"})
    return table.assign(significant=table["p_holm"] < ALPHA, detail="")[FOREST_COLUMNS]


def worst_first(rows: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Rows by effect, the most harmful first, those without a difference last."""
    return rows.sort_values(
        "mean", ascending=mode != "min", kind="stable", na_position="last", ignore_index=True
    )


def forest_figure(rows: pd.DataFrame, colour: str) -> Figure:
    """A line per row, from the top: accuracies in points. The height grows with the rows."""
    names = [broken_name(row) for row in rows["row"]]
    shares = all(is_share(str(metric)) for metric in rows["metric"])
    scale, unit = (100, "points") if shares else (1, "")
    tall = pd.Series([GAP + LINE * (name.count("<br>") + 1) for name in names], index=rows.index)
    places = tall.cumsum() - tall / 2  # in pixels, a row with a long name taking more
    title = f"difference, {unit}" if unit else "difference"
    fig = style.figure(title, "", height=90 + int(tall.sum()))
    zero = {"color": style.NEUTRAL, "width": 1.5}
    fig.add_line(x0=0, x1=0, y0=0, y1=1, yref="y domain", line=zero)
    for significant, drawn in rows.groupby("significant", sort=False):
        fig.add_scatter(
            x=scale * drawn["mean"],
            y=places[drawn.index],
            error_x={**error_bars(drawn, scale), "color": colour},
            mode="markers",
            marker={
                "size": 11,
                "symbol": "circle" if significant else "circle-open",
                "color": colour,
                "line": {"width": 2, "color": colour},
            },
            text=[_hover(row, scale, unit) for row in drawn.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    for place in places[rows["mean"].isna()]:
        fig.add_note(x=0, y=place, text="no pairs", xanchor="left")
    fig.update_yaxes(range=[tall.sum(), 0], tickvals=list(places), ticktext=names)
    return fig


def broken_name(name: object) -> str:
    """A row's name on lines of at most LONGEST characters where it can be broken, as plotly's markup."""
    lines = [""]
    for part in re.findall(r"[^\s._+=]*[\s._+=]*", str(name)):
        if len(lines[-1]) + len(part) > LONGEST and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "<br>".join(style.safe(line.strip()) for line in lines)


def _hover(row: Mapping[Any, Any], scale: float, unit: str) -> str:
    digits = "+.1f" if scale == 100 else "+.4g"
    ends = [
        f"{scale * row[key]:{digits}}" for key in ("mean", "low", "high") if not missing(row[key])
    ]
    numbers = (
        f"{ends[0]} [{ends[1]}, {ends[2]}]" if len(ends) == 3 else f"{''.join(ends)} (no interval)"
    )
    return f"{broken_name(row['row'])}<br>{numbers} {unit}, {row['n']:.0f} seed(s){row['detail']}"


def _details(row: Mapping[Any, Any]) -> str:
    found = []
    if not missing(row["p_better"]):
        found.append(f"P(above the reference) {row['p_better']:.2f}")
    if not missing(row["p_holm"]):
        found.append(f"p (Holm) {row['p_holm']:.3g}")
    if row["missing"]:
        found.append(f"{row['missing']:.0f} missing")
    if row["changes"]:
        found.append(style.safe(row["changes"]))
    return "".join(f"<br>{part}" for part in found)
