"""The report's tables, as plain numbers. Nothing here formats; `display` does that.

Shares are fractions (0.873), not percentages. A cell without a number is nan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.numbers.stats import (
    ALPHA,
    Floats,
    Interval,
    holm,
    mean_interval,
    outlying,
    paired,
    seeds_and_images,
    t_p_value,
    welch_p_value,
)
from analysis.read.load import RUNNING, STATUSES, TEST_METRIC, Runs
from analysis.read.selection import DEFAULT_RULE
from analysis.read.study import Study
from analysis.read.values import is_share, last_line, missing
from tune_ssl.records import log
from tune_ssl.records.predictions import Ints
from tune_ssl.records.ties import half_width

ACCURACY = "test/accuracy"
CELL = ["condition", "labels"]  # rows that differ in either are not compared
Condition = tuple[str, float | None]
Tables = Mapping[str, pd.DataFrame]  # the tables of the report by stem: report.all_tables
UNEQUAL = 0.10  # steps of two methods may differ by this share of the larger before it is said


def confirm_trials(runs: Runs) -> pd.DataFrame:
    """The confirm trials that count, one per (run, condition, seed), whatever their status.

    Where a condition was locked more than once, only the first lock's trials count: the later
    choice was made with test results in sight.
    """
    trials = runs.trials[runs.trials["phase"] == log.CONFIRM]
    keep = pd.Series(True, index=trials.index)
    for (run, condition), locks in runs.choices.groupby(["run", "condition"]):
        if locks["digest"].nunique() > 1:
            own = (trials["run"] == run) & (trials["condition"] == condition)
            first = runs.ledgers[str(run)].locked[str(condition)].get("config")
            same = [config == first for config in trials["full_config"]]
            keep &= ~own | pd.Series(same, index=trials.index, dtype=bool)
    trials = trials[keep]
    repeated = trials.duplicated(["run", "condition", "seed"]) & trials["seed"].notna()
    return trials[~repeated]


def results_table(runs: Runs) -> pd.DataFrame:
    """Per condition and method: test accuracy over the confirm seeds, with t intervals.

    `n` seeds are in the mean, `missing` ended without a test value or still run. `best` is what
    `not_worse` says of the methods under one condition and label count. `images_low` and
    `images_high` are the ends for other seeds and other test images (`seeds_and_images`), nan where
    the run did not record single images. `outlying` lists the seeds that are far from the others,
    each with its value (a dict, nan where none), and `shift` is how far they move the mean.
    """
    rows, scores = [], []
    confirmed = confirm_trials(runs)
    for study, condition, trials in cells(runs, confirmed):
        if trials.empty:
            continue
        main = mean_interval(finished_values(trials, TEST_METRIC))
        plain = mean_interval(finished_values(trials, ACCURACY))
        own = by_seed(trials)
        scores.append(own)
        whole = images_interval(
            own["value"].dropna().index.astype(int).tolist(), correct_by_seed(runs, trials)
        )
        apart = _outlying(own["value"].dropna())
        others = own["value"].drop([*apart]).mean()
        rows.append(
            {
                **identity(study, condition),
                "mean": main.mean,
                "low": main.low,
                "high": main.high,
                "std": main.std,
                "accuracy": plain.mean,
                "accuracy_low": plain.low,
                "accuracy_high": plain.high,
                "n": main.n,
                "missing": len(trials) - main.n,
                "images_low": whole.low,
                "images_high": whole.high,
                "outlying": apart or math.nan,
                "shift": main.mean - others if apart else 0.0,
            }
        )
    columns = "method condition labels mean low high std accuracy accuracy_low accuracy_high"
    columns += " n missing images_low images_high outlying shift"
    table = pd.DataFrame(rows, columns=columns.split())
    table["best"] = False
    for _, group in table.groupby(CELL, sort=False, dropna=False):
        table.loc[group.index, "best"] = not_worse([scores[place] for place in group.index])
    return table.sort_values("labels", kind="stable", ignore_index=True)


def not_worse(scores: Sequence[pd.DataFrame]) -> list[bool]:
    """Which of some methods have the highest mean or are not shown to be worse than that one.

    Takes each method's `by_seed`. Worse is what the paired t test against the highest mean says,
    after Holm's correction over these comparisons, at `ALPHA`. With fewer than two seeds in common
    on the same labeled images, Welch's test takes its place. A method with one seed is never
    marked, and none is where the highest mean is of one seed: nothing can be tested then.
    """
    values = [own["value"].dropna() for own in scores]
    measured = [place for place, own in enumerate(values) if len(own)]
    if not measured:
        return [False] * len(scores)
    top = max(measured, key=lambda place: float(values[place].mean()))
    found = [_lead(scores[top], own) for own in scores]
    p_values = holm([math.nan if place == top else p for place, (_, p) in enumerate(found)])
    worse = [lead > 0 and p < ALPHA for (lead, _), p in zip(found, p_values, strict=True)]
    testable = len(values[top]) > 1
    return [testable and len(own) > 1 and not w for own, w in zip(values, worse, strict=True)]


def _lead(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float]:
    """How far `a` is ahead of `b`, and the p of it: by pairs, where there are two, else by Welch's test."""
    ours, theirs, _ = pairs(a, b)
    gaps = paired(ours, theirs)
    if len(gaps) > 1:
        return float(gaps.mean()), t_p_value(gaps)
    x, y = a["value"].dropna(), b["value"].dropna()
    return float(x.mean() - y.mean()), welch_p_value(x, y)


