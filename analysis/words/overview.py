"""The first screen: the answer in a sentence, a grid of methods and label budgets, and a sentence for each method."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.numbers.stats import LEAST_SEEDS
from analysis.numbers.tables import Tables, condition_of
from analysis.read.load import Runs
from analysis.read.values import is_share, rows_of
from analysis.words.display import (
    condition_names,
    count,
    ends,
    far,
    labels_equal,
    p_value,
    share,
)
from analysis.words.verdicts import verdict
from tune_ssl.records.ties import half_width

WIN, TIE, LOSS, NONE = "win", "tie", "loss", "none"
KINDS = {"beats": WIN, "loses": LOSS, "leads": TIE, "trails": TIE, "tie": TIE}  # of a verdict
MARKS = {WIN: "▲", LOSS: "▼", TIE: "=", NONE: ""}  # for those who do not see the colours
MEAN = "Mean"


@dataclass(frozen=True)
class Cell:
    """What one method reached in one condition: a number, its interval below, and what the test says of it."""

    text: str = ""
    below: str = ""
    kind: str = NONE

    @property
    def mark(self) -> str:
        return MARKS[self.kind]


@dataclass(frozen=True)
class Grid:
    """Methods x conditions; the last column is the mean over conditions, where there are several."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    legend: str
    facts: str


def grid(runs: Runs, tables: Tables) -> Grid | None:
    """Gains over the reference, or what each method reaches where nothing is compared; None without test values."""
    results = tables["results"].dropna(subset=["mean"])
    if results.empty:
        return None
    differences, gains = tables["differences"], tables["gains"]
    names = condition_names(results)
    gained = {(row["method"], condition_of(row)): row for row in rows_of(differences)}
    averaged = _averaged(gains, names)
    several = bool(averaged)
    rows = []
    for method in _ordered(runs, results, averaged):
        own = {condition_of(row): row for row in rows_of(results[results["method"] == method])}
        cells = [_cell(own.get(where), gained.get((method, where))) for where in names]
        cells += [_mean_cell(method, averaged)] if several else []
        rows.append((method, tuple(cells)))
    columns = (*names.values(), *([MEAN] if several else []))
    return Grid(columns, tuple(rows), _legend(differences, results), _facts(runs, results))


def method_sentences(runs: Runs, tables: Tables) -> Iterator[str]:
    """For each method its mean gain and where it wins, or what it reaches; then how many labels that saves."""
    results = tables["results"].dropna(subset=["mean"])
    names = condition_names(results)
    averaged = _averaged(tables["gains"], names)
    for method in _ordered(runs, results, averaged):
        own = results[results["method"] == method]
        rows = [row for row in rows_of(tables["differences"]) if row["method"] == method]
        rows = [row for row in rows if row["n"] > 0]
        parts = [_gained(method, rows, averaged, names) if rows else _reached(own, names)]
        won = {str(row["condition"]) for row in rows if KINDS.get(verdict(row)) == WIN}
        parts += _saved(tables["labels_saved"], method, won)
        parts += _apart(own, names)
        yield f"{method}: {'; '.join(parts)}."


def _averaged(gains: pd.DataFrame, names: Mapping[Any, str]) -> dict[str, dict[str, Any]]:
    """The mean gains by method, where several conditions share seeds."""
    found = {str(r["method"]): r for r in rows_of(gains) if r["n"] > 0 and r["conditions"] > 1}
    return found if len(names) > 1 else {}


def _ordered(runs: Runs, results: pd.DataFrame, averaged: Mapping[str, Any]) -> list[str]:
    """The reference and what has no gain first, as the runs come; then the rest, best first."""
    found = [label for label in runs.labels if label in set(results["method"])]
    means = results.groupby("method")["mean"].mean()
    score = {m: averaged[m]["mean"] if m in averaged else means[m] for m in found}
    return sorted(found, key=lambda m: (m in averaged, -score[m] if averaged else 0))


def _cell(result: Mapping[str, Any] | None, gain: Mapping[str, Any] | None) -> Cell:
    if result is None:
        return Cell()
    if gain is None or gain["n"] == 0:
        return Cell(f"{100 * result['mean']:.1f} %", _ends(result))
    return Cell(f"{100 * gain['mean']:+.1f}", _ends(gain, "+"), KINDS.get(verdict(gain), NONE))


