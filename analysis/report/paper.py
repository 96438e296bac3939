"""Tables for a paper: CSV with raw numbers, Markdown and LaTeX as shown, the best in bold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.numbers.tables import condition_of
from analysis.read.load import Runs
from analysis.read.values import is_share, rows_of
from analysis.report.latex import BRACKETS, STACKED, Cell, Head, Layout, half_widths
from analysis.words.display import (
    INTERVALS,
    Column,
    columns_of,
    condition_names,
    shown_cells,
)
from tune_ssl.records.ties import half_width

FORMATS = ("csv", "md", "latex")
SUFFIX = {"csv": ".csv", "md": ".md", "latex": ".tex"}
UNWRITTEN = ("full_config",)
WIDE = "results_wide"

# The shown columns of t intervals, which are symmetric, and the keys of their ends.
ENDS = {
    ("results", "Mean per-class accuracy, %"): ("low", "high"),
    ("differences", "Points"): ("low", "high"),
    ("gains", "Points"): ("low", "high"),
    ("ablation", "Validation"): ("low", "high"),
    ("ablation", "Minus reference"): ("diff_low", "diff_high"),
    ("effects", "Mean"): ("low", "high"),
}


def wide_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row per method; per condition the columns `<condition> mean`, low, high (fractions), best.

    A condition goes by its label count ("50 labels") where that tells the conditions apart; one
    that has several counts by its id and count, a column each. Takes `results_table`. `best` is as
    there, and never true where a condition has one method.
    """
    found = results.dropna(subset=["mean"])
    names = condition_names(found)
    rows: dict[str, dict[str, object]] = {}
    for row in found.to_dict("records"):
        own = rows.setdefault(str(row["method"]), {"method": row["method"]})
        name = names[condition_of(row)]
        own |= {f"{name} {key}": row[key] for key in ("mean", "low", "high")}
        own[f"{name} best"] = row["best"]
    kinds = [f"{name} {key}" for name in names.values() for key in ("mean", "low", "high", "best")]
    table = pd.DataFrame(list(rows.values()), columns=["method", *kinds])
    for name in names.values():
        rivals = table[f"{name} mean"].notna().sum() > 1
        table[f"{name} best"] = table[f"{name} best"].eq(True) & rivals
    return table


def protocol(runs: Runs, results: pd.DataFrame, budget: pd.DataFrame) -> str:
    """How the test numbers came about, in sentences that stand under a table of a paper."""
    dataset = runs.studies[0].dataset.get("name")
    found = results.dropna(subset=["mean"])
    measured = found[["method", "condition"]].drop_duplicates()
    own = budget.merge(measured)
    searched = (
        f"{_range(own['candidates'], 'finished search trial')} ({_range(own['trials'])} begun)"
    )
    return (
        f"Mean per-class accuracy (%) on the test images of {dataset}: mean over "
        f"{_range(found['n'], 'fresh seed')} with {INTERVALS}. "
        f"Per method and condition the configuration was chosen on validation data among "
        f"{searched} and {_locked(runs)}{_validated(runs, found)}"
        "Bold: a condition's highest mean, and every one that paired t tests against it (Welch's "
        "without shared seeds; Holm's correction over the condition) do not show to be lower, p < 0.05."
    )


def _locked(runs: Runs) -> str:
    """When the configurations were fixed, and of how many conditions that was not before all test data."""
    digests = runs.choices.groupby(["run", "condition"])["digest"].nunique()
    again = int((digests > 1).sum())
    anew = sum(c in ledger.locked for ledger in runs.ledgers.values() for c in ledger.reopened)
    if not again and not anew:
        return "locked before test data was opened for it, once. "
    parts = ["locked"]
    if again:
        parts.append(
            f"{again} condition{'s' * (again != 1)} had another one locked later, with test data open, and only the "
            "first counts"
        )
    if anew:
        parts.append(
            f"in {anew} condition{'s' * (anew != 1)} it was chosen anew, with test data open, and only the last counts"
        )
    return "; ".join(parts) + ". "