def _outlying(values: pd.Series) -> dict[int, float]:
    """Seed -> value of the seeds that are far from the others."""
    found = values.iloc[outlying(values.to_list())]
    return {int(seed): float(value) for seed, value in found.items()}  # type: ignore[call-overload]


Scored = Mapping[int, tuple[Floats, Ints]]  # seed -> right (1) or not (0), and class, of N images


def correct_by_seed(runs: Runs, trials: pd.DataFrame) -> Scored:
    """What is recorded of single test images, of the finished ones of one run's confirm trials."""
    found: dict[int, tuple[Floats, Ints]] = {}
    own = trials[trials["status"] == log.FINISHED].dropna(subset=["seed"])
    for run, trial, seed in zip(own["run"], own["trial"], own["seed"], strict=True):
        one = runs.predictions[run].get(trial)
        if one is not None and len(one.test_true):
            found[int(seed)] = (one.test_correct.astype(float), one.test_true)
    return found


def images_interval(seeds: Collection[int], ours: Scored, theirs: Scored | None = None) -> Interval:
    """`seeds_and_images` of a method's scores of `seeds`, or of two methods' paired difference.

    nan unless all of the seeds are on record, with the same images.
    """
    sides = [ours] if theirs is None else [ours, theirs]
    if not seeds or any(seed not in side for seed in seeds for side in sides):
        return mean_interval(())
    classes = [side[seed][1] for seed in seeds for side in sides]
    if any(not np.array_equal(one, classes[0]) for one in classes):
        return mean_interval(())
    rows = [ours[s][0] - (0.0 if theirs is None else theirs[s][0]) for s in sorted(seeds)]
    return seeds_and_images(np.stack(rows), classes[0])


def device_seconds(trials: pd.DataFrame) -> pd.Series:
    """What each trial took, without the time in which it waited for what another one trained."""
    return trials["seconds"] - trials["waited"].fillna(0)


def by_seed(trials: pd.DataFrame) -> pd.DataFrame:
    """`value` (on test) and `split` (a digest of the labeled images) of trials, by seed."""
    found = trials.assign(value=finished_values(trials, TEST_METRIC))
    return found.dropna(subset=["seed"]).set_index("seed")[["value", "split"]]


def pairs(a: pd.DataFrame, b: pd.DataFrame) -> tuple[dict[int, float], dict[int, float], int]:
    """The values by seed of two `by_seed`, of the seeds that both have with the same labeled images,
    and how many seeds have other ones. An unknown split is taken for the same."""
    both = a.merge(b, left_index=True, right_index=True, suffixes=("_a", "_b"))
    other = both["split_a"] != both["split_b"]
    other &= both["split_a"].notna() & both["split_b"].notna()
    same = both[~other]
    seeds = same.index.astype(int)
    ours, theirs = (dict(zip(seeds, same[f"value_{x}"].astype(float), strict=True)) for x in "ab")
    return ours, theirs, int(other.sum())


