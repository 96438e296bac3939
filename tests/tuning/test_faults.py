"""What goes wrong in training, on a disk or on a device costs what it must and nothing more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import (
    called,
    endings,
    events,
    meanwhile,
    wait_until,
    write_study,
)
from tune_ssl.base import retry
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports

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


@pytest.fixture
def faulty(ray_here, tmp_path, monkeypatch, capsys):
    """`faulty("none, bug", ...)` searches a study of such trials: (exit code, stdout, stderr, its run)."""
    for note in ray_here.iterdir():
        note.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def search(faults, *more):
        asked = ["--plugin", PLUGIN, "--name", "f", "--no-report", *more]
        if faults is None:
            asked = ["--resume", "f", "--no-report"]
        else:
            asked.insert(0, write_study(tmp_path, STUDY % faults))
        code, out, err = called(monkeypatch, capsys, "search", *asked)
        assert "Traceback" not in err
        return code, out, err, tmp_path / "runs" / "f"

    return search


def reasons(run):
    """fault -> (how its trial ended, the reason's last line, how many attempts it had)"""
    told, ledger = {}, Ledger.read(run)
    for trial, begun in ledger.begun.items():
        if begun["phase"] == log.SEARCH:
            end = ledger.ended[trial]
            last = (end["reason"] or "").strip().splitlines()[-1:]
            attempts = 1 + ledger.resumed[trial]
            told[begun["config"]["method.fault"]] = (end["event"], "".join(last), attempts)
    return told


@pytest.mark.slow
def test_a_failure_that_may_pass_is_tried_again_and_the_same_one_twice_is_left(faulty):
    faults = "none, once, always, changing, bug, nan, exit, hungry, huge"
    code, out, err, run = faulty(faults, "--no-confirm")
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
        "exit": (log.FAILED, "its worker died more often than study.max_retries allows", 3),
        "hungry": (log.FINISHED, "", 1),  # each batch in two parts
    }
    again = [e["reason"] for e in events(run) if e["event"] == log.RESUMED]
    assert sum("OSError: the network file system is away (faulty.py:" in r for r in again) == 1
    assert sum("its worker died" in r for r in again) == 2
    # The one that was tried again went on from its checkpoint to the same end as an undisturbed one.
    ended = Ledger.read(run).ended.values()
    finished = [e for e in ended if e["event"] == log.FINISHED]
    assert len({e["value"] for e in finished if "accumulate" not in e}) == 1
    assert [e["accumulate"] for e in finished if "accumulate" in e] == [2]
    [huge] = [e["reason"] for e in ended if "out of mem" in str(e["reason"])]
    assert huge.startswith("out of memory: ") and huge.endswith(
        "also with each batch in 2 parts; halve data.batch_size or data.mu, or give it a device "
        "with more memory"
    )


@pytest.mark.slow
def test_a_confirmation_that_fails_runs_once_more_and_leaves_its_model_like_any_other(faulty):
    code, out, err, run = faulty("late")
    assert code == 0, out + err
    seed = [e["event"] for e in events(run) if e["trial"] == "c0-confirm-s0"]
    assert seed == [log.STARTED, log.FAILED, log.STARTED, log.FINISHED]
    assert (run / log.MODELS / "0" / log.WEIGHTS).is_file() and not (run / "ray").exists()


@pytest.mark.slow
def test_a_study_in_which_everything_fails_stops_early_and_names_the_first_cause(faulty):
    code, out, err, run = faulty("bug, bug1, bug2, bug3, bug4, bug5, bug6, bug7, bug8")
    assert code == 1, out + err
    ended = endings(run)
    assert 3 <= len(ended) <= 5 and set(ended.values()) == {log.FAILED}
    assert err.splitlines()[-1] == (
        f"all {len(ended)} trials so far failed; the first one: {next(iter(ended))} failed: "
        "TypeError: a bug in the method; what is finished is kept. "
        "Go on with: tune-ssl search --resume f"
    )
    assert not any(e["phase"] == log.CONFIRM for e in events(run))


