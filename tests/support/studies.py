"""Searches whose trials only report, for tests of the studies: a whole one takes a second."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import optuna

from tests.support.runs import drive, events, run_here
from tune_ssl.records import log
from tune_ssl.runs.folder import reopen
from tune_ssl.runs.splits import check_data, record_splits
from tune_ssl.search.condition import StudySource
from tune_ssl.search.storage import open_reading, study_prefix
from tune_ssl.tuning import worker
from tune_ssl.tuning.job import Job

METRIC = "val/mean_class_accuracy"
EVALUATIONS = 9
STUDY = """
fixed:
  data: {dataset: digits}
  method: {name: supervised}
  budget: {steps: 45, eval_every: 5}
conditions:
  data.num_labels: [20, 40]
search:
  optim.lr: {log_uniform: [1e-4, 1e-1]}
  model.feature_dim: {int: [8, 64]}
  method.labeled_view: {choice: [weak, strong, none]}
study: {num_trials: 8, grace_period: 0.1, optuna_storage: "STORAGE"}
"""


def begun(folder: Path, storage: str = "journal", name: str = "r", body: str = STUDY) -> Path:
    """A run folder in which nothing has run yet."""
    return run_here(folder, body.replace("STORAGE", storage), name, dry=True)


def source_of(run: Path, told: list[str] | None = None) -> StudySource:
    """The search of a run, as a driver opens it; what the user is told goes to `told`."""
    run, study = reopen(run.parent, run.name)
    splits = record_splits(run, study, check_data(study), study.settings.tuning_seeds)

    class Telling(StudySource):
        tell = property(lambda self: told.append if told is not None else print, lambda *_: None)

    return Telling(run, study, splits)


def value(job: Job, evaluation: int) -> float:
    """Better with a higher rate, and over time."""
    return 0.9 + 0.1 * math.log10(job.config["optim.lr"]) + 0.01 * evaluation


def report_of(job: Job, evaluation: int) -> dict[str, Any]:
    result = {METRIC: value(job, evaluation)}
    return {
        "status": "finished" if evaluation == EVALUATIONS else "running",
        "stage": "train",
        "step": 5 * evaluation,
        "evaluation": evaluation,
        "metrics": result,
        "result": result,
        "stand_in": None,
        "seconds": 0.1,
        "images_seen": 1,
        "split": job.split,
    }


def reporting(config: dict[str, Any]) -> None:
    job = Job.from_config(config)
    for evaluation in range(1, EVALUATIONS + 1):
        worker._send(report_of(job, evaluation))


class Enough(BaseException):
    """The driver is gone: nothing of it runs on."""


def search(run: Path, told: list[str] | None = None, reports: int | None = None) -> None:
    """Search the run; after so many reports in all the driver dies, in the middle of a trial."""
    left = [reports]

    def work(config: dict[str, Any]) -> None:
        job = Job.from_config(config)
        for evaluation in range(1, EVALUATIONS + 1):
            if left[0] == 0:
                raise Enough
            worker._send(report_of(job, evaluation))
            left[0] = left[0] - 1 if left[0] else None

    with contextlib.suppress(Enough):
        drive(source_of(run, told), work)


def studies_of(run: Path) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """condition -> the trials of its study"""
    storage, prefix = open_reading(run), study_prefix(run)
    return {
        s.study_name.removeprefix(prefix): storage.get_all_trials(s._study_id)
        for s in storage.get_all_studies()
    }


def content(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What makes a study what it is: numbers, states, configs, values and the pruner's rungs."""
    return {
        name: [
            (t.number, t.state.name, t.params, t.values, t.intermediate_values, rungs(t))
            for t in trials
        ]
        for name, trials in studies_of(run).items()
    }


def rungs(trial: optuna.trial.FrozenTrial) -> dict[str, float]:
    return {k: v for k, v in trial.system_attrs.items() if k.startswith("completed_rung_")}


def agree(run: Path) -> None:
    """The studies say of every trial what the records say, and each trial ended once."""
    from tune_ssl.search.rebuild import state_of

    trials = studies_of(run)
    ends = [e for e in events(run) if e["event"] in log.ENDINGS]
    assert len({e["trial"] for e in ends}) == len(ends)
    starts = {e["trial"]: e for e in events(run) if e["event"] in log.BEGINNINGS}
    mine = {e["trial"]: e for e in ends if e["phase"] == log.SEARCH}
    names = []
    for index, (condition, own) in enumerate(trials.items()):
        for trial in own:
            name = f"c{index}-t{trial.number:04d}"
            names.append(name)
            assert starts[name]["condition"] == condition
            assert starts[name]["config"] == trial.params
            if name in mine:
                state, final = state_of(mine[name]["event"], mine[name]["value"])
                assert (trial.state, final) == (state, trial.value if final is not None else None)
            else:
                assert trial.state.name == "RUNNING"
    assert {n for n in starts if "-t" in n} == set(names)
