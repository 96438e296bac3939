"""Tables for a paper: CSV with raw numbers, Markdown and LaTeX as shown, the best in bold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.numbers.tables import CELL, Condition, condition_of
from analysis.read.load import Runs
from analysis.read.values import NONE
from analysis.words.display import bold_cells, columns_of, count, shown

FORMATS = ("csv", "md", "latex")
SUFFIX = {"csv": ".csv", "md": ".md", "latex": ".tex"}
UNWRITTEN = ("full_config",)

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    NONE: "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def wide_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row per method; per condition the columns `<condition> mean`, low, high (fractions), best.

    A condition goes by its label count ("50 labels") where that tells the conditions apart; one
    that has several counts by its id and count, a column each. Takes `results_table`. `best` is as
    there, and never true where a condition has one method.
    """
    found = results.dropna(subset=["mean"])
    names = _condition_names(found)
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
    searched = _range(budget.merge(measured)["trials"], "search trial")
    digests = runs.locks.groupby(["run", "condition"])["digest"].nunique()
    again = int((digests > 1).sum())
    opened = (
        f"locked; {again} condition(s) had another one locked later, with test data open, and only "
        "the first counts. "
        if again
        else "locked before test data was opened for it, once. "
    )
    return (
        f"Mean per-class accuracy (%) on the test images of {dataset}: mean over "
        f"{_range(found['n'], 'fresh seed')} with 95 % expanded percentile bootstrap intervals. "
        f"Per method and condition the configuration was chosen on validation data among "
        f"{searched} and {opened}"
        "Bold: every mean inside the interval of its condition's best."
    )


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
        path.write_text(as_text(table, stem, name, caption), encoding="utf-8")
        written.append(path)
    return written


def as_text(table: pd.DataFrame, stem: str, name: str, caption: str = "") -> str:
    """The table in one of FORMATS."""
    if name == "csv":
        kept = [column for column in table.columns if column not in UNWRITTEN]
        return str(table[kept].to_csv(index=False))
    return (markdown if name == "md" else latex)(table, stem, caption)


def markdown(table: pd.DataFrame, stem: str, caption: str = "") -> str:
    """A Markdown pipe table, the caption above it."""
    columns = columns_of(table, stem)
    lines = [[_markdown(column.title) for column in columns]]
    lines.append(["--:" if column.number else "---" for column in columns])
    for cells, bold in _cells(table, stem):
        pairs = zip(cells, bold, strict=True)
        lines.append([f"**{_markdown(c)}**" if b else _markdown(c) for c, b in pairs])
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
    texts = shown(table, stem).to_numpy().tolist()
    return list(zip(texts, bold_cells(table, stem), strict=True))


def _condition_names(results: pd.DataFrame) -> dict[Condition, str]:
    """The name of each condition and label count."""
    cells = results.drop_duplicates(CELL)
    several = cells["condition"].duplicated(keep=False)
    known = cells["labels"].notna() & ~cells["labels"].duplicated(keep=False)
    by_count = bool(known.all()) and not several.any()
    names = {}
    for row, one_of in zip(cells.to_dict("records"), several, strict=True):
        counted = f"{count(row['labels'])} labels"
        own = f"{row['condition']}, {counted}" if one_of else str(row["condition"])
        names[condition_of(row)] = counted if by_count else own
    return names


def _range(counts: pd.Series, word: str) -> str:
    """'10 fresh seeds', or '5 to 10 fresh seeds'."""
    least, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    plural = "" if most == 1 else "s"
    return f"{least} to {most} {word}s" if least != most else f"{most} {word}{plural}"


def _escape(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(value.split()))


def _markdown(value: str) -> str:
    return re.sub(r"([\\|*_`<>])", r"\\\1", " ".join(value.split()))
