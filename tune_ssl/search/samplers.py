"""Optuna's samplers and pruners, by the settings of a study."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from tune_ssl.base.spec import StudySpec


def build_sampler(
    settings: StudySpec, kinds: Mapping[str, BaseDistribution], seed: int, number: int
) -> optuna.samplers.BaseSampler:
    """The sampler that draws trial `number` of a study, which has the keys of `kinds`.

    What it draws depends on the seed, the number and the trials before it, and on nothing that a process
    remembers: a search that goes on after a kill draws what it would have drawn.
    """
    fresh = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if settings.searcher in ("random", "grid"):  # a grid's values are given
        return optuna.samplers.RandomSampler(seed=fresh)
    samplers: dict[str, Any] = {
        "tpe": lambda: FixedSpaceTPE(
            kinds,
            seed=fresh,
            n_startup_trials=max(4, min(10, settings.num_trials // 3)),
            multivariate=True,
            constant_liar=True,
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=fresh),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=fresh),
        "qmc": lambda: NumberedQMC(number, seed),
    }
    sampler: optuna.samplers.BaseSampler = samplers[settings.sampler]()
    return sampler


class FixedSpaceTPE(optuna.samplers.TPESampler):
    """Every trial has every key: the space need not be looked for in all trials before each draw."""

    def __init__(self, kinds: Mapping[str, BaseDistribution], **settings: Any) -> None:
        super().__init__(**settings)
        self.space = {key: kind for key, kind in sorted(kinds.items()) if not kind.single()}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self.space


class NumberedQMC(optuna.samplers.QMCSampler):
    """Trial n takes point n of the scrambled Sobol sequence; Optuna counts them by a note in the study."""

    def __init__(self, number: int, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed=seed % 2**32, scramble=True, independent_sampler=None)
        self.number = number

    def _find_sample_id(self, study: Any, search_space: Any) -> int:
        return self.number


def build_pruner(settings: StudySpec, evaluations: int) -> optuna.pruners.BasePruner:
    """Asynchronous successive halving (Li et al. 2020), the median rule, or none; all per condition.

    Resources are evaluations. A pruner keeps nothing but what is in the study.
    """
    grace = grace_of(settings, evaluations)
    if settings.scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=grace, reduction_factor=settings.reduction_factor
        )
    if settings.scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=grace)
    return optuna.pruners.NopPruner()


def why_stopped(settings: StudySpec) -> str:
    """The reason that the records give for a trial that the pruner stopped."""
    if settings.scheduler == "asha":
        share = {2: "half", 3: "third", 4: "quarter"}.get(settings.reduction_factor)
        best = f"best {share}" if share else f"best 1/{settings.reduction_factor}"
        return f"stopped early: worse than its rung's {best}"
    return "stopped early: worse than the median of the trials before it"


def rungs_of(settings: StudySpec, evaluations: int) -> list[int]:
    """The evaluations at which successive halving compares trials; none with another scheduler."""
    if settings.scheduler != "asha":
        return []
    grace, rungs = grace_of(settings, evaluations), []
    while grace <= evaluations:
        rungs.append(grace)
        grace *= settings.reduction_factor
    return rungs


def compared_at(settings: StudySpec, evaluations: int) -> tuple[int, ...]:
    """The evaluations at which a trial's value decides over it or others: rungs, or all from the grace period on."""
    if settings.scheduler == "median":
        return tuple(range(grace_of(settings, evaluations), evaluations + 1))
    return tuple(rungs_of(settings, evaluations))


def grace_of(settings: StudySpec, evaluations: int) -> int:
    """Evaluations before a trial can be stopped."""
    return max(1, math.ceil(settings.grace_period * evaluations))
