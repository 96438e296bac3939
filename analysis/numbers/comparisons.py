"""Methods against each other: paired differences, and their mean over conditions.

All of it is on test data, over confirm trials whose seed and labeled images are the same for the
methods compared. Shares are fractions, a cell without a number is nan; `display` formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.numbers.stats import (
    ALPHA,
    holm,
    mean_interval,
    paired,
    paired_difference,
    paired_t_p_value,
    probability_of_improvement,
    seeds_for_decision,
    sign_flip_p_value,
    t_p_value,
)
from analysis.numbers.tables import (
    CELL,
    Condition,
    by_seed,
    cells,
    condition_of,
    confirm_trials,
    correct_by_seed,
    identity,
    images_interval,
    pairs,
)
from analysis.read.load import Runs
from analysis.read.study import Study

BASELINE = "supervised"
DIFFERENCES = str.split(
    "method reference condition labels mean low high n unpaired p p_holm p_sign_flip "
    "p_better p_better_low p_better_high seeds_needed images_low images_high"
)
GAINS = str.split(
    "method reference mean low high n p p_holm score reference_score conditions left_out"
)


@dataclass(frozen=True)
class Shared:
    """What can be pooled: `scores` has a row per (condition, seed), the same seeds under each
    condition, and a column per method. `left_out` says what had to go, empty where nothing had."""

    scores: pd.DataFrame
    left_out: str

    @property
    def conditions(self) -> list[str]:
        return list(self.scores.index.unique("condition"))


def reference_study(studies: Sequence[Study]) -> Study:
    """The study that the others under a condition are compared with: the first supervised baseline,
    else the first."""
    return next((study for study in studies if study.method == BASELINE), studies[0])


def difference_table(runs: Runs) -> pd.DataFrame:
    """Test accuracy of every method minus the reference's, paired by seed, per condition.

    Each condition (and label count, where runs differ in it) has its `reference_study` among the
    runs that confirmed it.
    Only pairs with the same labeled images count; the others are counted in `unpaired`. `p` is of
    the paired t test, `p_holm` the same after Holm's correction over the whole table: it decides.
    `p_sign_flip` is of the sign-flip test, `p_better` P(method > reference). `seeds_needed` is 0
    where it is decided, else `stats.seeds_for_decision` for as many comparisons as the table has.
    `images_low` and `images_high` are the difference's ends for other seeds and other test images.
    """
    confirmed = [cell for cell in cells(runs, confirm_trials(runs)) if not cell[2].empty]
    rivals: dict[Condition, dict[str, pd.DataFrame]] = {}
    for study, condition, trials in confirmed:
        rivals.setdefault(condition_of(condition), {})[study.run] = trials
    rows, gaps = [], []
    for study, condition, trials in confirmed:
        others = rivals[condition_of(condition)]
        reference = reference_study([runs.study(run) for run in others])
        if study.run == reference.run:
            continue
        ours, theirs, unpaired = pairs(by_seed(trials), by_seed(others[reference.run]))
        gaps.append(paired(ours, theirs))
        found = paired_difference(ours, theirs)
        better = probability_of_improvement(ours, theirs)
        single = [correct_by_seed(runs, one) for one in (trials, others[reference.run])]
        whole = images_interval(sorted(set(ours) & set(theirs)), *single)
        rows.append(
            {
                **identity(study, condition),
                "reference": reference.label,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "unpaired": unpaired,
                "p": paired_t_p_value(ours, theirs),
                "p_sign_flip": sign_flip_p_value(ours, theirs),
                "p_better": better.mean,
                "p_better_low": better.low,
                "p_better_high": better.high,
                "images_low": whole.low,
                "images_high": whole.high,
            }
        )
    table = pd.DataFrame(rows, columns=DIFFERENCES)
    table["p_holm"] = np.array(holm(table["p"].tolist()), dtype=float)
    tests = int(table["p"].notna().sum())
    more = np.array([seeds_for_decision(gap, tests) for gap in gaps], dtype=float)
    table["seeds_needed"] = np.where(table["p_holm"] < ALPHA, 0.0, more)
    return table.sort_values("labels", kind="stable", ignore_index=True)


def gain_table(runs: Runs) -> pd.DataFrame:
    """Per method but the reference: its paired gain averaged over conditions, whole seeds as units.

    A seed's gain is the mean, over the conditions that all methods share, of its test value minus the
    reference's; the interval and p are Student's t over seeds, since a seed's scores under several
    conditions are not independent. `p_holm` is corrected over the table. `score` is the method's own
    mean over conditions and seeds. It is about these conditions, and no others.
    """
    shared = shared_scores(runs)
    methods = list(shared.scores.columns)
    studies = [study for study in runs.studies if study.label in methods]
    if len(studies) < 2:
        return pd.DataFrame(columns=GAINS)
    reference = reference_study(studies).label
    by_seed_SM = shared.scores.groupby("seed").mean()
    rows = []
    for method in methods:
        if method == reference:
            continue
        found = mean_interval(by_seed_SM[method] - by_seed_SM[reference])
        rows.append(
            {
                "method": method,
                "reference": reference,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "p": t_p_value(by_seed_SM[method] - by_seed_SM[reference]),
                "score": float(by_seed_SM[method].mean()),
                "reference_score": float(by_seed_SM[reference].mean()),
                "conditions": len(shared.conditions),
                "left_out": shared.left_out,
            }
        )
    table = pd.DataFrame(rows, columns=GAINS)
    table["p_holm"] = np.array(holm(table["p"].tolist()), dtype=float)
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)


def shared_scores(runs: Runs) -> Shared:
    """The test values that all methods have under the same conditions, seeds and labeled images.

    A method without any test value is left out first, then a condition that some method lacks, then
    a seed that some method or condition lacks.
    """
    keys = ["condition", "seed"]
    parts = [
        by_seed(trials).assign(method=study.label, **{key: condition[key] for key in CELL})
        for study, condition, trials in cells(runs, confirm_trials(runs))
    ]
    if not parts:
        return Shared(pd.DataFrame(index=pd.MultiIndex.from_product([[], []], names=keys)), "")
    found = pd.concat(parts).dropna(subset=["value"]).reset_index()
    methods = [label for label in runs.labels if label in set(found["method"])]
    left = [f"{label}: no test value" for label in runs.labels if label not in methods]
    values = found.pivot(index=keys, columns="method", values="value")[methods].astype(float)
    splits = found.pivot(index=keys, columns="method", values="split")
    counts = found.groupby("condition")["labels"].nunique()
    alike = splits.index.get_level_values("condition").isin(counts.index[counts <= 1])
    same = (splits.nunique(axis=1) <= 1) & alike
    usable = values[same].dropna()
    seeds = {name: set(rows.index.get_level_values("seed")) for name, rows in _blocks(usable)}
    present = set(found["condition"])
    order = [name for name in dict.fromkeys(runs.conditions["condition"]) if name in present]
    left += [f"{name}: no seed and split in common" for name in order if name not in seeds]
    conditions = [name for name in order if name in seeds]
    common = sorted(set.intersection(*seeds.values())) if seeds else []
    lost = len(set(found.loc[found["condition"].isin(conditions), "seed"]) - set(common))
    left += [f"{lost} seed(s) that some method or condition lacks"] if lost else []
    kept = pd.MultiIndex.from_product([conditions, common], names=keys)
    return Shared(values.reindex(kept), "; ".join(left))


def _blocks(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for condition, rows in scores.groupby("condition", sort=False):
        yield str(condition), rows
