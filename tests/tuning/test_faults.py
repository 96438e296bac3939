"""What goes wrong in training, on a disk or on a device costs what it must and nothing more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

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

PLUGIN = Path(__file__).parents[1] / "support" / "faulty.py"
STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: faulty, fault: none, at: 7}
  budget: {steps: 40, eval_every: 5}
search:
  method.fault: {choice: [%s]}
study:
  {num_trials: 9, searcher: grid, scheduler: none, finalists: 1, seeds: [0],
   checkpoint_seconds: 0, max_concurrent: 2}
"""


def faulty(tmp_path, monkeypatch, faults, *more):
    (tmp_path / "notes").mkdir(exist_ok=True)
    monkeypatch.setenv("FAULTS", str(tmp_path / "notes"))
    study = write_study(tmp_path, STUDY % faults)
    process = start(
        tmp_path, "search", study, "--plugin", PLUGIN, "--name", "f", "--no-report", *more
    )
    return process, tmp_path / "runs" / "f"


def reasons(run):
    """fault -> (how its trial ended, the reason's last line, how many attempts it had)"""
    told = {}
    for trial, end in ledger.endings(events(run)).items():
        mine = [e for e in events(run) if e["trial"] == trial]
        if mine[0]["phase"] == log.SEARCH:
            last = (end["reason"] or "").strip().splitlines()[-1:]
            attempts = sum(e["event"] in log.BEGINNINGS for e in mine)
            told[mine[0]["config"]["method.fault"]] = (end["event"], "".join(last), attempts)
    return told


@pytest.mark.slow
def test_a_failure_that_may_pass_is_tried_again_and_the_same_one_twice_is_left(
    tmp_path, monkeypatch
):
    process, run = faulty(
        tmp_path,
        monkeypatch,
        "none, once, always, changing, bug, nan, exit, hungry, huge",
        "--no-confirm",
    )
    code, out, err = finish(process)
    assert code == 0, out + err
    told = reasons(run)
    assert told.pop("huge")[0] == log.FAILED
    assert told == {
        "none": (log.FINISHED, "", 1),
        "once": (log.FINISHED, "", 2),
        "always": (log.FAILED, "RuntimeError: this device is broken", 2),
        "changing": (log.FAILED, "RuntimeError: trouble number 3", 3),
        "bug": (log.FAILED, "TypeError: a bug in the method", 1),
        "nan": (log.DIVERGED, "supervised is nan at step 7", 1),
        "exit": (
            log.FAILED,
            "its worker died more often than study.max_retries allows",
            3,
        ),
        "hungry": (log.FINISHED, "", 1),  # each batch in two parts
    }
    again = [e["reason"] for e in events(run) if e["event"] == log.RESUMED]
    assert sum("OSError: the network file system is away (faulty.py:" in r for r in again) == 1
    assert sum("its worker died" in r for r in again) == 2
    assert "Traceback" not in err
    # The one that was tried again went on from its checkpoint to the same end as an undisturbed one.
    finished = [e for e in ledger.endings(events(run)).values() if e["event"] == log.FINISHED]
    assert len({e["value"] for e in finished if "accumulate" not in e}) == 1
    assert [e["accumulate"] for e in finished if "accumulate" in e] == [2]
    huge = [
        e["reason"]
        for e in ledger.endings(events(run)).values()
        if "out of mem" in str(e["reason"])
    ]
    assert (
        len(huge) == 1
        and huge[0].startswith("out of memory: ")
        and huge[0].endswith(
            "also with each batch in 2 parts; halve data.batch_size or data.mu, or give it a device "
            "with more memory"
        )
    )
    assert sorted(optuna_states(run)["all"]) == ["COMPLETE"] * 3 + ["FAIL"] * 6


def test_a_study_in_which_everything_fails_stops_early_and_names_the_first_cause(
    tmp_path, monkeypatch
):
    faults = "bug, " + ", ".join(f"bug{i}" for i in range(8))
    plugin = tmp_path / "hopeless.py"
    source = PLUGIN.read_text().replace(
        '"bug", ', '"bug", ' + ", ".join(f'"bug{i}"' for i in range(8)) + ", "
    )
    plugin.write_text(source.replace('fault == "bug"', 'fault.startswith("bug")'))
    monkeypatch.setattr("tests.tuning.test_faults.PLUGIN", plugin)
    process, run = faulty(tmp_path, monkeypatch, faults)
    code, out, err = finish(process)
    assert code == 1, out + err
    ended = endings(run)
    assert 3 <= len(ended) <= 5 and set(ended.values()) == {log.FAILED}
    assert err.splitlines()[-1] == (
        f"all {len(ended)} trials so far failed, the first one, {next(iter(ended))}: "
        "TypeError: a bug in the method; what is finished is kept. "
        "Go on with: tune-ssl search --resume f"
    )
    assert "Traceback" not in err
    assert not any(e["phase"] == log.CONFIRM for e in events(run))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB at tmp_path/runs; skipped where one may not be mounted."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(runs)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this process may not mount a small disk")
    yield runs
    subprocess.run(["umount", "-l", str(runs)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_costs_nothing(tmp_path, monkeypatch, small_disk):
    process, run = faulty(tmp_path, monkeypatch, "none, once", "--no-confirm")
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) >= 3)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    count = len(events(run))
    with pytest.raises(subprocess.TimeoutExpired):  # it waits
        process.wait(timeout=15)
    assert len(events(run)) <= count + 1
    ballast.unlink()
    code, out, err = finish(process)
    assert code == 0, out + err
    assert "cannot be written: No space left on device; waiting" in out.replace("\n", " ")
    assert "Traceback" not in err
    assert reasons(run)["none"] == (log.FINISHED, "", 1)
    assert reasons(run)["once"][0] == log.FINISHED
    for trial in endings(run):
        steps = [r["step"] for r in latest(run) if r["trial"] == trial]
        assert steps == list(range(5, 41, 5))


