"""What the tables say, in sentences: the summary at the top of the report and its caveats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from analysis.numbers.helps import questions
from analysis.numbers.stats import LEAST_SEEDS, ROUNDING
from analysis.numbers.tables import ACCURACY, CELL, Condition, condition_of, confirm_trials
from analysis.read.load import RUNNING, STATUSES, Runs
from analysis.read.values import last_line
from analysis.words.answer import answer_lines
from analysis.words.candidates import among, few_candidates, given_sentences
from analysis.words.display import ends, far, metric_value, share, text
from analysis.words.going_on import (
    change_sentences,
    cut_caveats,
    old_reference_caveats,
    reopened_caveats,
    seeds_caveats,
)
from analysis.words.verdicts import ablation_sentences, comparison_sentences, place
from tune_ssl.records import log
from tune_ssl.records.ties import half_width

MEASURE = "mean per-class accuracy on test"
NOT_A_RESULT = (
    "No configuration has been confirmed on test data yet. The numbers below are validation "
    "values of tuning trials, the best of many tries, and not a result."
)
ONLY_ABLATED = (
    "Nothing was searched or confirmed on test data here. The numbers below are of ablations, scored "
    "on validation images, and say nothing about test accuracy."
)
FEW_TEST = 100  # images, of which a 95 % half-width is 14 points
FEW_VALIDATION = 30  # ... 25 points
RAN = {log.SEARCH: "search", log.RETUNE: "retuning", log.ABLATE: "ablation"}


def summary(
    runs: Runs,
    results: pd.DataFrame,
    chosen: pd.DataFrame,
    differences: pd.DataFrame | None = None,
    ablation: pd.DataFrame | None = None,
) -> list[str]:
    """The findings, or why there are none.

    Each method against the baseline by its paired differences, where there are any; a condition
    without any by the methods' own means; then what the ablations show.
    """
    parts = [] if ablation is None else [*ablation_sentences(ablation, _modes(runs))]
    lines = []
    if results.empty or results["mean"].isna().all():
        if not runs.trials.empty:
            lines.append(not_a_result(runs))
        for row in chosen.to_dict("records"):
            value = metric_value(row["tuned"], row["metric"])
            lines.append(
                f"{_where(chosen, row)} the best finished trial of {row['method']} is "
                f"{row['trial']}, chosen among {among(row['candidates'], row['begun'])}, with {row['metric']} = "
                f"{value} on validation."
            )
        return lines + parts
    # Of one run that compares methods, the answer to its question says all that can be said
    answered = all(study.renamed is not None for study in runs.studies)
    if answered and differences is not None:
        found = answer_lines(runs, questions(runs, differences))
        lines += [line[0].upper() + line[1:].rstrip(".") + "." for line in found]
    compared: set[Condition] = set()
    if differences is not None and not differences.empty:
        paired = differences[differences["n"] > 0]
        seen = differences[(differences["n"] > 0) | (differences["unpaired"] > 0)]
        compared = set(_conditions(seen))
        pooled = results[_conditions(results).isin(_conditions(paired))]
        lines += [_highest(pooled), *([] if answered else comparison_sentences(differences))]
    for _, group in results.groupby(CELL, sort=False, dropna=False):
        if condition_of(group.iloc[0]) not in compared:
            lines.append(_finding(results, group.dropna(subset=["mean"])))
    return [line for line in lines if line] + parts


def what_ran(runs: Runs, chosen: pd.DataFrame) -> list[str]:
    """How many trials of each run ended how, which configs were given beforehand, and what was changed."""
    ran = [_what_ran(runs, study.run) for study in runs.studies]
    return [*ran, *given_sentences(runs, chosen), *change_sentences(runs)]


def not_a_result(runs: Runs) -> str:
    """What the numbers are worth while nothing has been confirmed."""
    ablated = runs.trials["phase"].isin((log.ABLATE, log.RETUNE))
    return NOT_A_RESULT if not ablated.all() or runs.trials.empty else ONLY_ABLATED


def caveats(
    runs: Runs,
    results: pd.DataFrame,
    budget: pd.DataFrame,
    chosen: pd.DataFrame,
    ablation: pd.DataFrame | None = None,
) -> list[str]:
    """Everything a reader must know before believing a number."""
    note = interval_note(results)
    return [
        *reopened_caveats(runs),
        *seeds_caveats(runs),
        *([note] if note else []),
        *([] if ablation is None else _few_ablated(ablation)),
        *runs.notes,
        *_data(runs),
        *_few_images(runs, results),
        *_guessed(runs, results),
        *_progress(runs),
        *_seeds(runs, results),
        *_outlying(results),
        *few_candidates(runs, budget),
        *cut_caveats(runs),
        *old_reference_caveats(runs),
        *_locks(runs, chosen),
        *_fair(runs, budget),
    ]


def interval_note(results: pd.DataFrame) -> str:
    """That there are too few seeds for a 95 % interval; empty where there are not."""
    counts = [int(n) for n in results["n"] if n > 0]
    if not counts or min(counts) >= LEAST_SEEDS:
        return ""
    fewest = min(counts)
    given = "1 seed gives no interval" if fewest == 1 else f"{fewest} seeds give no 95 % interval"
    return f"{given}: that takes {LEAST_SEEDS} seeds, {LEAST_SEEDS - fewest} more per condition."


def _what_ran(runs: Runs, run: str) -> str:
    study = runs.study(run)
    trials = runs.trials[runs.trials["run"] == run]
    name = study.label if study.label == study.method else f"{study.label} ({study.method})"
    if trials.empty:
        return f"{name}: no trial has started yet."
    ran = {phase: trials[trials["phase"] == phase] for phase in RAN}
    ran = {phase: own for phase, own in ran.items() if len(own)}
    if not ran:
        ran = {log.SEARCH: trials.iloc[:0]}
    where = f" on {text(study.dataset.get('name'))}"
    parts = []
    for phase, own in ran.items():
        variants = own.loc[own["variant"] != log.REFERENCE, "variant"].nunique()
        plural = "" if variants == 1 else "s"
        of = f" of {variants} variant{plural}" if phase == log.ABLATE else ""
        counts = [
            f"{int((own['status'] == status).sum())} {status.replace('_', ' ')}"
            for status in STATUSES
            if (own["status"] == status).any()
        ]
        parts.append(f"{len(own)} {RAN[phase]} trials{of}{where} ({', '.join(counts) or 'none'})")
        where = ""
    return f"{name}: {', '.join(parts)}."


def _few_ablated(ablation: pd.DataFrame) -> Iterator[str]:
    for method, rows in ablation[ablation["n"] > 0].groupby("method", sort=False):
        if note := interval_note(rows):
            yield f"Ablation of {method}: {note}"


def _conditions(table: pd.DataFrame) -> pd.Series:
    """`condition_of` each row."""
    found = [condition_of(row) for row in table.to_dict("records")]
    return pd.Series(found, index=table.index, dtype=object)


def _finding(results: pd.DataFrame, group: pd.DataFrame) -> str:
    if group.empty:
        return ""
    ranked = group.sort_values("mean", ascending=False, kind="stable")
    top, rest = ranked.iloc[0], ranked.iloc[1:]
    where = _where(results, top)
    if rest.empty:
        return f"{where} {_reaches(top)}."
    if math.isnan(top["low"]):
        others = ", ".join(_brief(row) for _, row in rest.iterrows())
        return (
            f"{where} {_reaches(top)}, the highest mean (others: {others}); "
            "without an interval the order cannot be judged."
        )
    tied = ranked[ranked["best"]]
    behind = rest[~rest["best"]]
    others = ", ".join(_brief(row) for _, row in behind.iterrows())
    if len(tied) > 1:
        names = " and ".join(_brief(row) for _, row in tied.iterrows())
        behind_them = f"; behind them {others}" if others else ""
        return f"{where} {names} are not told apart in {MEASURE}{behind_them}."
    unknown = ", ".join(behind.loc[behind["low"].isna(), "method"])
    doubt = f" {unknown} has one seed and no interval." if unknown else ""
    return f"{where} {_reaches(top)}, ahead of {others}.{doubt}"


def _highest(results: pd.DataFrame) -> str:
    """The highest mean of each condition. No claim: the paired differences make those."""
    found: list[tuple[str, str]] = []
    for _, group in results.dropna(subset=["mean"]).groupby(CELL, sort=False, dropna=False):
        top = group.sort_values("mean", ascending=False, kind="stable").iloc[0]
        same = group.loc[group["mean"] >= top["mean"] - ROUNDING, "method"]
        found.append(
            (
                " and ".join(same),
                f"{place(results, top)} ({share(top['mean'], top['low'], top['high'])})",
            )
        )
    each = [
        f"{method} {', '.join(text for _, text in same)}"
        for method, same in groupby(found, key=lambda pair: pair[0])
    ]
    return f"Highest {MEASURE}: {'; '.join(each)}." if each else ""


def _modes(runs: Runs) -> dict[str, str]:
    return {study.label: study.mode for study in runs.studies}


def _where(table: pd.DataFrame, row: Any) -> str:
    """'At 50 labels', or 'Under' the condition's id, as a sentence starts."""
    where = place(table, row)
    return where[0].upper() + where[1:] + ("," if where.startswith("under") else "")