@pytest.mark.slow
def test_a_study_in_which_nothing_finishes_exits_with_1_and_the_first_cause_also_on_a_resume(
    faulty,
):
    for faults in ("nan, nan1", None):
        code, out, err, run = faulty(faults)
        assert (code, set(endings(run).values())) == (1, {log.DIVERGED}), out + err
        assert err == (
            "f: nothing could be chosen: no trial finished; the first one that went wrong: "
            f"{next(iter(endings(run)))} diverged: supervised is nan at step 7\n"
        )


# ---- disks ---------------------------------------------------------------------------------------


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


def fill(disk):
    with pytest.raises(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)


@pytest.fixture
def waits(monkeypatch):
    """How often somebody has begun to wait for a disk, and told so."""
    told, tell = [], retry.until_it_works

    def telling(do, on, what, say, longest=None):
        def both(line):
            told.append(line)
            say(line)

        return tell(do, on, what, both, longest)

    monkeypatch.setattr("tune_ssl.tuning.writer.until_it_works", telling)
    return told


def reports_of(run):
    """trial -> the steps of its reports, each once"""
    found = {}
    for report in latest_reports(log.read(run / log.HISTORY)):
        found.setdefault(report["trial"], []).append(report["step"])
    return found


EVERY = list(range(5, 41, 5))


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_costs_nothing(faulty, waits, small_disk):
    run = small_disk / "f"

    def full_for_a_while():
        wait_until(lambda: len(log.read(run / log.HISTORY)) >= 3)
        fill(small_disk)
        count = len(events(run))
        wait_until(lambda: waits)
        assert len(events(run)) <= count + 1
        (small_disk / "ballast").unlink()

    with meanwhile(full_for_a_while):
        code, out, err, _ = faulty("none, once", "--no-confirm")
    assert code == 0, out + err
    assert "cannot be written: No space left on device; waiting" in out
    assert "it answers again; going on" in out
    assert reasons(run)["none"] == (log.FINISHED, "", 1)
    assert reasons(run)["once"][0] == log.FINISHED
    assert reports_of(run) == dict.fromkeys(("c0-t0000", "c0-t0001"), EVERY)


@pytest.mark.slow
def test_a_run_folder_that_is_away_for_a_while_is_waited_for(faulty, waits, tmp_path):
    run, away = tmp_path / "runs" / "f", tmp_path / "runs" / "away"

    def away_for_a_while():
        wait_until(lambda: len(log.read(run / log.HISTORY)) >= 3)
        run.rename(away)
        wait_until(lambda: waits)
        if run.exists():  # Ray may have made its own folder anew
            shutil.rmtree(run)
        away.rename(run)

    with meanwhile(away_for_a_while):
        code, out, err, _ = faulty("none, once", "--no-confirm")
    assert code == 0, out + err
    assert set(endings(run).values()) == {log.FINISHED}
    assert reports_of(run) == dict.fromkeys(("c0-t0000", "c0-t0001"), EVERY)


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_in_one_line_and_a_resume_goes_on(
    faulty, small_disk, monkeypatch
):
    run = small_disk / "f"
    monkeypatch.setattr(retry, "LONGEST", 3.0)

    def full():
        wait_until(lambda: len(log.read(run / log.HISTORY)) >= 3)
        fill(small_disk)

    with meanwhile(full):
        code, out, err, _ = faulty("none, once")
    assert code == 1, out + err
    assert "cannot be written: " in out and "; waiting" in out
    assert "No space left on device; what is finished is kept. Go on with: tune-ssl" in err
    assert len(err.splitlines()) == 1
    (small_disk / "ballast").unlink()
    code, out, err, _ = faulty(None)
    assert code == 0, out + err
    assert len(endings(run)) == 3 and set(endings(run).values()) == {log.FINISHED}
