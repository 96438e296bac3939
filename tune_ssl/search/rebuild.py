"""The Optuna studies, brought back to what the run's records say after their storage lost something.

trials.jsonl and history.jsonl are written before a study is told, so that a sound storage never lacks what
they know. Where one does (deleted, restored from an older copy, damaged), its trials are made again under
their old numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.records import ledger, log
from tune_ssl.records.log import Record
from tune_ssl.study.domains import Domain

STATES = {
    log.FINISHED: TrialState.COMPLETE,
    log.STOPPED: TrialState.PRUNED,
    log.DIVERGED: TrialState.FAIL,
    log.COLLAPSED: TrialState.FAIL,
    log.FAILED: TrialState.FAIL,
}


@dataclass
class Recorded:
    """What the records say of one trial. `values` are what its study was told, by evaluation from 1."""

    name: str
    number: int
    start: Record | None = None
    end: Record | None = None
    values: dict[int, float] = field(default_factory=dict)

    @property
    def state(self) -> TrialState:
        if self.end is None:
            return TrialState.RUNNING
        return state_of(self.end["event"], self.end["value"])[0]

    @property
    def value(self) -> float | None:
        return state_of(self.end["event"], self.end["value"])[1] if self.end else None


class Book:
    """The records of one phase's trials. history.jsonl is read only where something is to be made again."""

    def __init__(self, run: Path, phase: str) -> None:
        self.run = run
        events = [e for e in log.scan(run / log.TRIALS) if e.get("phase") == phase]
        self.ends = ledger.endings(events)
        self.starts: dict[str, Record] = {}
        for event in events:
            if event["event"] in log.BEGINNINGS:
                self.starts.setdefault(event["trial"], event)

    def trials(self, stem: str) -> dict[int, Recorded]:
        """number -> what is known of the trial `<stem><number>`, the numbers in order."""
        found = {}
        for name in {*self.starts, *self.ends}:
            number = name.removeprefix(stem)
            if name.startswith(stem) and number.isdecimal():
                known = Recorded(name, int(number), self.starts.get(name), self.ends.get(name))
                found[known.number] = known
        return dict(sorted(found.items()))

    def read_values(
        self, wanted: Iterable[Recorded], metric: str, stand_ins: Mapping[str, str], sign: int
    ) -> None:
        """Fill in `values`: of each report the metric, or what stands in for it in that stage, times `sign`."""
        trials = {known.name: known for known in wanted}
        mine = (r for r in log.scan(self.run / log.HISTORY) if r.get("trial") in trials)
        reports: dict[str, dict[tuple[int, str], Record]] = {}
        for report in mine:
            reports.setdefault(report["trial"], {})[report["step"], report["stage"]] = report
        for name, by_step in reports.items():
            values = trials[name].values
            for evaluation, ((_, stage), report) in enumerate(sorted(by_step.items()), start=1):
                metrics = report["metrics"]
                if metrics.get(metric) is not None:
                    values[evaluation] = metrics[metric]
                elif metrics.get(stand_ins.get(stage)) is not None:
                    values[evaluation] = sign * metrics[stand_ins[stage]]
            end = trials[name].end
            if end and end["event"] == log.FINISHED:  # its last report ends it, and is no value
                values.pop(len(by_step), None)


