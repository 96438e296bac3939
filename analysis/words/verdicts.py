"""What the paired comparisons say, in sentences: methods against the baseline, and ablations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from analysis.numbers.stats import ALPHA, LEAST_SEEDS
from analysis.read.values import is_share, rows_of
from analysis.words.display import count, p_value
from tune_ssl.records import log

SHARE = "accuracy"  # of `difference_table`, which has no other metric

Row = Mapping[str, Any]

# How a verdict opens the sentence, and how it goes on with the same two methods.
WORDS = {
    "beats": ("{a} beats {b} {where} by {size}", "it wins {where} by {size}"),
    "loses": ("{a} loses to {b} {where} by {size}", "it loses {where} by {size}"),
    "leads": ("{a} leads {b} {where} by {size}", "it leads {where} by {size}"),
    "trails": ("{a} trails {b} {where} by {size}", "it trails {where} by {size}"),
    "tie": ("{a} and {b} tie {where} ({size})", "they tie {where} ({size})"),
    "one pair": (
        "one paired seed cannot tell {a} and {b} apart {where} ({size})",
        "one paired seed cannot tell them apart {where} ({size})",
    ),
    "few pairs": (
        "so few paired seeds do not tell {a} and {b} apart {where} ({size})",
        "so few do not tell them apart {where} ({size})",
    ),
    "apart": (
        "{a} and {b} share no split, and are not compared, {where} ({size})",
        "they share no split, and are not compared, {where} ({size})",
    ),
    "nothing": (
        "{a} and {b} share no seed with a test value {where}",
        "they share no seed with a test value {where}",
    ),
}
ENOUGH = " for a corrected p < 0.05, were the difference seen the true one"
# How the same verdict goes on under the next condition.
AGAIN = {kind: "{where} ({size})" for kind in ("tie", "one pair", "few pairs", "apart")}
AGAIN |= {kind: "{where} by {size}" for kind in ("beats", "loses", "leads", "trails")}
AGAIN |= {"nothing": "{where}"}


def place(table: pd.DataFrame, row: Row | pd.Series) -> str:
    """'at 50 labels', or the condition's id where the label count does not tell them apart.

    Both where the id has several label counts.
    """
    conditions = table.drop_duplicates(["condition", "labels"])
    if (conditions["condition"] == row["condition"]).sum() > 1:
        return f"under {row['condition']} with {count(row['labels'])} labels"
    if pd.isna(row["labels"]) or conditions["labels"].duplicated().any():
        return f"under {row['condition']}"
    return f"at {row['labels']:,.0f} labels"


def verdict(row: Row) -> str:
    """One of WORDS for a row with mean, n, p and p_holm.

    A win or loss takes p < 0.05 after Holm's correction; below 0.05 only before it, it is a lead
    (`leads`, `trails`).
    """
    if row["n"] == 0:
        return "apart" if row.get("unpaired", 0) else "nothing"
    if row["n"] == 1:
        return "one pair"
    if row["n"] < LEAST_SEEDS:
        return "few pairs"
    better = row["mean"] > 0
    if row["p_holm"] < ALPHA:
        return "beats" if better else "loses"
    if row["p"] < ALPHA:
        return "leads" if better else "trails"
    return "tie"


def comparison_sentences(differences: pd.DataFrame) -> Iterator[str]:
    """One sentence per method of `difference_table`, its conditions in order."""
    for (a, b), rows in differences.groupby(["method", "reference"], sort=False):
        found = rows_of(rows)
        counts = {row["n"] for row in found}
        alike = len(found) > 1 and len(counts) == 1 and min(counts) > 1
        clauses: list[str] = []
        for kind, same in groupby(found, key=verdict):
            items = [(place(differences, row), _size(row, kind, alike)) for row in same]
            words = WORDS[kind][1 if clauses else 0]
            first = words.format(a=a, b=b, where=items[0][0], size=items[0][1])
            rest = [AGAIN[kind].format(where=where, size=size) for where, size in items[1:]]
            clauses.append(_and([first, *rest]))
        text = "; ".join(clauses) + (f"; {_seeds(found)} each" if alike else "")
        yield _said_once(text if text.startswith(str(a)) else text[0].upper() + text[1:]) + "."


def ablation_sentences(ablation: pd.DataFrame, modes: Mapping[str, str]) -> Iterator[str]:
    """Per method and condition of `ablation_table`: which change costs most, which makes no difference.

    `modes` says per method whether its metric is better when high (`max`) or low (`min`).
    """
    for method, whole in ablation.groupby("method", sort=False):
        sign = 1.0 if modes[str(method)] == "max" else -1.0
        for _, rows in whole.groupby("condition", sort=False):
            found = [_as_difference(row, sign) for row in rows_of(rows)]
            found = [row for row in found if row["variant"] != log.REFERENCE]
            if found:
                parts = "; ".join(_ablation_parts(found))
                yield f"Ablation of {method} {place(ablation, found[0])}, on validation: {parts}."


def _ablation_parts(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows by what they say: what is lost, most first, what is gained, no difference, nothing."""
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in WORDS}
    for row in sorted(rows, key=lambda row: float(row["mean"])):
        kinds[verdict(row)].append(row)
    lost = sorted(kinds["loses"] + kinds["trails"], key=lambda row: float(row["mean"]))
    for row in lost:
        kind = verdict(row)
        most = " most," if row is lost[0] and len(lost) > 1 else ""
        words = f"loses{most}" if kind == "loses" else "trails by"
        yield f"{variant_text(row)} it {words} {_size(row, kind)}"
    for row in reversed(kinds["beats"]):
        yield f"{variant_text(row)} it gains {_size(row, 'beats')}"
    for row in reversed(kinds["leads"]):
        yield f"{variant_text(row)} it leads by {_size(row, 'leads')}"
    if ties := kinds["tie"]:
        each = ", ".join(f"{variant_text(row)} ({_signed(_as_shown(row))})" for row in ties)
        yield f"no difference is seen {each}, {_seeds(ties)}"
    if lone := kinds["one pair"]:
        each = ", ".join(variant_text(row) for row in lone)
        yield f"one paired seed only {each}, which cannot tell chance from difference"
    if few := kinds["few pairs"]:
        each = ", ".join(f"{variant_text(row)} ({_signed(_as_shown(row))})" for row in few)
        yield f"{_seeds(few)}, fewer than {LEAST_SEEDS}, decide nothing {each}"
    if apart := kinds["apart"]:
        each = ", ".join(variant_text(row) for row in apart)
        yield f"no seed has the reference's labeled images {each}"
    if empty := kinds["nothing"]:
        each = ", ".join(variant_text(row) for row in empty)
        yield f"no seed has a value to compare {each}"


