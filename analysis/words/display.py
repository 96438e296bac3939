"""Tables as text, for people: which columns are shown, and how their numbers are rounded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.numbers.stats import LEAST_SEEDS
from analysis.numbers.tables import CELL, Condition, condition_of
from analysis.read.values import NONE, is_share, last_line, missing, only_budgets, rows_of

# Columns that are shown where they have something to say.
OPTIONAL = ("Seeds and images, %", "Seeds and images", "Outlying seeds, %", "Unequal", "At an edge")

# What captions call the intervals of means, whatever the number of seeds.
INTERVALS = f"Student's t intervals (95 % from {LEAST_SEEDS} seeds on)"


@dataclass(frozen=True)
class Column:
    """One shown column: its title, its text, whether the best are bold and long text wraps.

    `marked` names the rows' column that says which cells are bold, where each column has its own.
    A column of `more` is shown where all columns are asked for, and is in no LaTeX table.
    """

    title: str
    text: Callable[[dict[str, Any]], str]
    bold: bool = False
    number: bool = True
    wide: bool = False
    marked: str = ""
    more: bool = False


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


def far(found: Mapping[int, float]) -> str:
    """'seed 3 (10.2) is far', 'seed 3 (10.2), seed 7 (12.0) are far': how a sentence on outlying seeds begins."""
    return f"{outliers(found)} {'is' if len(found) == 1 else 'are'} far"


def labels_equal(equals: Any, low: Any, high: Any, least: float, most: float) -> str:
    """46 [31, 70], or 'more than 100 [85, more than 100]': label counts of `labels_saved`."""
    if missing(equals):
        return NONE

    def shown(value: float) -> str:
        if value <= 0:
            return f"fewer than {least:,.0f}"
        return f"more than {most:,.0f}" if math.isinf(value) else f"{value:,.0f}"

    if missing(low):
        return f"{shown(equals)} (no interval)"
    if shown(low) == shown(high) == shown(equals):
        return shown(equals)
    return f"{shown(equals)} [{shown(low)}, {shown(high)}]"


def outliers(found: Any) -> str:
    """seed 3 (10.2)"""
    if not isinstance(found, Mapping) or not found:
        return NONE
    return ", ".join(f"seed {seed} ({percent(value)})" for seed, value in found.items())


def _text(key: str, title: str, wide: bool = False, more: bool = False) -> Column:
    return Column(title, lambda row: text(row[key]), number=False, wide=wide, more=more)


def _count(key: str, title: str, more: bool = False) -> Column:
    return Column(title, lambda row: count(row[key]), more=more)


def _value(key: str, title: str, more: bool = False) -> Column:
    return Column(title, lambda row: metric_value(row[key], row["metric"]), more=more)


def _ends(low: str, high: str, title: str, sign: str = "") -> Column:
    """An interval without its mean, which stands beside it."""

    def text(row: dict[str, Any]) -> str:
        return NONE if missing(row[low]) else ends(row[low], row[high], sign)

    return Column(title, text)


_CONDITION, _LABELS = _text("condition", "Condition"), _count("labels", "Labels")
_CELL = [_CONDITION, _LABELS, _text("method", "Method")]
_P_HOLM = Column("p, Holm", lambda row: p_value(row["p_holm"]))
_P_SIGN_FLIP = Column("p, sign flip", lambda row: p_value(row["p_sign_flip"]), more=True)
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
        _ends("images_low", "images_high", "Seeds and images, %"),
        Column(
            "Accuracy, %",
            lambda r: interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"]),
            more=True,
        ),
        Column("Std, %", lambda r: percent(r["std"])),
        _count("n", "Seeds"),
        _count("missing", "Missing", more=True),
        Column("Outlying seeds, %", lambda r: outliers(r["outlying"]), number=False),
    ],
    "differences": [
        *_CELL,
        _text("reference", "Minus"),
        Column("Points", lambda r: interval(r["mean"], r["low"], r["high"], "+")),
        _ends("images_low", "images_high", "Seeds and images", "+"),
        Column("p", lambda r: p_value(r["p"]), more=True),
        _P_HOLM,
        _P_SIGN_FLIP,
        Column(
            "P(better), %",
            lambda r: interval(r["p_better"], r["p_better_low"], r["p_better_high"]),
            more=True,
        ),
        _count("n", "Pairs"),
        Column("More pairs needed", lambda r: more_seeds(r["seeds_needed"])),
        _count("unpaired", "Left out", more=True),
    ],
    "gains": [
        _text("method", "Method"),
        _text("reference", "Minus"),
        Column("Points", lambda r: interval(r["mean"], r["low"], r["high"], "+")),
        Column("p", lambda r: p_value(r["p"]), more=True),
        _P_HOLM,
        _count("n", "Seeds"),
        _count("conditions", "Conditions"),
        Column("Own mean, %", lambda r: percent(r["score"])),
        _text("left_out", "Left out", wide=True, more=True),
    ],
    "labels_saved": [
        _text("method", "Method"),
        _LABELS,
        _text("reference", "Equals"),
        Column(
            "With this many labels",
            lambda r: labels_equal(r["equals"], r["low"], r["high"], r["least"], r["most"]),
        ),
        _count("n", "Seeds"),
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
            more=True,
        ),
        _count("pairs", "Pairs"),
        _count("missing", "Missing", more=True),
        _count("steps", "Steps", more=True),
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
        _count("candidates", "Finished"),
        *(replace(column, more=True) for column in _STATUS[1:]),
        _count("steps", "Steps"),
        _count("images_seen", "Images seen", more=True),
        _count("seconds", "Device-seconds"),
        _count("finalist_trials", "Finalist trials", more=True),
        _count("confirm_trials", "Confirm trials", more=True),
        _count("confirm_seconds", "Confirm device-seconds", more=True),
        _count("model_steps", "Steps of a model"),
        _text("flag", "Unequal"),
    ],
    "chosen": [
        *_CELL,
        _text("trial", "Trial"),
        _text("config", "Chosen configuration", wide=True),
        _value("tuned", "Validation when tuned"),
        _value("confirmed", "Fresh seeds"),
        Column("Candidates", lambda r: f"{count(r['candidates'])} of {count(r['begun'])}"),
        _count("ties", "Ties", more=True),
        Column("Half-width, points", lambda r: percent(r["half_width"]), more=True),
        Column("Locked", lambda r: "yes" if r["locked"] else "no", number=False, more=True),
        _text("digest", "Digest", more=True),
    ],
    "places": [
        *_CELL,
        _text("key", "Key"),
        _text("domain", "Domain"),
        _text("chosen", "Chosen"),
        Column("Place, %", lambda r: NONE if missing(r["place"]) else f"{100 * r['place']:.0f}"),
        _text("edge", "At an edge"),
        _text("spread", "Five best"),
        _text("default", "Given first", more=True),
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
        *_STATUS[:-1],
        replace(_STATUS[-1], more=True),
        _text("reasons", "Why diverged, collapsed or failed"),
    ],
    "trials": [
        _text("trial", "Trial"),
        _text("method", "Method"),
        _text("condition", "Condition"),
        _text("phase", "Phase"),
        _text("status", "Status"),
        _value("value", "Validation"),
        _value("last", "Last reported", more=True),
        _count("step", "Step"),
        _count("seconds", "Seconds"),
        _text("given", "Given", more=True),
        _text("config", "Configuration", wide=True, more=True),
        Column(
            "Reason", lambda r: text(last_line(r["reason"])), number=False, wide=True, more=True
        ),
    ],
}


def condition_names(results: pd.DataFrame) -> dict[Condition, str]:
    """What each condition and label count is called: "50 labels" where that tells them apart."""
    cells = results.drop_duplicates(CELL)
    several = cells["condition"].duplicated(keep=False)
    known = cells["labels"].notna() & ~cells["labels"].duplicated(keep=False)
    by_count = bool(known.all()) and not several.any() and only_budgets(cells["condition"])
    names = {}
    for row, one_of in zip(cells.to_dict("records"), several, strict=True):
        counted = f"{count(row['labels'])} labels"
        own = f"{row['condition']}, {counted}" if one_of else str(row["condition"])
        names[condition_of(row)] = counted if by_count else own
    return names


def columns_of(table: pd.DataFrame, stem: str) -> list[Column]:
    """How the table `stem` is shown; a table without a layout shows every column as it is.

    Of condition and label count the one that says nothing new is among `more`, and so is a column
    without any value.
    """
    if stem in COLUMNS:
        return [_less(column, table) for column in COLUMNS[stem]]
    if stem == "results_wide":
        return _wide_columns(table)
    return [_text(str(name), str(name)) for name in table.columns]


def _less(column: Column, table: pd.DataFrame) -> Column:
    """The column as it is shown of this table: aside where it adds nothing."""
    if column in (_CONDITION, _LABELS) and {"condition", "labels"} <= set(table):
        counted = all(name.endswith(" labels") for name in condition_names(table).values())
        return replace(column, more=counted == (column is _CONDITION))
    if column.title in OPTIONAL and all(column.text(row) == NONE for row in rows_of(table)):
        return replace(column, more=True)
    return column


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
        for row, whole in zip(rows_of(table), best, strict=True)
    ]


LONGEST_CAPTION = (
    170  # characters that stand under a figure or over a table; the rest is opened on request
)
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")


def brief(caption: str) -> tuple[str, str]:
    """A caption's first sentences, as many as fit into two lines, and the rest."""
    sentences = _SENTENCE.split(caption)
    shown = sentences.pop(0)
    while sentences and len(shown) + len(sentences[0]) < LONGEST_CAPTION:
        shown += f" {sentences.pop(0)}"
    return shown, " ".join(sentences)