def _validated(runs: Runs, found: pd.DataFrame) -> str:
    """How many labeled images chose the configurations, and what that number can tell apart."""
    counts = runs.conditions["validation"].dropna()
    if found.empty or counts.empty:
        return ""
    if not all(is_share(study.metric) for study in runs.studies):
        return f"Choices were made on {_range(counts, 'labeled validation image')}. "
    points = 100 * half_width(int(counts.min()))
    beyond = ""
    if (runs.conditions["validation"] > runs.conditions["labels"]).any():
        beyond = ", more than some label budgets have"
    return (
        f"Choices were made on {_range(counts, 'labeled validation image')}{beyond}: a share of them is "
        f"known to \u00b1{points:.1f} points. "
    )


@dataclass(frozen=True)
class PaperTable:
    """A table with its caption, as the page and the files show it: csv, md and latex are texts of FORMATS.

    `intervals` is one of `latex.INTERVALS`; "" is what suits the table.
    Each is made once, for the page carries what the files hold.
    """

    table: pd.DataFrame
    stem: str
    caption: str = ""
    intervals: str = ""

    def write(self, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Write `out`/`stem`.csv (raw numbers), .md and .tex (as shown, best in bold)."""
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for name in formats:
            path = out / (self.stem + SUFFIX[name])
            path.write_text(self.text(name), encoding="utf-8")
            written.append(path)
        return written

    def text(self, name: str) -> str:
        """In one of FORMATS."""
        return str(getattr(self, name))

    @cached_property
    def columns(self) -> list[Column]:
        return columns_of(self.table, self.stem)

    @cached_property
    def cells(self) -> list[list[tuple[str, bool]]]:
        return shown_cells(self.table, self.stem)

    @cached_property
    def csv(self) -> str:
        """The raw numbers."""
        return csv_text(self.table)

    @cached_property
    def md(self) -> str:
        """A Markdown pipe table, the caption above it."""
        lines = [[_markdown(column.title) for column in self.columns]]
        lines.append(["--:" if column.number else "---" for column in self.columns])
        for row in self.cells:
            lines.append([f"**{_markdown(c)}**" if bold else _markdown(c) for c, bold in row])
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return (f"{_markdown(self.caption)}\n\n" if self.caption else "") + body + "\n"

    @cached_property
    def latex(self) -> str:
        """A booktabs table that fits an `article`; columns of `more` are left out."""
        return self.layout.text

    @cached_property
    def layout(self) -> Layout:
        """How the table is set in LaTeX, and how wide that is."""
        kept = [place for place, column in enumerate(self.columns) if not column.more]
        halves = {place: self._halves(self.columns[place]) for place in kept}
        rows = [
            [Cell(*cells[place], halves[place][number]) for place in kept]
            for number, cells in enumerate(self.cells)
        ]
        heads = [Head(self.columns[p].title, self.columns[p].number) for p in kept]
        fitting = STACKED if self.stem == WIDE else BRACKETS
        return Layout(self.stem, heads, rows, self.caption, self.intervals or fitting)

    def _halves(self, column: Column) -> list[str]:
        """Per row half the width of the column's t interval, "" where it has none."""
        of_wide = (f"{column.title} low", f"{column.title} high")
        ends = of_wide if self.stem == WIDE else ENDS.get((self.stem, column.title))
        if ends is None or not set(ends) <= set(self.table):
            return [""] * len(self.table)
        rows = rows_of(self.table)
        shares = ["metric" not in row or is_share(str(row["metric"])) for row in rows]
        return half_widths(rows, ends, shares)


def csv_text(table: pd.DataFrame) -> str:
    kept = [column for column in table.columns if column not in UNWRITTEN]
    return str(table[kept].to_csv(index=False))


def _range(counts: pd.Series, word: str = "") -> str:
    """'10 fresh seeds', or '5 to 10 fresh seeds'; the numbers alone without a word."""
    least, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    span = f"{least} to {most}" if least != most else str(most)
    return f"{span} {word}{'' if least == most == 1 else 's'}" if word else span


def _markdown(value: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(value.split()))