def _reaches(row: pd.Series) -> str:
    share = f"{100 * row['mean']:.1f} % {MEASURE}"
    if math.isnan(row["low"]):
        return f"{row['method']} reaches {share} (one fresh seed, so no interval)"
    seeds = f"{row['n']} fresh seeds"
    return f"{row['method']} reaches {share} {ends(row['low'], row['high'])}, {seeds}"


def _brief(row: pd.Series) -> str:
    return f"{row['method']} at {share(row['mean'], row['low'], row['high'])}"


def _data(runs: Runs) -> Iterator[str]:
    """What was left out of the data, and what else is to be known of them; once for runs on the same ones."""
    for remark in dict.fromkeys(remark for study in runs.studies for remark in study.remarks):
        yield f"Data: {remark}."


def _guessed(runs: Runs, results: pd.DataFrame) -> Iterator[str]:
    """Results that guessing would reach."""
    for _, row in results.dropna(subset=["mean"]).iterrows():
        study = next(study for study in runs.studies if study.label == row["method"])
        if study.is_chance(row["mean"], row["low"]):
            where, value = place(results, row), f"{100 * row['mean']:.1f} %"
            yield f"{row['method']} {where} is at chance level: {value} with {study.num_classes} classes."


def _progress(runs: Runs) -> Iterator[str]:
    for study in runs.studies:
        trials = runs.trials[runs.trials["run"] == study.run]
        search = trials[trials["phase"] == log.SEARCH]
        running = trials[trials["status"] == RUNNING]
        if len(running):
            yield (
                f"{study.label}: {len(running)} trial(s) have no ending: the run is still going or "
                "was interrupted. They are counted as running and enter no number."
            )
        lost = search["status"].isin(log.BAD_ENDINGS)
        if len(search) and lost.all():
            reasons = [last_line(r) for r in search["reason"] if isinstance(r, str)]
            first = f" First reason: {reasons[0]}" if reasons else ""
            yield f"{study.label}: all {len(search)} search trials failed, diverged or collapsed.{first}"
        blank = (trials["status"] != RUNNING) & trials["images_seen"].isna()
        if blank.any():
            yield (
                f"{study.label}: {blank.sum()} trial(s) that ended did not say how many images "
                "they saw; the total of images seen is at least what the table shows."
            )
        nulls = (search["status"] == log.FINISHED) & search["value"].isna()
        if nulls.any():
            yield f"{study.label}: {nulls.sum()} finished trial(s) have no {study.metric} value."


