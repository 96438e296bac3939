"""Optuna's samplers and pruners, by the settings of a study."""

from __future__ import annotations

import math

import optuna

from tune_ssl.base.spec import StudySpec


def build_sampler(
    settings: StudySpec, seed: int, told: int, rebuilt: int = 0
) -> optuna.samplers.BaseSampler:
    """The sampler of the settings; `told` trials are in the study already, `rebuilt` ones made again.

    A quasi-random sequence goes on by a note in the study, which is lost when that is made again.
    """
    fresh = (seed + told) % 2**32
    if settings.searcher in ("random", "grid"):  # a grid's values are all enqueued
        return optuna.samplers.RandomSampler(seed=fresh)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=fresh, n_startup_trials=max(4, min(10, settings.num_trials // 3))
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=fresh),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=fresh),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=(seed + rebuilt) % 2**32, scramble=True),
    }
    return samplers[settings.sampler]()


def build_pruner(settings: StudySpec, evaluations: int) -> optuna.pruners.BasePruner:
    """Asynchronous successive halving (Li et al. 2020), the median rule, or none; all per condition.

    Resources are evaluations. The pruner's state is in the study, so that it survives the driver.
    """
    grace = grace_of(settings, evaluations)
    if settings.scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=grace, reduction_factor=settings.reduction_factor
        )
    if settings.scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=grace)
    return optuna.pruners.NopPruner()


def grace_of(settings: StudySpec, evaluations: int) -> int:
    """Evaluations before a trial can be stopped."""
    return max(1, math.ceil(settings.grace_period * evaluations))