def moment(event: Record) -> datetime | None:
    """When an event was written; None where its time is no date."""
    try:
        return datetime.fromtimestamp(event["time"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def state_of(status: str, value: float | None) -> tuple[TrialState, float | None]:
    """(state, value) of a study's trial that ended with `status`: what is not finite is a failure."""
    state = STATES[status]
    if state == TrialState.COMPLETE and (value is None or not math.isfinite(value)):
        state = TrialState.FAIL
    return state, value if state == TrialState.COMPLETE else None


def distribution(domain: Domain) -> BaseDistribution:
    """What `Domain.suggest` draws from."""
    if domain.choice is not None:
        return CategoricalDistribution(domain.choice)
    low, high = domain.bounds
    if domain.int_ is not None:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=domain.log_uniform is not None)


@dataclass
class Rebuilder:
    """Brings the trials of one study up to the records.

    `grid` has the points of a grid search by number. `rungs` are the evaluations of successive halving's
    rungs: the pruner keeps in each trial the value that it had there.
    """

    run: Path
    domains: Mapping[str, Domain]
    grid: list[dict[str, Any]]
    rungs: list[int]

    def agrees(self, trial: FrozenTrial, known: Recorded) -> bool:
        """Whether a trial of the study is an earlier state of what the records say, or the same."""
        config = known.start["config"] if known.start else {}
        if any(key in config and config[key] != value for key, value in trial.params.items()):
            return False
        if not trial.state.is_finished():
            return True
        same_value = known.value is None or trial.value == known.value
        return trial.state == known.state and same_value

    def behind(self, trial: FrozenTrial, known: Recorded) -> bool:
        """Whether the study does not even know the trial's config."""
        return known.start is not None and len(trial.params) < len(self.domains)

    def add(self, study: Study, number: int, known: Recorded | None) -> None:
        """The trial of that number, as the records know it; else one that is still to be run."""
        if known is None or (known.start is None and known.end is None):
            point = self.grid[number] if number < len(self.grid) else None
            attrs = {"fixed_params": point} if point else {}
            study.add_trial(create_trial(state=TrialState.RUNNING, system_attrs=attrs))
            return
        value = known.value
        if known.state == TrialState.PRUNED and known.values:
            value = known.values[max(known.values)]  # as Study.tell does
        trial = create_trial(
            state=known.state,
            value=value,
            user_attrs={"status": known.end["event"]} if known.end else {},
            system_attrs=self.passed(known),
            intermediate_values=known.values,
            **self.params(known),
        )
        if known.start:
            trial.datetime_start = moment(known.start) or trial.datetime_start
        if known.end:
            trial.datetime_complete = moment(known.end) or trial.datetime_complete
            trial.datetime_start = trial.datetime_start or trial.datetime_complete
        study.add_trial(trial)

    def catch_up(self, study: Study, trial: FrozenTrial, known: Recorded) -> None:
        """Give an unfinished trial of the study the config and the values that only the records know."""
        storage, trial_id = study._storage, trial._trial_id
        if trial.state == TrialState.WAITING:
            storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        have = self.params(known)
        for key, value in have["params"].items():
            if key not in trial.params:
                kind = have["distributions"][key]
                storage.set_trial_param(trial_id, key, kind.to_internal_repr(value), kind)
        for evaluation, value in known.values.items():
            if evaluation not in trial.intermediate_values:
                storage.set_trial_intermediate_value(trial_id, evaluation, value)
        for key, value in self.passed(known).items():
            if key not in trial.system_attrs:
                storage.set_trial_system_attr(trial_id, key, value)

    def params(self, known: Recorded) -> dict[str, Any]:
        """`params` and `distributions`. UserError where a recorded value is not in its domain."""
        config = known.start["config"] if known.start else {}
        kinds = {key: distribution(d) for key, d in self.domains.items() if key in config}
        for key, kind in kinds.items():
            try:
                inside = kind._contains(kind.to_internal_repr(config[key]))
            except (ValueError, TypeError):
                inside = False
            if not inside:
                text = f"is {config[key]!r} in {log.TRIALS}, which is outside its domain"
                raise UserError(Problem(text, key, f"{self.run}: {known.name}"))
        return {"params": {key: config[key] for key in kinds}, "distributions": kinds}

    def passed(self, known: Recorded) -> dict[str, float]:
        """The pruner's notes of the rungs that the trial met. One that runs has not been judged at its last."""
        last = max(known.values, default=0) - (known.end is None)
        met = [(i, rung) for i, rung in enumerate(self.rungs) if rung <= last]
        return {f"completed_rung_{i}": known.values[r] for i, r in met if r in known.values}