def latest(run):
    return ledger.latest_reports(log.read(run / log.HISTORY))


@pytest.mark.slow
def test_a_run_folder_that_is_away_for_a_while_is_waited_for(tmp_path, monkeypatch):
    process, run = faulty(tmp_path, monkeypatch, "none, once", "--no-confirm")
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) >= 3)
    away = run.with_name("away")
    run.rename(away)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=8)
    for made in (run / "ray",) if run.exists() else ():  # Ray may have made its own folder anew
        shutil.rmtree(made.parent)
    away.rename(run)
    code, out, err = finish(process)
    assert code == 0, out + err
    assert endings(run) == {"c0-t0000": log.FINISHED, "c0-t0001": log.FINISHED}
    for trial in endings(run):
        assert [r["step"] for r in latest(run) if r["trial"] == trial] == list(range(5, 41, 5))


@pytest.mark.slow
def test_a_resume_says_what_it_found(tmp_path, monkeypatch):
    process, run = faulty(
        tmp_path, monkeypatch, "none, once, always, bug", "fixed.budget.steps=400"
    )
    wait_for(
        process,
        lambda: len(endings(run)) >= 2 and len(trial_workers(process.pid)) == 2,
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with (run / log.HISTORY).open("a") as file:
        file.write('{"torn')
    before = endings(run)
    code, out, err = finish(start(tmp_path, "search", "--resume", "f", "--no-report"))
    assert code == 0, out + err
    lines = out.splitlines()
    assert lines[0].startswith(f"f: searched {len(before)} of 4 (")
    assert f"{4 - len(before)} trials were running: " in lines[1]
    assert "go on from a checkpoint" in lines[1] or "begin again" in lines[1]
    assert lines[2] == "f: 1 torn lines of its records are dropped"


# ---- what comes between two phases ---------------------------------------------------------------

BETWEEN = """
import os, signal, sys, threading, time
from pathlib import Path
from tune_ssl import cli, patience, tuning
patience.LONGEST = 8.0
before = tuning.ConfirmSource

def term(run):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)

def full(run):
    try:
        with open("runs/ballast", "wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)
    except OSError:
        pass

def away(run):
    run.rename("away")
    threading.Timer(5, lambda: os.rename("away", run)).start()
    tuning.be_there(run, tuning.Console())

def between(*given):
    {what}(given[0])
    return before(*given)

tuning.ConfirmSource = between
sys.argv = ["tune-ssl", *sys.argv[1:]]
cli.main()
"""
PLAIN = STUDY.replace("name: faulty, fault: none, at: 7", "name: supervised").replace(
    "method.fault: {choice: [%s]}", "optim.lr: {choice: [0.01, 0.02]}"
)


def interfered(tmp_path, what):
    """A search in which `what` happens before the confirmation; (exit code, stdout, stderr)."""
    code = BETWEEN.replace("{what}", what)
    asked = ["search", write_study(tmp_path, PLAIN), "--name", "f", "--no-report"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, asked)],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finish(process)


@pytest.mark.slow
def test_a_sigterm_between_two_phases_ends_the_run_as_one_within_them(tmp_path):
    code, out, err = interfered(tmp_path, "term")
    assert code == 130, out + err
    assert err == "interrupted; what is finished is kept. Go on with: tune-ssl search --resume f\n"


@pytest.mark.slow
def test_a_disk_that_stays_full_between_two_phases_ends_the_run_in_one_line(tmp_path, small_disk):
    code, out, err = interfered(tmp_path, "full")
    assert code == 1, out + err
    assert "cannot be written: " in out and "; waiting" in out
    assert "No space left on device; what is finished is kept. Go on with: tune-ssl" in err
    assert len(err.splitlines()) == 1
    (small_disk / "ballast").unlink()
    code, out, err = finish(start(tmp_path, "search", "--resume", "f", "--no-report"))
    assert code == 0, out + err
    assert len(endings(small_disk / "f")) == 3


@pytest.mark.slow
def test_a_run_folder_that_is_away_between_two_phases_is_no_empty_one(tmp_path):
    code, out, err = interfered(tmp_path, "away")
    assert code == 0, out + err
    assert "study.yaml is away: No such file or directory; waiting" in out
    assert len(endings(tmp_path / "runs" / "f")) == 3