def _seeds(runs: Runs, results: pd.DataFrame) -> Iterator[str]:
    for row in results.to_dict("records"):
        study = next(study for study in runs.studies if study.label == row["method"])
        where = f"{row['method']}, {row['condition']}"
        if row["missing"]:
            yield (
                f"{where}: {row['missing']} of {row['n'] + row['missing']} confirm trials have no "
                "test value. The mean is over the others and may be flattered by that."
            )
        planned, found = study.planned_seeds, row["n"] + row["missing"]
        if planned is not None and found < planned:
            yield f"{where}: {found} of {planned} planned confirm seeds have been run."
    for study in runs.studies:
        trials = runs.trials[runs.trials["run"] == study.run]
        seeds = {
            phase: set(trials.loc[trials["phase"] == phase, "seed"].dropna())
            for phase in (log.SEARCH, log.FINALIST, log.CONFIRM)
        }
        tuning = seeds[log.SEARCH] | seeds[log.FINALIST]
        reused = sorted(int(s) for s in tuning & seeds[log.CONFIRM])
        if reused:
            listed = ", ".join(map(str, reused))
            yield f"{study.label}: seed {listed} served both the search and the confirmation."
    if {"test/confusion", ACCURACY} <= set(runs.trials.columns):
        for _, trial in confirm_trials(runs).iterrows():
            if isinstance(trial["test/confusion"], list) and not math.isnan(trial[ACCURACY]):
                try:
                    counts = np.asarray(trial["test/confusion"], dtype=float)
                except (ValueError, TypeError):  # no matrix: the figure is left out, and says so
                    continue
                share = np.trace(counts) / counts.sum() if counts.sum() else math.nan
                if not abs(share - trial[ACCURACY]) < 1e-3:
                    yield (
                        f"{trial['label']}, {trial['trial']}: test/accuracy is "
                        f"{trial[ACCURACY]:.4f}, but its confusion matrix says {share:.4f}."
                    )


