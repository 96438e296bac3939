"""Processes killed in the middle of a search: every trial is accounted for once, nothing is repeated."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from tests.support.runs import (
    endings,
    events,
    finish,
    optuna_states,
    start,
    trial_workers,
    wait_for,
    write_study,
)
from tune_ssl.records import ledger, log

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40}
  model: {feature_dim: 64}
  method: {name: soft_kmeans}
  budget: {steps: 300, eval_every: 20}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 5, scheduler: none, finalists: 2, seeds: [0], checkpoint_seconds: 0, max_concurrent: 1}
"""


def midway(run):
    """Trials that have reported twice, and have much left to do."""
    ended = endings(run)
    steps = {line["trial"]: line["step"] for line in log.read(run / log.HISTORY)}
    return [trial for trial, step in steps.items() if trial not in ended and 40 <= step <= 200]


@pytest.mark.slow
def test_a_killed_worker_and_then_a_killed_driver_lose_and_repeat_nothing(tmp_path):
    process = start(tmp_path, "search", write_study(tmp_path, STUDY), "--name", "k")
    run = tmp_path / "runs" / "k"

    # A worker dies in the middle of a trial: Ray runs the trial again from its checkpoint.
    wait_for(process, lambda: bool(midway(run)) and len(trial_workers(process.pid)) == 1)
    victim = midway(run)[0]
    os.kill(trial_workers(process.pid)[0], signal.SIGKILL)
    wait_for(process, lambda: victim in endings(run))
    assert endings(run)[victim] == log.FINISHED
    assert [e["event"] for e in events(run) if e["trial"] == victim] == [
        log.STARTED,
        log.RESUMED,
        log.FINISHED,
    ]

    # Then the driver dies.
    wait_for(process, lambda: len(endings(run)) >= 3 and bool(midway(run)))
    before = endings(run)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    lines = len(events(run))
    states = Counter(optuna_states(run)["all"])
    assert states["RUNNING"] == 1 and states["COMPLETE"] == len(before)

    code, out, err = finish(start(tmp_path, "search", "--resume", "k"))
    assert code == 0, out + err

    assert optuna_states(run) == {"all": ["COMPLETE"] * 5}
    ended = Counter(e["trial"] for e in events(run) if e["event"] in log.ENDINGS)
    search = [f"c0-t{t:04d}" for t in range(5)]
    again = sorted(trial for trial in ended if "-final" in trial)
    assert len(again) == 4 and ended == Counter([*search, *again, "c0-confirm-s0"])
    after = [e for e in events(run)[lines:] if e["event"] in (log.STARTED, log.RESUMED)]
    assert not {e["trial"] for e in after} & set(before), "a finished trial was run again"

    # Each report stands once in what is read back, and every evaluation of each trial is there.
    history = ledger.latest_reports(log.read(run / log.HISTORY))
    for trial in ended:
        steps = sorted(line["step"] for line in history if line["trial"] == trial)
        assert steps == list(range(20, 301, 20)), trial


@pytest.mark.parametrize(
    "method, steps, total",
    [
        ("soft_kmeans", "600", 600),
        ("simclr", "{pretrain: 400, finetune: 20}", 420),  # its worker has the network's lock
    ],
)
def test_a_resumed_trial_goes_on_from_its_checkpoint(tmp_path, method, steps, total):
    long = STUDY.replace("steps: 300", f"steps: {steps}").replace("num_trials: 5", "num_trials: 1")
    study = write_study(tmp_path, long.replace("soft_kmeans", method))
    process = start(tmp_path, "search", study, "--name", "r", "--no-confirm")
    run = tmp_path / "runs" / "r"
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) >= 5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    reached = max(line["step"] for line in log.read(run / log.HISTORY))
    count = len(log.read(run / log.HISTORY))

    code, out, err = finish(start(tmp_path, "search", "--resume", "r", "--no-confirm"))
    assert code == 0, out + err
    resumed = [line["step"] for line in log.read(run / log.HISTORY)[count:]]
    assert resumed[0] > 20 and resumed[0] >= reached - 40 and resumed[-1] == total
    assert [e["event"] for e in events(run)] == [
        log.STARTED,
        log.RESUMED,
        log.FINISHED,
    ]


def test_a_torn_line_in_the_optuna_journal_is_dropped_and_the_run_goes_on(tmp_path):
    short = STUDY.replace("num_trials: 5", "num_trials: 2").replace("steps: 300", "steps: 20")
    start_ = start(tmp_path, "search", write_study(tmp_path, short), "--name", "t", "--no-confirm")
    assert finish(start_)[0] == 0
    journal = tmp_path / "runs" / "t" / "optuna.log"
    journal.write_bytes(journal.read_bytes()[:-7])
    journal.with_name("optuna.log.lock").symlink_to("nowhere")
    code, out, err = finish(start(tmp_path, "search", "--resume", "t", "--no-confirm"))
    assert code == 0, out + err
    assert optuna_states(tmp_path / "runs" / "t") == {"all": ["COMPLETE", "COMPLETE"]}


@pytest.mark.slow
def test_a_worker_that_dies_every_time_ends_its_trial_as_failed_and_the_study_goes_on(tmp_path):
    study = STUDY.replace("max_concurrent: 1", "max_concurrent: 1, max_retries: 0").replace(
        "num_trials: 5", "num_trials: 2"
    )
    process = start(tmp_path, "search", write_study(tmp_path, study), "--name", "d", "--no-confirm")
    run = tmp_path / "runs" / "d"
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) >= 2)
    for worker in trial_workers(process.pid):
        os.kill(worker, signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, out + err
    assert endings(run) == {"c0-t0000": log.FAILED, "c0-t0001": log.FINISHED}
    assert optuna_states(run) == {"all": ["FAIL", "COMPLETE"]}
    reason = ledger.endings(events(run))["c0-t0000"]["reason"]
    assert reason == "its worker died more often than study.max_retries allows"


def test_a_second_driver_on_the_same_run_is_refused(tmp_path):
    long = STUDY.replace("steps: 300", "steps: 3000")
    process = start(tmp_path, "search", write_study(tmp_path, long), "--name", "two")
    run = tmp_path / "runs" / "two"
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) >= 1)
    code, _, err = finish(start(tmp_path, "search", "--resume", "two"))
    assert code == 2 and err.strip() == "runs/two is in use by another tune-ssl process"
    process.send_signal(signal.SIGINT)
    assert finish(process, timeout=60)[0] == 130


@pytest.mark.parametrize("torn", ['{"event": "finis', "\x00\x00\x00"])
def test_a_torn_last_line_is_closed_and_dropped_with_a_warning(tmp_path, torn):
    path = tmp_path / log.TRIALS
    about = {"phase": "search", "condition": "", "trial": "a"}
    log.append(path, {"event": "started", **about})
    with open(path, "a") as file:
        file.write(torn)
    log.append(path, {"event": "finished", **about, "value": float("nan")})
    with pytest.warns(UserWarning, match=r"trials.jsonl: 1 torn line\(s\) dropped"):
        lines = log.read(path)
    assert [line["event"] for line in lines] == ["started", "finished"]
    assert lines[1]["value"] is None