def budget_table(runs: Runs) -> pd.DataFrame:
    """Per condition and method: trials by status, and what they cost. `flag` names what is unequal.

    Trials by status are those of the search; steps, images and seconds are of the search and the
    finalists, as far as they ended: the cost of running trials is not known. `candidates` are the
    search trials of which one can be chosen. `model_steps` are those of one confirmed network.
    """
    rows = []
    for study, condition, trials in cells(runs, runs.trials):
        search = trials[trials["phase"] == log.SEARCH]
        tuning = trials[trials["phase"].isin((log.SEARCH, log.FINALIST))]
        confirm = trials[trials["phase"] == log.CONFIRM]
        rows.append(
            {
                **identity(study, condition),
                "trials": len(search),
                **_counts(search),
                "candidates": candidates(runs, study, condition),
                "finalist_trials": len(tuning) - len(search),
                "steps": _total(tuning, "step"),
                "images_seen": _total(tuning, "images_seen"),
                "seconds": _total(tuning, "seconds"),
                "confirm_trials": len(confirm),
                "confirm_seconds": _total(confirm, "seconds"),
                "model_steps": finished_values(confirm, "step").mean(),
            }
        )
    columns = ["trials", *STATUSES, "candidates", "finalist_trials"]
    columns += ["steps", "images_seen", "seconds"]
    columns = ["method", "condition", "labels", *columns, "confirm_trials", "confirm_seconds"]
    columns += ["model_steps"]
    table = pd.DataFrame(rows, columns=columns)
    table["flag"] = ""
    fitted = {study.label for study in runs.studies if study.fitted}
    for _, group in table.groupby("condition", sort=False):
        for index in group.index:
            table.loc[index, "flag"] = _unequal(group, index, fitted)
    return table.sort_values("labels", kind="stable", ignore_index=True)


def trial_table(runs: Runs) -> pd.DataFrame:
    """Every trial, in start order. `config` shows the searched keys, or, where a run searched none,
    those that vary; config.* columns hold all."""
    table = runs.trials.copy()
    keys = _shown_keys(runs)
    table["config"] = [config_text(_config(row), keys[row["run"]]) for _, row in table.iterrows()]
    table["metric"] = table["run"].map({study.run: study.metric for study in runs.studies})
    table["method"] = table["label"]
    first = str.split(
        "method condition labels phase trial number status value last metric step seconds"
    )
    first += ["seed", "config", "given", "redrawn", "reason", "digest"]
    configs = [column for column in table.columns if column.startswith("config.")]
    return table[[*first, *configs]].reset_index(drop=True)


def chosen_table(runs: Runs) -> pd.DataFrame:
    """Per condition and method: the chosen configuration, its tuning value and its confirmed value.

    `tuned` is the value that won the search (optimistic, being the best of many), `confirmed` the
    same metric's mean over the confirm seeds. `locked` says whether test data was opened for it;
    where not, the row is what the rule would choose now. It is one of `candidates` search trials that
    finished, of `begun`.
    """
    rows: list[dict[str, Any]] = []
    confirmed = confirm_trials(runs)
    for study, condition, trials in cells(runs, runs.trials):
        ledger, where = runs.ledgers[study.run], condition["condition"]
        scores = DEFAULT_RULE.scores(ledger, where, study.mode)
        best = next(iter(scores), None)
        row = {**identity(study, condition), "metric": study.metric, "run": study.run}
        row["candidates"] = candidates(runs, study, condition)
        row["begun"] = int((trials["phase"] == log.SEARCH).sum())
        if where in ledger.locked:
            lock = {key: math.nan if v is None else v for key, v in ledger.locked[where].items()}
            own = (confirmed["run"] == study.run) & (confirmed["condition"] == where)
            value = mean_interval(confirmed["value"][own & (confirmed["status"] == log.FINISHED)])
            taken = str.split("trial digest half_width rule")
            row |= {key: lock.get(key, math.nan) for key in taken}
            row["half_width"] = row["half_width"] if is_share(study.metric) else math.nan
            row |= {"tuned": lock.get("value"), "confirmed": value.mean, "confirmed_n": value.n}
            row |= {
                "locked": True,
                "opened": lock.get("time"),
                "full_config": lock.get("config", {}),
            }
            row["rule_agrees"] = best is not None and scores.get(str(lock["trial"])) == scores[best]
            rows.append({**row, "ties": _ties(runs, study, where, row["trial"], row["half_width"])})
        elif best is not None:
            width = half_width(condition["validation"]) if is_share(study.metric) else math.nan
            row |= {"trial": best, "tuned": scores[best], "rule": DEFAULT_RULE.sentence}
            row |= {"ties": _ties(runs, study, where, best, width), "half_width": width}
            row |= {"confirmed": math.nan, "confirmed_n": 0, "locked": False, "opened": math.nan}
            chosen = trials[trials["trial"] == best].iloc[0]
            row |= {"digest": chosen["digest"], "full_config": _config(chosen)}
            rows.append({**row, "rule_agrees": True})
    keys = _shown_keys(runs)
    for row in rows:
        row["config"] = config_text(row["full_config"], keys[row["run"]])
    columns = "method condition labels trial config metric tuned confirmed confirmed_n ties"
    columns += " candidates begun half_width locked opened digest rule rule_agrees full_config run"
    table = pd.DataFrame(rows, columns=columns.split())
    return table.sort_values("labels", kind="stable", ignore_index=True)


