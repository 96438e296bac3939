"""A trial that is stopped early lets go at once of what others wait for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import CONFIRMED, endings, write_study
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40}
  method: {name: supervised}
  budget: {steps: 20, eval_every: 10}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 2, searcher: random, grace_period: 0.1, finalists: 1, seeds: [0], max_concurrent: 2}
"""


def locking(config: dict[str, Any]) -> None:
    """Trial 0 holds a lock and is stopped at its first report; trial 1 ends only when it gets that lock."""
    from filelock import FileLock
    from ray import tune

    from tune_ssl.tuning.job import Job

    job, folder = Job.from_config(config), Path(os.environ["FAULTS"])

    def report(evaluation: int, value: float) -> None:
        result = {"val/mean_class_accuracy": value}
        about = {"stage": "train", "step": 10 * evaluation, "evaluation": evaluation}
        plain = {"status": "finished" if evaluation == 2 else "running", "metrics": result}
        plain |= {**about, "result": result, "stand_in": None, "split": job.split}
        tune.report({"report": json.dumps({**plain, "images_seen": 1, "seconds": 0.1})})

    if job.number == 0:
        with FileLock(folder / "lock"):
            (folder / "held").touch()
            while not (folder / "reported").exists():
                time.sleep(0.1)
            report(1, 0.1)
            report(2, 0.1)
    else:
        while not (folder / "held").exists():
            time.sleep(0.1)
        report(1, 0.9)
        (folder / "reported").touch()
        with FileLock(folder / "lock", timeout=60):
            report(2, 0.9)


@pytest.mark.slow
def test_a_stopped_trial_lets_go_of_what_another_one_waits_for(tmp_path, ray_here, monkeypatch):
    from tune_ssl.study.study import load_study
    from tune_ssl.tuning import run

    monkeypatch.setattr(run, "train_job", locking)
    study = load_study(write_study(tmp_path, STUDY))
    found = run.run_study(study, name="one", runs=tmp_path / "runs", confirm=False)
    assert endings(found) == {"c0-t0000": log.STOPPED, "c0-t0001": log.FINISHED}


def lingering(config: dict[str, Any]) -> None:
    """The thread of a first trial goes on for a while after its end, in a worker that does not wait for it."""
    from tune_ssl.tuning import worker
    from tune_ssl.tuning.job import Job

    if Job.from_config(config).number:
        return worker.train_job(config)
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "0"
    try:
        worker.train_job(config)
    finally:
        time.sleep(10)


@pytest.mark.slow
def test_a_trial_whose_worker_cannot_be_freed_of_the_last_one_runs_in_another(
    tmp_path, ray_here, monkeypatch
):
    """Ray gives such a trial up without a word."""
    from tune_ssl.study.study import load_study
    from tune_ssl.tuning import run

    monkeypatch.setattr(run, "train_job", lingering)
    study = load_study(write_study(tmp_path, CONFIRMED))
    found = run.run_study(study, name="r", runs=tmp_path / "runs")
    ledger = Ledger.read(found)
    assert not ledger.open_trials() and len(ledger.locked) == 2
    assert {end["event"] for end in ledger.ended.values()} == {log.FINISHED}
    begun = [e for e in log.read(found / log.TRIALS) if e["event"] == log.STARTED]
    assert len(begun) > len(ledger.begun), "no trial was given up: the test shows nothing"
