"""Optuna trials from a run's records: the studies of a run that goes on, and those that other tools read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.records import log
from tune_ssl.records.domain import Domain
from tune_ssl.records.ledger import Ledger
from tune_ssl.records.log import Record
from tune_ssl.study.study import Study

optuna.logging.set_verbosity(optuna.logging.ERROR)  # not a line for each study, trial and draw

STATES = {
    log.FINISHED: TrialState.COMPLETE,
    log.STOPPED: TrialState.PRUNED,
    log.DIVERGED: TrialState.FAIL,
    log.COLLAPSED: TrialState.FAIL,
    log.FAILED: TrialState.FAIL,
}


@dataclass
class Recorded:
    """What the records say of one trial.

    `values` are what its study was told, by evaluation from 1, and `times` when.
    """

    name: str
    number: int
    start: Record
    end: Record | None
    values: dict[int, float] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)


def recorded(ledger: Ledger, condition: str, variant: str | None = None) -> dict[int, Recorded]:
    """number -> what is known of that trial of a search, or of a row's retuning; the numbers in order."""
    phase = log.RETUNE if variant else log.SEARCH
    found = {
        start["number"]: Recorded(trial, start["number"], start, end)
        for trial, start, end in ledger.trials(condition, phase)
        if start.get("variant") == variant and not start.get("repeats")
    }
    return dict(sorted(found.items()))


def read_values(run: Path, study: Study, wanted: Iterable[Recorded]) -> None:
    """Fill in `values`, in one reading of history.jsonl.

    Of each report that is the metric, or what stands in for it in a stage that does not measure it.
    """
    metric, sign = study.settings.metric, 1 if study.settings.mode == "max" else -1
    stand_ins = {
        (condition.id, stage.name): f"val/{stage.stand_in}"
        for condition in study.conditions
        for stage in condition.spec.stages()
        if stage.stand_in
    }
    trials = {known.name: known for known in wanted}
    reports: dict[str, dict[tuple[int, str], tuple[float | None, float]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torn lines a resume has told
        for report in log.scan(run / log.HISTORY) if trials else ():
            if known := trials.get(report["trial"]):
                value = report["metrics"].get(metric)
                if value is None:
                    key = stand_ins.get((known.start["condition"], report["stage"]), "")
                    stand_in = report["metrics"].get(key)
                    value = None if stand_in is None else sign * stand_in
                at = report["step"], report["stage"]
                reports.setdefault(known.name, {})[at] = value, report["time"]
    for name, by_step in reports.items():
        known = trials[name]
        told = [value for _, value in sorted(by_step.items(), key=lambda item: item[0])]
        if known.end and known.end["event"] == log.FINISHED:
            told.pop()  # the last report ends a trial, and is no value on the way
        for i, (value, moment) in enumerate(told, start=1):
            if value is not None:
                known.values[i], known.times[i] = value, moment


def state_of(status: str, value: float | None) -> tuple[TrialState, float | None]:
    """(state, value) of a study's trial that ended with `status`: what is not finite is a failure."""
    state = STATES[status]
    if state == TrialState.COMPLETE and (value is None or not math.isfinite(value)):
        state = TrialState.FAIL
    return state, value if state == TrialState.COMPLETE else None


def distribution(domain: Domain) -> BaseDistribution:
    """What Optuna draws a key's values from."""
    if domain.choices:
        return CategoricalDistribution(domain.choices)
    if domain.whole:
        step = int(domain.step or 1)
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=step)
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def frozen(
    run: Path, known: Recorded, kinds: Mapping[str, BaseDistribution], running: bool = False
) -> FrozenTrial:
    """The trial as a study would know it; with `running`, as it was when it had just begun.

    UserError where a recorded value is not in its domain.
    """
    state, value = (
        state_of(known.end["event"], known.end["value"])
        if known.end and not running
        else (TrialState.RUNNING, None)
    )
    if state == TrialState.PRUNED and known.values:
        value = known.values[max(known.values)]  # as Study.tell does
    own = {key: kind for key, kind in kinds.items() if key in known.start["config"]}
    trial = create_trial(
        state=state,
        value=value,
        params={key: _checked(run, known, key, kind) for key, kind in own.items()},
        distributions=own,
        user_attrs={"trial": known.name} | ({"status": known.end["event"]} if known.end else {}),
        intermediate_values={} if running else known.values,
    )
    trial.datetime_start = _moment(known.start) or trial.datetime_start
    if known.end and not running:
        trial.datetime_complete = _moment(known.end) or trial.datetime_complete
    return trial


def _checked(run: Path, known: Recorded, key: str, kind: BaseDistribution) -> Any:
    value = known.start["config"][key]
    try:
        inside = kind._contains(kind.to_internal_repr(value))
    except (ValueError, TypeError):
        inside = False
    if not inside:
        text = f"is {value!r} in {log.TRIALS}, which is outside its domain"
        raise UserError(Problem(text, key, f"{run}: {known.name}"))
    return value


def _moment(event: Record) -> datetime | None:
    """When an event was written; None where its time is no date."""
    try:
        return datetime.fromtimestamp(event["time"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def write_studies(
    run: Path, study: Study, ledger: Ledger, storage: BaseStorage, prefix: str = ""
) -> list[str]:
    """Write the studies of a run, one for each search and each retuned row, into an Optuna storage.

    Returns their names, which begin with `prefix`. The trials are in the order in which they began, so that
    a later writing of the same run into an empty storage begins with the same trials under the same ids.
    UserError for a name that the storage has already, with nothing written.
    """
    searches: dict[tuple[str, str | None], tuple[str, dict[str, BaseDistribution]]] = {}
    for condition in study.conditions:
        retuned = ledger.planned.get(condition.id, {}).items()
        own = {None: list(condition.search)} | {n: r["retune"] for n, r in retuned if r["retune"]}
        for variant, keys in own.items():
            name = f"{prefix}{condition.id}{f' {variant}' if variant else ''}"
            kinds = {key: distribution(condition.search[key]) for key in keys}
            searches[condition.id, variant] = (name, kinds)
    taken = {found.study_name for found in storage.get_all_studies()}
    if both := [name for name, _ in searches.values() if name in taken]:
        raise UserError(f"the storage has a study {both[0]!r} already: give another URL")
    directions = optuna.study.StudyDirection
    direction = directions.MAXIMIZE if study.settings.mode == "max" else directions.MINIMIZE
    studies = {
        key: optuna.create_study(storage=storage, study_name=name, direction=direction)
        for key, (name, _) in searches.items()
    }
    known = {one.name: (key, one) for key in searches for one in recorded(ledger, *key).values()}
    read_values(run, study, (one for _, one in known.values()))
    for trial in ledger.begun:
        if found := known.get(trial):
            key, one = found
            studies[key].add_trial(frozen(run, one, searches[key][1]))
    return [name for name, _ in searches.values()]
