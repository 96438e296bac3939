"""Optuna's samplers and pruners, by the settings of a study."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_ssl.base.spec import StudySpec
from tune_ssl.records import log
from tune_ssl.study.named import arguments, class_of, name_of

LAST_RUNG = 2 / 3  # of a trial: a later rung has too little left to save
FIRST_RUNG = 0.25  # of a trial: before it, a value says little of the end (docs/search.md)
NEW_STAGE = 0.25  # of a stage: before it, its head says little


def build_sampler(
    settings: StudySpec,
    kinds: Mapping[str, BaseDistribution],
    seed: int,
    number: int,
    draw: int = 0,
) -> optuna.samplers.BaseSampler:
    """The sampler that draws trial `number` of a study; `kinds` are the keys that each config has.

    What it draws depends on the seed, the number, how often it was drawn before and the trials before it, and on
    nothing that a process remembers: a search that goes on after a kill draws what it would have drawn. Only
    CMA-ES, and others that keep notes in the trials, begin to adapt anew.
    """
    fresh = int(np.random.SeedSequence([seed, number, draw]).generate_state(1)[0])
    if settings.searcher in ("random", "grid"):  # a grid's values are given
        return optuna.samplers.RandomSampler(seed=fresh)
    name, given = name_of(settings.sampler), arguments(settings.sampler)
    if name == "qmc":
        return NumberedQMC(number, seed + draw, given)
    if name == "tpe":
        first = max(4, min(10, settings.num_trials // 3))
        own = {"n_startup_trials": first, "multivariate": True, "constant_liar": True}
        quiet = {"warn_independent_sampling": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some of these are experimental, or will go
            return FixedSpaceTPE(kinds, **{**own, **quiet, **given, "seed": fresh})
    kind = class_of("sampler", settings.sampler)
    try:
        return kind(**{**given, "seed": fresh})  # type: ignore[no-any-return]
    except TypeError:  # one without a seed
        return kind(**given)  # type: ignore[no-any-return]


class FixedSpaceTPE(optuna.samplers.TPESampler):
    """Every trial has the keys of `kinds`: the space need not be looked for in all trials before each draw.

    Keys that only some configs have are drawn one by one, from the trials that have them.
    """

    def __init__(self, kinds: Mapping[str, BaseDistribution], **settings: Any) -> None:
        super().__init__(**settings)
        self.space = {key: kind for key, kind in sorted(kinds.items()) if not kind.single()}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self.space


class NumberedQMC(optuna.samplers.QMCSampler):
    """Trial n takes point n of the scrambled Sobol sequence; Optuna counts them by a note in the study."""

    def __init__(self, number: int, seed: int, given: Mapping[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                **{"scramble": True, "independent_sampler": None, **given, "seed": seed % 2**32}
            )
        self.number = number

    def _find_sample_id(self, study: Any, search_space: Any) -> int:
        return self.number


class AsSampled(optuna.Study):
    """A study as its sampler is to see it: what diverged or collapsed is as bad as can be, and not unknown.

    TPE takes a trial that was stopped before it reported anything for the worst; other samplers, which know finished
    trials only, get it as one with the worst value of those that finished.
    """

    def __init__(self, study: optuna.Study, stopped_counts: bool) -> None:
        super().__init__(study.study_name, study._storage, sampler=study.sampler)
        self.stopped_counts = stopped_counts

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        found = super()._get_trials(deepcopy=False, states=None, use_cache=use_cache)
        if any(_went_bad(trial) for trial in found):
            values = [t.value for t in found if t.state == TrialState.COMPLETE]
            choose = min if self.direction == optuna.study.StudyDirection.MAXIMIZE else max
            worst = choose(values, default=None)  # type: ignore[type-var]
            found = [self._bad(t, worst) if _went_bad(t) else t for t in found]
        return [trial for trial in found if states is None or trial.state in states]

    def _bad(self, trial: FrozenTrial, worst: float | None) -> FrozenTrial:
        if not self.stopped_counts and worst is None:
            return trial
        bad = create_trial(
            state=TrialState.PRUNED if self.stopped_counts else TrialState.COMPLETE,
            value=None if self.stopped_counts else worst,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs=trial.system_attrs,  # in which some samplers keep what they know
        )
        bad.number, bad._trial_id = trial.number, trial._trial_id
        return bad


def _went_bad(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("status") in (log.DIVERGED, log.COLLAPSED)


class HalvingPruner(optuna.pruners.BasePruner):
    """Asynchronous successive halving (Li et al. 2020, algorithm 2) at given evaluations.

    At a rung a trial goes on if it is among the best 1/factor of those that have been there, or the best of fewer.
    It keeps nothing but what is in the study.
    """

    def __init__(self, rungs: Sequence[int], factor: int) -> None:
        self.rungs, self.factor = frozenset(rungs), factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step not in self.rungs:
            return False
        sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        values = [
            sign * other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values
        ]
        own = sign * trial.intermediate_values[step]
        better = sum(value < own for value in values)
        return better >= max(1, len(values) // self.factor)


def build_pruner(settings: StudySpec, stages: Sequence[int]) -> optuna.pruners.BasePruner:
    """Successive halving, another rule of Optuna's, or none; all per condition.

    Resources are evaluations: `stages` says how many each stage has.
    """
    name, given = name_of(settings.scheduler), arguments(settings.scheduler)
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "asha":
        return HalvingPruner(rungs_of(settings, stages), settings.reduction_factor)
    grace = grace_of(settings, stages)
    own: dict[str, dict[str, Any]] = {
        "median": {"n_startup_trials": 4, "n_warmup_steps": grace},
        "percentile": {"n_startup_trials": 4, "n_warmup_steps": grace},
        "hyperband": {
            "min_resource": grace,
            "max_resource": sum(stages),
            "reduction_factor": settings.reduction_factor,
        },
    }
    kind = class_of("scheduler", settings.scheduler)
    return kind(**{**own.get(name, {}), **given})  # type: ignore[no-any-return]


def keeps_notes(settings: StudySpec) -> bool:
    """Whether the pruner may keep notes in the study, which a run that goes on must write again."""
    return name_of(settings.scheduler) not in ("asha", "none", "median", "percentile", "patient")


def why_stopped(settings: StudySpec) -> str:
    """The reason that the records give for a trial that the pruner stopped."""
    name = name_of(settings.scheduler)
    if name == "asha":
        share = {2: "half", 3: "third", 4: "quarter"}.get(settings.reduction_factor)
        best = f"best {share}" if share else f"best 1/{settings.reduction_factor}"
        return f"stopped early: worse than its rung's {best}"
    if name == "median":
        return "stopped early: worse than the median of the trials before it"
    return f"stopped early by {name}"


def rungs_of(settings: StudySpec, stages: Sequence[int]) -> list[int]:
    """The evaluations at which successive halving compares trials; none with another scheduler.

    From `grace_period` on, each `reduction_factor` times later than the one before; with auto they are counted back
    from the end, total / factor, total / factor^2, ..., as long as at least FIRST_RUNG of a trial is known there. None
    has less than a third of the trial after it. One that falls into the first quarter of a later stage, whose head is
    still new, is at the end of the stage before.
    """
    if name_of(settings.scheduler) != "asha":
        return []
    total, factor = sum(stages), settings.reduction_factor
    last = max(1, math.floor(LAST_RUNG * total))
    if settings.grace_period == "auto":
        found: list[int] = []
        rung = total / factor
        while rung >= max(1, FIRST_RUNG * total):
            found.insert(0, math.ceil(rung))
            rung /= factor
    else:
        rung = grace_of(settings, stages)
        found = [rung]
        while found[-1] * factor <= last:
            found.append(found[-1] * factor)
    moved = [_off_new_stage(rung, stages) for rung in found or [math.ceil(FIRST_RUNG * total)]]
    return sorted({rung for rung in moved if rung < total})


def _off_new_stage(rung: int, stages: Sequence[int]) -> int:
    begins = 0
    for evaluations in stages:
        if begins and begins < rung <= begins + math.ceil(NEW_STAGE * evaluations):
            return begins
        begins += evaluations
    return rung


def compared_at(settings: StudySpec, stages: Sequence[int]) -> tuple[int, ...]:
    """The evaluations at which a trial's value decides over it or others: rungs, or all from the grace period on."""
    name = name_of(settings.scheduler)
    if name in ("asha", "none"):
        return tuple(rungs_of(settings, stages))
    first = 1 if name == "patient" or "." in name else grace_of(settings, stages)
    return tuple(range(first, sum(stages) + 1))


def grace_of(settings: StudySpec, stages: Sequence[int]) -> int:
    """Evaluations before a trial can be stopped."""
    share = settings.grace_period
    if share == "auto":
        share = 1 / settings.reduction_factor
    return max(1, math.ceil(share * sum(stages)))
