"""Tables as text: numbers rounded for reading, and written as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

NONE = "\u2013"  # an en dash
FORMATS = ("csv", "md", "latex")
SUFFIX = {"csv": ".csv", "md": ".md", "latex": ".tex"}
UNWRITTEN = ("full_config",)

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    NONE: "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Column:
    """One shown column: its title, its text, whether the best are bold and long text wraps."""

    title: str
    text: Callable[[dict[str, Any]], str]
    bold: bool = False
    number: bool = True
    wide: bool = False


def missing(value: Any) -> bool:
    """None, nan or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def percent(value: Any) -> str:
    """0.873 -> 87.3"""
    return NONE if missing(value) else f"{100 * value:.1f}"


def interval(mean: Any, low: Any, high: Any, sign: str = "") -> str:
    """87.3 [85.1, 89.0], in percent; without an interval the mean alone."""
    if missing(mean):
        return NONE
    if missing(low):
        return f"{100 * mean:{sign}.1f} (no interval)"
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def metric_value(value: Any, metric: str) -> str:
    """An accuracy in percent, any other metric with four significant digits."""
    if missing(value):
        return NONE
    return percent(value) if "accuracy" in metric else f"{value:.4g}"


def count(value: Any) -> str:
    """12,345"""
    return NONE if missing(value) else f"{value:,.0f}"


def text(value: Any) -> str:
    """Any name; a missing one is a dash."""
    return NONE if missing(value) else str(value)


def last_line(value: Any) -> str:
    """The last line of a reason, which for a crash is the error and not its traceback."""
    return value.strip().splitlines()[-1] if isinstance(value, str) and value.strip() else ""


def _text(key: str, title: str, wide: bool = False) -> Column:
    return Column(title, lambda row: text(row[key]), number=False, wide=wide)


def _count(key: str, title: str) -> Column:
    return Column(title, lambda row: count(row[key]))


def _value(key: str, title: str) -> Column:
    return Column(title, lambda row: metric_value(row[key], row["metric"]))


_CELL = [_text("condition", "Condition"), _count("labels", "Labels"), _text("method", "Method")]
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
        _count("n", "Pairs"),
        _count("unpaired", "Left out"),
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
        _count("ties", "Ties"),
        Column("Half-width, points", lambda r: percent(r["half_width"])),
        Column("Locked", lambda r: "yes" if r["locked"] else "no", number=False),
        _text("digest", "Digest"),
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
        Column("Reason", lambda r: text(last_line(r["reason"])), number=False, wide=True),
    ],
}


def columns_of(table: pd.DataFrame, stem: str) -> list[Column]:
    """How the table `stem` is shown; a table without a layout shows every column as it is."""
    if stem in COLUMNS:
        return COLUMNS[stem]
    return [_text(str(name), str(name)) for name in table.columns]


def shown(table: pd.DataFrame, stem: str) -> pd.DataFrame:
    """The table as people read it: all cells are text."""
    columns = columns_of(table, stem)
    rows = [[c.text(row) for c in columns] for row in _rows(table)]
    return pd.DataFrame(rows, columns=[column.title for column in columns])


def is_bold(table: pd.DataFrame) -> list[bool]:
    """Which rows are marked best: only where a condition has more than one method."""
    if "best" not in table or table.empty:
        return [False] * len(table)
    rivals = table.groupby("condition")["method"].transform("nunique") > 1
    return [bool(value) for value in table["best"] & rivals]


def write_table(
    table: pd.DataFrame,
    stem: str,
    out: Path,
    formats: Sequence[str] = FORMATS,
    caption: str = "",
) -> list[Path]:
    """Write `out`/`stem`.csv (raw numbers), .md and .tex (as shown, best in bold)."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        path = out / (stem + SUFFIX[name])
        if name == "csv":
            kept = [column for column in table.columns if column not in UNWRITTEN]
            table[kept].to_csv(path, index=False)
        else:
            draw = markdown if name == "md" else latex
            path.write_text(draw(table, stem, caption), encoding="utf-8")
        written.append(path)
    return written


def markdown(table: pd.DataFrame, stem: str, caption: str = "") -> str:
    """A Markdown pipe table, the caption above it."""
    columns = columns_of(table, stem)
    lines = [[_markdown(column.title) for column in columns]]
    lines.append(["--:" if column.number else "---" for column in columns])
    for cells, row_columns in _cells(table, stem):
        pairs = zip(cells, row_columns, strict=True)
        lines.append([f"**{_markdown(c)}**" if bold else _markdown(c) for c, bold in pairs])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (f"{_markdown(caption)}\n\n" if caption else "") + body + "\n"


def latex(table: pd.DataFrame, stem: str, caption: str = "") -> str:
    """A booktabs table; needs only \\usepackage{booktabs}."""
    columns = columns_of(table, stem)
    align = "".join("r" if column.number else "l" for column in columns)
    lines = [r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{_escape(caption)}}}"] if caption else []
    lines += [rf"\label{{tab:{stem}}}", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines += [" & ".join(_escape(column.title) for column in columns) + r" \\", r"\midrule"]
    for cells, bold in _cells(table, stem):
        pairs = zip(cells, bold, strict=True)
        shown_cells = (rf"\textbf{{{_escape(c)}}}" if b else _escape(c) for c, b in pairs)
        # A row that opens with [ would be read as the optional length of the \\ before it.
        row = " & ".join(shown_cells) + r" \\"
        lines.append("{}" + row if row.startswith("[") else row)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _cells(table: pd.DataFrame, stem: str) -> list[tuple[list[str], list[bool]]]:
    columns = columns_of(table, stem)
    return [
        ([c.text(row) for c in columns], [c.bold and bold for c in columns])
        for row, bold in zip(_rows(table), is_bold(table), strict=True)
    ]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _escape(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(value.split()))


def _markdown(value: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(value.split()))