def _mean_cell(method: str, averaged: Mapping[str, Any]) -> Cell:
    if method in averaged:
        row = averaged[method]
        return Cell(f"{100 * row['mean']:+.1f}", _ends(row, "+"), KINDS.get(verdict(row), NONE))
    scores = [row["reference_score"] for row in averaged.values() if row["reference"] == method]
    return Cell(f"{100 * scores[0]:.1f} %") if scores else Cell()


def _ends(row: Mapping[str, Any], sign: str = "") -> str:
    return "" if pd.isna(row["low"]) else ends(row["low"], row["high"], sign)


def _legend(differences: pd.DataFrame, results: pd.DataFrame) -> str:
    fewest = int(results["n"].min())
    ends = "95 % intervals" if fewest >= LEAST_SEEDS else "intervals of too few seeds"
    if differences.empty or not (differences["n"] > 0).any():
        return f"Mean per-class accuracy on test with {ends} over fresh seeds."
    reference = " or ".join(dict.fromkeys(differences["reference"]))
    return (
        f"Points of mean per-class accuracy on test gained over {reference}, with {ends}; {MARKS[WIN]} better, "
        f"{MARKS[LOSS]} worse, {MARKS[TIE]} not told apart (paired t tests, Holm's correction over all conditions, and "
        "over the means)."
    )


def _facts(runs: Runs, results: pd.DataFrame) -> str:
    """Test images, validation images and seeds: what the numbers rest on."""
    counts = runs.studies[0].dataset.get("counts")
    test = counts.get("test") if isinstance(counts, Mapping) else None
    parts = [f"{count(test)} test images"] if isinstance(test, int) else []
    chosen_on = runs.conditions["validation"].dropna()
    if len(chosen_on) and all(is_share(study.metric) for study in runs.studies):
        least, most = int(chosen_on.min()), int(chosen_on.max())
        span = count(least) if least == most else f"{count(least)} to {count(most)}"
        points = 100 * half_width(least)
        parts.append(f"chosen on {span} labeled validation images (known to ±{points:.1f} points)")
    seeds = sorted({int(n) for n in results["n"]})
    span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return "; ".join([*parts, f"{span} fresh seed{'' if seeds == [1] else 's'} each"]) + "."


def _gained(
    method: str, rows: list[dict[str, Any]], averaged: Mapping[str, Any], names: Mapping[Any, str]
) -> str:
    reference = rows[0]["reference"]
    if method in averaged:
        row = averaged[method]
        size = f"{_points(row)} over {reference} on average (Holm p {p_value(row['p_holm'], '= ')})"
        by_kind: dict[str, list[str]] = {}
        for one in rows:
            kind = KINDS.get(verdict(one), NONE)
            by_kind.setdefault(kind, []).append(names[condition_of(one)])
        words = {WIN: "better", LOSS: "worse", TIE: "not told apart", NONE: "not comparable"}
        where = [f"{words[kind]} with {' and '.join(own)}" for kind, own in by_kind.items()]
        return f"{size}: {', '.join(where)}"
    return " and ".join(
        f"{_points(row)} over {row['reference']} with {names[condition_of(row)]} "
        f"(Holm p {p_value(row['p_holm'], '= ')})"
        for row in rows
    )


def _points(row: Mapping[str, Any]) -> str:
    interval = _ends(row, "+")
    return f"{100 * row['mean']:+.1f} points" + (f" {interval}" if interval else "")


def _reached(own: pd.DataFrame, names: Mapping[Any, str]) -> str:
    return ", ".join(
        f"{share(row['mean'], row['low'], row['high'])} with {names[condition_of(row)]}"
        for row in rows_of(own)
    )


def _saved(table: pd.DataFrame, method: str, won: Collection[str]) -> Iterator[str]:
    """The fewest labels with which it wins and reaches what the reference needs more for, by the whole interval."""
    for row in rows_of(table[table["method"] == method]):
        if row["low"] > row["labels"] and row["condition"] in won:
            equal = labels_equal(row["equals"], row["low"], row["high"], row["least"], row["most"])
            yield f"with {count(row['labels'])} labels it equals {row['reference']} with {equal}"
            return


def _apart(own: pd.DataFrame, names: Mapping[Any, str]) -> Iterator[str]:
    for row in rows_of(own):
        if isinstance(row["outlying"], dict):
            yield f"with {names[condition_of(row)]} {far(row['outlying'])} from the others"
