"""Does a method that uses unlabeled images beat the best one that does not? Per condition, by one rule for all.

The floor of a condition is the method with the highest mean among those that see labeled images alone. Each other
method is paired with it by seed. Where the floor is the reference of the report's differences, its p is theirs,
corrected over all of them; elsewhere Holm's correction is over the pairs with such floors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis.numbers.stats import (
    ALPHA,
    Interval,
    holm,
    mean_interval,
    paired_difference,
    paired_t_p_value,
)
from analysis.numbers.tables import (
    Condition,
    by_seed,
    cells,
    condition_of,
    confirm_trials,
    finished_values,
    pairs,
)
from analysis.read.load import TEST_METRIC, Runs


@dataclass(frozen=True)
class Contender:
    """A method that uses unlabeled images, against the floor of its condition."""

    label: str
    run: str
    score: Interval
    gain: Interval
    p_holm: float
    family: int  # comparisons that p is corrected over; 0: those of `difference_table`

    @property
    def helps(self) -> bool:
        """Whether it beats the floor by the rule that the whole report goes by."""
        return self.gain.mean > 0 and self.p_holm < ALPHA


@dataclass(frozen=True)
class Question:
    """One condition: its floor, if a method without unlabeled images is there, and the contenders, best first."""

    condition: Condition
    floor: str | None
    floor_score: Interval
    contenders: tuple[Contender, ...]


def questions(runs: Runs, differences: pd.DataFrame) -> list[Question]:
    """Per condition with test values, in order; `differences` is the `difference_table` of the runs."""
    rivals: dict[Condition, list[tuple[str, str, bool, pd.DataFrame]]] = {}
    scores: dict[tuple[Condition, str], Interval] = {}
    for study, condition, trials in cells(runs, confirm_trials(runs)):
        where = condition_of(condition)
        score = mean_interval(finished_values(trials, TEST_METRIC)) if len(trials) else None
        if score is None or math.isnan(score.mean):
            continue
        scores[where, study.label] = score
        rivals.setdefault(where, []).append((study.label, study.run, study.unlabeled, trials))
    stated = {
        (row["method"], row["reference"], condition_of(row)): row["p_holm"]
        for row in differences.to_dict("records")
    }
    found, tests = [], []
    for where, methods in rivals.items():
        plain = [label for label, _, unlabeled, _ in methods if not unlabeled]
        floor = max(plain, key=lambda label: scores[where, label].mean, default=None)
        theirs = next((trials for label, _, _, trials in methods if label == floor), None)
        own = []
        for label, run, unlabeled, trials in methods:
            if not unlabeled:
                continue
            a, b = dict[int, float](), dict[int, float]()
            if theirs is not None:
                a, b, _ = pairs(by_seed(trials), by_seed(theirs))
            p = stated.get((label, floor, where))
            own.append((label, run, paired_difference(a, b), p))
            if p is None:
                tests.append(paired_t_p_value(a, b))
        found.append((where, floor, own))
    corrected, family = iter(holm(tests)), sum(not math.isnan(p) for p in tests)
    answers = []
    for where, floor, own in found:
        contenders = [
            Contender(label, run, scores[where, label], gain, next(corrected), family)
            if p is None
            else Contender(label, run, scores[where, label], gain, p, 0)
            for label, run, gain, p in own
        ]
        contenders.sort(key=lambda one: -one.score.mean)
        score = scores[where, floor] if floor else mean_interval(())
        answers.append(Question(where, floor, score, tuple(contenders)))
    return answers