def _few_images(runs: Runs, results: pd.DataFrame) -> Iterator[str]:
    """Test and validation parts on which an accuracy is hardly known."""
    counts = runs.studies[0].dataset.get("counts")
    test = counts.get("test") if isinstance(counts, Mapping) else None
    if isinstance(test, int) and test < FEW_TEST and results["mean"].notna().any():
        yield f"{test} test images: an accuracy on them is known to {100 * half_width(test):.0f} points at best."
    for row in runs.conditions.drop_duplicates(["condition", "validation"]).to_dict("records"):
        if row["validation"] < FEW_VALIDATION:
            yield (
                f"{row['condition']}: {row['validation']} validation images: the choice between configurations was "
                "close to chance."
            )


def _outlying(results: pd.DataFrame) -> Iterator[str]:
    """The seeds that are far from the others, and what they do to the mean."""
    for row in results[results["outlying"].notna()].to_dict("records"):
        yield (
            f"{row['method']}, {row['condition']}: {far(row['outlying'])} from the other seeds: "
            f"the mean is {100 * row['shift']:+.1f} points from theirs, which t intervals and tests are not made for."
        )


def _locks(runs: Runs, chosen: pd.DataFrame) -> Iterator[str]:
    for row in chosen.to_dict("records"):
        if not row["rule_agrees"]:
            yield (
                f"{row['method']}, {row['condition']}: the locked trial {row['trial']} is not the "
                "one that the rule picks among the trials on record."
            )
    for (run, condition), locks in runs.choices.groupby(["run", "condition"], sort=False):
        if locks["digest"].nunique() > 1:
            yield (
                f"{runs.study(str(run)).label}, {condition}: {locks['digest'].nunique()} "
                "configurations were locked, so test data was opened more than once. "
                "Only the first one counts here."
            )
    locked = set(zip(runs.choices["run"], runs.choices["condition"], strict=True))
    confirm = runs.trials[runs.trials["phase"] == log.CONFIRM]
    cells = confirm[["run", "condition"]].drop_duplicates().itertuples(index=False, name=None)
    for run, condition in cells:
        if (run, condition) not in locked:
            yield f"{runs.study(run).label}, {condition}: confirm trials without a locked event."


def _fair(runs: Runs, budget: pd.DataFrame) -> Iterator[str]:
    unequal = budget[budget["flag"] != ""]
    for (method, flag), rows in unequal.groupby(["method", "flag"], sort=False):
        yield f"Unequal budget, {method} under {', '.join(rows['condition'])}: {flag}."
    if len({(study.metric, study.mode) for study in runs.studies}) > 1:
        listed = ", ".join(f"{s.label}: {s.metric}" for s in runs.studies)
        yield f"The runs were tuned on different metrics ({listed})."
    for condition, rows in runs.conditions.groupby("condition", sort=False):
        absent = [label for label in runs.labels if label not in set(rows["label"])]
        if absent:
            yield f"{condition} is not part of {', '.join(absent)}: no comparison there."
        for column in ("labels", "validation"):
            if rows[column].nunique(dropna=False) > 1:
                yield f"{condition}: the runs differ in their number of {column} images."
