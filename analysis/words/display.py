"""Tables as text, for people: which columns are shown, and how their numbers are rounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.numbers.stats import LEAST_SEEDS
from analysis.read.values import NONE, last_line, missing

SHARES = ("accuracy", "/knn@", "mask_rate", "_share")  # a metric with one of them is a fraction

# What captions call the intervals of means, whatever the number of seeds.
INTERVALS = f"Student's t intervals (95 % from {LEAST_SEEDS} seeds on)"


@dataclass(frozen=True)
class Column:
    """One shown column: its title, its text, whether the best are bold and long text wraps.

    `marked` names the rows' column that says which cells are bold, where each column has its own.
    """

    title: str
    text: Callable[[dict[str, Any]], str]
    bold: bool = False
    number: bool = True
    wide: bool = False
    marked: str = ""


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent: accuracies (kNN's among them), rates and shares."""
    return any(part in metric for part in SHARES)


def percent(value: Any) -> str:
    """0.873 -> 87.3"""
    return NONE if missing(value) else f"{100 * value:.1f}"


def interval(mean: Any, low: Any, high: Any, sign: str = "") -> str:
    """87.3 [85.1, 89.0], in percent; without an interval the mean alone."""
    if missing(mean):
        return NONE
    if missing(low):
        return f"{100 * mean:{sign}.1f} (no interval)"
    return f"{100 * mean:{sign}.1f} {ends(low, high, sign)}"


def share(mean: float, low: float, high: float) -> str:
    """87.3 % [85.1, 89.0]; without an interval the mean alone."""
    return f"{100 * mean:.1f} %" + ("" if missing(low) else f" {ends(low, high)}")


def ends(low: float, high: float, sign: str = "") -> str:
    """[85.1, 89.0], in percent; those of a share, which has no sign, are cut at 0 and 100 %."""
    if not sign:
        low, high = max(low, 0.0), min(high, 1.0)
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def metric_interval(row: dict[str, Any], mean: str, low: str, high: str, sign: str = "") -> str:
    """`interval` of three cells where the row's metric is a share, else four significant digits."""
    if is_share(row["metric"]) or missing(row[mean]):
        return interval(row[mean], row[low], row[high], sign)
    ends = "(no interval)" if missing(row[low]) else f"[{row[low]:.4g}, {row[high]:.4g}]"
    return f"{row[mean]:{sign}.4g} {ends}"


def p_value(value: Any, equals: str = "") -> str:
    """0.031, and < 0.001 below that; `equals` stands before a number that is not cut off."""
    if missing(value):
        return NONE
    short = f"{value:.2g}"
    short = f"{value:.3g}" if short == "0.05" else short  # on which side of 0.05 it lies
    return "< 0.001" if value < 0.001 else equals + short


def more_seeds(value: Any) -> str:
    """The seeds still needed: none, a number, or too many to say."""
    if missing(value):
        return NONE
    return "> 1,000" if math.isinf(value) else count(value)


def metric_value(value: Any, metric: str) -> str:
    """A share in percent, any other metric with four significant digits."""
    if missing(value):
        return NONE
    return percent(value) if is_share(metric) else f"{value:.4g}"


def count(value: Any) -> str:
    """12,345"""
    return NONE if missing(value) else f"{value:,.0f}"


def text(value: Any) -> str:
    """Any name; a missing one is a dash."""
    return NONE if missing(value) else str(value)


def _rank(value: Any) -> str:
    return NONE if missing(value) else f"{value:.2f}"


def _text(key: str, title: str, wide: bool = False) -> Column:
    return Column(title, lambda row: text(row[key]), number=False, wide=wide)


def _count(key: str, title: str) -> Column:
    return Column(title, lambda row: count(row[key]))


def _value(key: str, title: str) -> Column:
    return Column(title, lambda row: metric_value(row[key], row["metric"]))


_CELL = [_text("condition", "Condition"), _count("labels", "Labels"), _text("method", "Method")]
_P_HOLM = Column("p, Holm", lambda row: p_value(row["p_holm"]))
_P_SIGN_FLIP = Column("p, sign flip", lambda row: p_value(row["p_sign_flip"]))
_STATUS = [
    _count("finished", "Finished"),
    _count("stopped_early", "Stopped early"),
    _count("diverged", "Diverged"),
    _count("collapsed", "Collapsed"),
    _count("failed", "Failed"),
    _count("running", "Running"),
]