def variant_text(row: Row) -> str:
    """A variant in a clause: no_x is 'without x', only_x 'with x alone', any other 'as x'."""
    name = str(row["variant"])
    again = " (tuned again)" if row["retuned"] else ""
    if name.startswith("no_") and "+" not in name:
        return f"without {name[3:]}{again}"
    if name.startswith("only_") and "+" not in name:
        return f"with {name[5:]} alone{again}"
    return f"as {name}{again}"


def _as_difference(row: dict[str, Any], sign: float) -> dict[str, Any]:
    """The row under the names of `difference_table`, turned so that less is worse."""
    ends = sorted((sign * row["diff_low"], sign * row["diff_high"]))
    pairs = 0 if math.isnan(row["diff"]) else int(row["pairs"])
    return {**row, "mean": sign * row["diff"], "low": ends[0], "high": ends[1], "n": pairs}


def _as_shown(row: Row) -> dict[str, Any]:
    """The row of `_as_difference` with the table's signs again."""
    return {**row, "mean": row["diff"], "low": row["diff_low"], "high": row["diff_high"]}


def _size(row: Row, kind: str, counted: bool = False) -> str:
    """The difference with its interval, p, and pairs (unless `counted` elsewhere), as far as needed."""
    if kind == "apart":
        return f"{row['unpaired']} seeds with different splits"
    if kind == "nothing":
        return ""
    if kind == "one pair":
        return _amount(row, row["mean"], "+") + _unit(row)
    pairs = "" if counted else f", {_seeds([row])}"
    if kind in ("tie", "few pairs"):
        return f"{_signed(row)}{pairs}{_more(row)}"
    low, high = sorted((abs(row["low"]), abs(row["high"])))
    ends = f"[{_amount(row, low)}, {_amount(row, high)}]"
    size = f"{_amount(row, abs(row['mean']))}{_unit(row)} {ends}{pairs}"
    p = f"Holm p {p_value(row['p_holm'], '= ')}"
    if kind in ("beats", "loses"):
        return f"{size} ({p})"
    return f"{size}, before correction only ({p})"


def _more(row: Row) -> str:
    """The further seeds of the table."""
    seeds = float(row.get("seeds_needed", math.nan))
    if math.isnan(seeds):
        return ""
    number = "over 1,000" if math.isinf(seeds) else f"about {seeds:,.0f}"
    return f"; {number} more seeds{ENOUGH}"


def _said_once(text: str) -> str:
    """The sentence with what the further seeds are for at their first mention alone."""
    first, clause, rest = text.partition(ENOUGH)
    return first + clause + rest.replace(ENOUGH, "")


def _signed(row: Row) -> str:
    low, high = _amount(row, row["low"], "-"), _amount(row, row["high"], "-")
    return f"{_amount(row, row['mean'], '+')} [{low}, {high}]"


def _amount(row: Row, value: float, sign: str = "-") -> str:
    """In points for a share, in its own unit for any other metric."""
    if _unit(row):
        return f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # + 0.0: no -0.0
    return f"{value:{sign}.3g}"


def _unit(row: Row) -> str:
    return " points" if is_share(row.get("metric", SHARE)) else ""


def _and(parts: list[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({int(row["n"]) for row in rows})
    return f"{'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} paired seeds"