def _ties(runs: Runs, study: Study, condition: str, trial: str, half_width: float) -> float:
    """How many other finished search trials lie within the half-width of the chosen one.

    By the values of the search's own seed, which all of them have.
    """
    values = runs.ledgers[study.run].scores(condition, study.mode, log.SEARCH)
    if trial not in values or missing(half_width):
        return math.nan
    return float(sum(abs(value - values[trial]) <= half_width for value in values.values()) - 1)


def candidates(runs: Runs, study: Study, condition: Mapping[str, Any]) -> int:
    """How many search trials of a condition finished with a value: its config is one of theirs."""
    ledger = runs.ledgers[study.run]
    return len(ledger.scores(condition["condition"], study.mode, log.SEARCH))


def stability_table(runs: Runs) -> pd.DataFrame:
    """Per method, trials by status, and why trials diverged, collapsed or failed; without its ablations."""
    rows = []
    for study in runs.studies:
        trials = runs.trials[runs.trials["run"] == study.run]
        trials = trials[trials["phase"].isin((log.SEARCH, log.FINALIST, log.CONFIRM))]
        bad = trials[trials["status"].isin(log.BAD_ENDINGS)]
        reasons = Counter(last_line(reason) or "no reason" for reason in bad["reason"])
        text = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        counts = {"trials": len(trials), **_counts(trials)}
        rows.append({"method": study.label, **counts, "reasons": text})
    return pd.DataFrame(rows, columns=["method", "trials", *STATUSES, "reasons"])


def config_text(config: dict[str, Any], keys: list[str]) -> str:
    """`key=value` of `keys`, numbers with four significant digits."""
    return " ".join(f"{key}={_short(config[key])}" for key in keys if key in config)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(runs: Runs, trials: pd.DataFrame) -> Iterator[tuple[Study, dict[str, Any], pd.DataFrame]]:
    """Each (run, condition) with its trials; conditions in the order of study.yaml."""
    for row in runs.conditions.to_dict("records"):
        own = (trials["run"] == row["run"]) & (trials["condition"] == row["condition"])
        condition = {str(key): value for key, value in row.items()}
        yield runs.study(condition["run"]), condition, trials[own]


def identity(study: Study, condition: dict[str, Any]) -> dict[str, Any]:
    """The columns that say whose row it is."""
    shared = {"condition": condition["condition"], "labels": condition["labels"]}
    return {"method": study.label, **shared}


def condition_of(row: Mapping[Any, Any] | pd.Series) -> Condition:
    """A row's condition and label count, which two runs may put under one id; None if unknown."""
    labels = row["labels"]
    return str(row["condition"]), None if missing(labels) else float(labels)


def finished_values(trials: pd.DataFrame, column: str) -> pd.Series:
    """A metric of trials, nan wherever the trial did not finish."""
    if column not in trials:
        return pd.Series(math.nan, index=trials.index)
    return trials[column].where(trials["status"] == log.FINISHED)


def _counts(trials: pd.DataFrame) -> dict[str, int]:
    return {status: int((trials["status"] == status).sum()) for status in STATUSES}


def _total(trials: pd.DataFrame, column: str) -> float:
    ended = trials[trials["status"] != RUNNING]
    return float((device_seconds(ended) if column == "seconds" else ended[column]).sum())


def _unequal(group: pd.DataFrame, index: Any, fitted: Collection[str]) -> str:
    """What this method had less of than another one under the same condition.

    A method that is `fitted` at once has no steps to count, and may have nothing to search.
    """
    flags = []
    if group.loc[index, "method"] in fitted:
        return ""
    kinds = (("trials", 0.0, "trials"), ("steps", UNEQUAL, "steps"))
    for column, slack, word in (*kinds, ("model_steps", UNEQUAL, "steps of a model")):
        mine, most = group.loc[index, column], group[column].max()
        if mine < most * (1 - slack):
            flags.append(f"{word} {mine:,.0f} against {most:,.0f}")
    return "; ".join(flags)


def _config(row: pd.Series) -> dict[str, Any]:
    found = row["full_config"]
    return found if isinstance(found, dict) else {}


def _shown_keys(runs: Runs) -> dict[str, list[str]]:
    """Per run the config keys that tell its trials apart."""
    return {study.run: study.searched or _varying(runs, study.run) for study in runs.studies}


def _varying(runs: Runs, run: str) -> list[str]:
    trials = runs.trials[runs.trials["run"] == run]
    columns = [column for column in trials.columns if column.startswith("config.")]
    return [c[7:] for c in columns if trials[c].dropna().astype(str).nunique() > 1]