COLUMNS: dict[str, list[Column]] = {
    "results": [
        *_CELL,
        Column(
            "Mean per-class accuracy, %", lambda r: interval(r["mean"], r["low"], r["high"]), True
        ),
        Column(
            "Accuracy, %",
            lambda r: interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"]),
        ),
        Column("Std, %", lambda r: percent(r["std"])),
        _count("n", "Seeds"),
        _count("missing", "Missing"),
    ],
    "differences": [
        *_CELL,
        _text("reference", "Minus"),
        Column("Points", lambda r: interval(r["mean"], r["low"], r["high"], "+")),
        Column("p", lambda r: p_value(r["p"])),
        _P_HOLM,
        _P_SIGN_FLIP,
        Column(
            "P(better), %",
            lambda r: interval(r["p_better"], r["p_better_low"], r["p_better_high"]),
        ),
        _count("n", "Pairs"),
        Column("More pairs needed", lambda r: more_seeds(r["seeds_needed"])),
        _count("unpaired", "Left out"),
    ],
    "aggregate": [
        _text("method", "Method"),
        Column("IQM, %", lambda r: interval(r["iqm"], r["low"], r["high"])),
        Column("Mean, %", lambda r: percent(r["mean"])),
        Column("Average rank", lambda r: _rank(r["rank"])),
        _count("conditions", "Conditions"),
        _count("seeds", "Seeds"),
        _text("left_out", "Left out", wide=True),
    ],
    "ranks": [
        _text("method", "Method"),
        Column("Average rank", lambda r: _rank(r["rank"])),
        _text("groups", "Group"),
        Column("Critical difference", lambda r: _rank(r["critical_difference"])),
        Column("p, Friedman", lambda r: p_value(r["friedman_p"])),
        _count("conditions", "Conditions"),
        _text("left_out", "Left out", wide=True),
    ],
    "ablation": [
        *_CELL,
        _text("variant", "Variant"),
        Column("Validation", lambda r: metric_interval(r, "mean", "low", "high")),
        Column(
            "Minus reference", lambda r: metric_interval(r, "diff", "diff_low", "diff_high", "+")
        ),
        _P_HOLM,
        _P_SIGN_FLIP,
        Column(
            "P(above), %",
            lambda r: interval(r["p_better"], r["p_better_low"], r["p_better_high"]),
        ),
        _count("pairs", "Pairs"),
        _count("missing", "Missing"),
        _count("steps", "Steps"),
        _text("changes", "Changes", wide=True),
    ],
    "effects": [
        *_CELL,
        _text("effect", "Effect"),
        Column("Mean", lambda r: metric_interval(r, "mean", "low", "high", "+")),
        _P_HOLM,
        _count("n", "Seeds"),
    ],
    "budget": [
        *_CELL,
        _count("trials", "Trials"),
        *_STATUS,
        _count("steps", "Steps"),
        _count("images_seen", "Images seen"),
        _count("seconds", "Device-seconds"),
        _count("finalist_trials", "Finalist trials"),
        _count("confirm_trials", "Confirm trials"),
        _count("confirm_seconds", "Confirm device-seconds"),
        _text("flag", "Unequal", wide=True),
    ],
    "chosen": [
        *_CELL,
        _text("trial", "Trial"),
        _text("config", "Chosen configuration", wide=True),
        _value("tuned", "Validation when tuned"),
        _value("confirmed", "Validation, fresh seeds"),
        Column("Candidates", lambda r: f"{count(r['candidates'])} of {count(r['begun'])}"),
        _count("ties", "Ties"),
        Column("Half-width, points", lambda r: percent(r["half_width"])),
        Column("Locked", lambda r: "yes" if r["locked"] else "no", number=False),
        _text("digest", "Digest"),
    ],
    "early_ranks": [
        *_CELL,
        _count("step", "Step"),
        Column("Steps, %", lambda r: percent(r["share"])),
        Column("Rank correlation", lambda r: _rank(r["correlation"])),
        _count("trials", "Finished trials"),
        _count("stopped", "Stopped there"),
    ],
    "stability": [
        _text("method", "Method"),
        _count("trials", "Trials"),
        *_STATUS,
        _text("reasons", "Why diverged, collapsed or failed", wide=True),
    ],
    "trials": [
        _text("trial", "Trial"),
        _text("method", "Method"),
        _text("condition", "Condition"),
        _text("phase", "Phase"),
        _text("status", "Status"),
        _value("value", "Value at the end, validation"),
        _value("last", "Last reported"),
        _count("step", "Step"),
        _count("seconds", "Seconds"),
        _text("config", "Configuration", wide=True),
        _text("given", "Given"),
        Column("Reason", lambda r: text(last_line(r["reason"])), number=False, wide=True),
    ],
}


def columns_of(table: pd.DataFrame, stem: str) -> list[Column]:
    """How the table `stem` is shown; a table without a layout shows every column as it is."""
    if stem in COLUMNS:
        return COLUMNS[stem]
    if stem == "results_wide":
        return _wide_columns(table)
    return [_text(str(name), str(name)) for name in table.columns]


def _wide_columns(table: pd.DataFrame) -> list[Column]:
    """One column per condition of `paper.wide_table`."""

    def column(name: str) -> Column:
        def text(row: dict[str, Any]) -> str:
            return interval(row[f"{name} mean"], row[f"{name} low"], row[f"{name} high"])

        return Column(name, text, marked=f"{name} best")

    names = [str(c).removesuffix(" mean") for c in table.columns if str(c).endswith(" mean")]
    return [_text("method", "Method"), *(column(name) for name in names)]


def is_bold(table: pd.DataFrame) -> list[bool]:
    """Which rows are marked best: only where a condition has more than one method."""
    if "best" not in table or table.empty:
        return [False] * len(table)
    cells = table.groupby(["condition", "labels"], dropna=False)
    rivals = cells["method"].transform("nunique") > 1
    return [bool(value) for value in table["best"] & rivals]


def shown_cells(table: pd.DataFrame, stem: str) -> list[list[tuple[str, bool]]]:
    """The table as people read it: per row and shown column the text, and whether it is marked best."""
    columns, best = columns_of(table, stem), is_bold(table)
    return [
        [(c.text(row), bool(row[c.marked]) if c.marked else c.bold and whole) for c in columns]
        for row, whole in zip(_rows(table), best, strict=True)
    ]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
