"""A search from the command line, interrupted and gone on with, and how its trials end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from typing import Any, NamedTuple

import pytest

from analysis.numbers.tables import stability_table
from analysis.read.load import load_runs
from tests.support.runs import (
    called,
    endings,
    events,
    finish,
    run_here,
    start,
    wait_for,
    write_study,
)
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.lock import driver_lock

STUDY = """
fixed:
  data: {dataset: digits, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: soft_kmeans}
  budget: {steps: 24, eval_every: 6}
conditions:
  data.num_labels: [20, 40]
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
  method.temperature: {log_uniform: [0.01, 1]}
study: {num_trials: 4, finalists: 2, finalist_seeds: [1001], seeds: [0, 1], checkpoint_seconds: 0}
"""


class Searched(NamedTuple):
    """A search that Ctrl-C ended in its first trials, and that was then resumed to its end."""

    run: Any
    interrupted: tuple[int, str, str]
    open_then: list[str]
    resumed: tuple[int, str, str]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    run = folder / "runs" / "one"
    study = write_study(folder, STUDY)
    process = start(folder, "search", study, "--name", "one", start_new_session=True)
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) > 2)
    with contextlib.suppress(ProcessLookupError):  # it is over after the first one
        for _ in range(
            2
        ):  # a terminal sends it to the whole group; Ray's processes make no noise of it
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
    interrupted, left = finish(process, timeout=60), Ledger.read(run).open_trials()
    resumed = finish(start(folder, "search", "--resume", "one"))
    assert resumed[0] == 0, resumed
    return Searched(run, interrupted, left, resumed)


# ---- Ctrl-C --------------------------------------------------------------------------------------


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(searched):
    code, out, err = searched.interrupted
    assert code == 130, out + err
    assert err.strip().splitlines()[-1] == (
        "interrupted; what is finished is kept. Go on with: tune-ssl search --resume one"
    )
    assert "Traceback" not in out + err and searched.open_then


def test_a_resume_says_what_it_found_and_loses_and_repeats_nothing(searched):
    _, out, _ = searched.resumed
    first, second = out.splitlines()[:2]
    assert first.startswith("one: searched ") and " of 8" in first
    many = len(searched.open_then)
    were = "1 trial was" if many == 1 else f"{many} trials were"
    assert second.startswith(f"one: {were} running: ")
    ended = [e["trial"] for e in events(searched.run) if e["event"] in log.ENDINGS]
    twice = {trial for trial, times in Counter(ended).items() if times > 1}
    stopped = [e["trial"] for e in events(searched.run) if e["event"] == log.STOPPED]
    assert twice <= set(stopped)  # a finalist that had been stopped was trained to its end
    resumed = {e["trial"] for e in events(searched.run) if e["event"] == log.RESUMED}
    assert resumed <= set(searched.open_then) <= set(ended)


# ---- the whole of a search -----------------------------------------------------------------------


def finalists(run):
    """What the two best finished trials of a condition are called when they run again."""
    names, ledger = [], Ledger.read(run)
    for index, condition in enumerate(dict.fromkeys(e["condition"] for e in events(run))):
        best = ledger.finalists(condition, "max", 2)
        names += [f"c{index}-final{trial[-4:]}-s1001" for trial in best]
    return names


def test_a_search_ends_with_its_whole_budget_in_each_condition_and_names_its_report(searched):
    trials = endings(searched.run)
    assert sorted(trials) == sorted(
        [f"c{c}-t{t:04d}" for c in (0, 1) for t in range(4)]
        + finalists(searched.run)
        + [f"c{c}-confirm-s{s}" for c in (0, 1) for s in (0, 1)]
    )
    assert set(trials.values()) <= {log.FINISHED, log.STOPPED}
    assert "report: runs/one/report/index.html" in searched.resumed[1]
    assert (searched.run / "report" / "index.html").stat().st_size > 100_000


def test_the_output_is_ours_alone_a_line_for_each_trial_and_one_table(searched):
    for _, out, err in (searched.interrupted, searched.resumed):
        assert "ray" not in (out + err).lower().replace("array", "")
        assert "Warning" not in err and "Traceback" not in err
        assert sum(line.startswith("┏") for line in out.splitlines()) == 1
    end = next(e for e in events(searched.run) if e["trial"] == "c0-confirm-s0" and "value" in e)
    line = "search one: c0-confirm-s0 (data.num_labels=20, confirm 1/2) finished"
    shown = f"{line} val/mean_class_accuracy {end['value']:.4f}"
    assert shown in searched.resumed[1] or shown.replace("1/2", "2/2") in searched.resumed[1]


def test_test_data_is_measured_only_after_a_config_was_locked_and_only_in_confirmation(searched):
    lines = events(searched.run)
    locked = {e["condition"]: e for e in lines if e["event"] == log.LOCKED}
    assert len(locked) == 2
    for line in lines:
        tested = any(key.startswith("test/") for key in line.get("metrics", {}))
        assert tested == (line["phase"] == log.CONFIRM and line["event"] == log.FINISHED)
        if line["phase"] == log.CONFIRM and line["event"] == log.STARTED:
            assert line["time"] >= locked[line["condition"]]["time"]
            assert line["config"] == locked[line["condition"]]["config"]


def test_confirmation_uses_the_fresh_seeds_and_the_best_finished_config(searched):
    lines = events(searched.run)
    for condition in ("data.num_labels=20", "data.num_labels=40"):
        ours = [e for e in lines if e["condition"] == condition]
        locked = next(e for e in ours if e["event"] == log.LOCKED)
        ended = {e["trial"]: e for e in ours if e["event"] in log.ENDINGS}
        values = {
            e["trial"]: [e["value"]]
            for e in ended.values()
            if e["event"] == log.FINISHED and e["phase"] == log.SEARCH
        }
        again = {e["trial"]: e["repeats"] for e in ours if "repeats" in e}
        for name, repeated in again.items():
            values[repeated].append(ended[name]["value"])
        compared = {t: sum(v) / len(v) for t, v in values.items() if not again or len(v) == 2}
        assert locked["value"] == pytest.approx(max(compared.values()))
        assert compared[locked["trial"]] == pytest.approx(locked["value"])
        seeds = {"search": {1000}, "confirm": {0, 1}}
        if again:
            seeds["finalist"] = {1001}
        for phase, expected in seeds.items():
            starts = [e for e in ours if e["event"] == log.STARTED and e["phase"] == phase]
            assert {e["seed"] for e in starts} == expected


def test_the_splits_are_saved_for_every_condition_and_seed(searched):
    splits = log.read(searched.run / log.SPLITS)
    assert {(s["condition"], s["seed"]) for s in splits} == {
        (f"data.num_labels={n}", seed) for n in (20, 40) for seed in (1000, 1001, 0, 1)
    }
    assert all(len(s["labeled"]) == int(s["condition"].split("=")[1]) for s in splits)


def test_a_finished_search_leaves_no_checkpoints_behind(searched):
    assert not (searched.run / "ray").exists()


@pytest.fixture
def here(searched, monkeypatch, capsys):
    """`here("search", ...)` in the folder of the search; the run must stay as it is."""
    monkeypatch.chdir(searched.run.parents[1])
    before = (searched.run / log.TRIALS).read_bytes()
    yield lambda *arguments: called(monkeypatch, capsys, *arguments)
    assert (searched.run / log.TRIALS).read_bytes() == before


def test_resuming_a_finished_run_repeats_nothing(here):
    code, out, err = here("search", "--resume", "one", "--no-report")
    assert (code, err) == (0, "") and "one: searched 8 of 8, " in out


def test_a_second_driver_on_the_same_run_is_refused(here, searched):
    with driver_lock(searched.run):
        code, _, err = here("search", "--resume", "one")
    assert (code, err) == (2, "runs/one is in use by another tune-ssl process\n")


def test_a_name_that_exists_is_refused_and_the_run_left_as_it_was(here):
    code, _, err = here("search", "study.yaml", "--name", "one")
    assert (code, err) == (
        2,
        "runs/one exists already; `tune-ssl search --resume one` goes on with it, "
        "another --name starts afresh\n",
    )


# ---- how trials end ------------------------------------------------------------------------------

# One trial at a time, so that the second one meets the first one's rung.
ENDINGS = """
fixed:
  data: {dataset: digits, batch_size: 8, num_labels: 40}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised, labeled_view: none}
  optim: {name: sgd, momentum: 0, weight_decay: 0, ema_decay: 0}
  budget: {steps: 40, eval_every: 20}
search:
  compute.device: {choice: [cpu, "cuda:63"]}
  optim.lr: {choice: [0.2, 1e-12, 1e+30]}
study: {num_trials: 6, searcher: grid, seeds: [0], reduction_factor: 2, finalists: 1}
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return run_here(tmp_path_factory.mktemp("ended"), ENDINGS)


def counted(run):
    """The report's count of the endings of a run's only condition."""
    return stability_table(load_runs([run])).iloc[0]


def test_finished_stopped_diverged_and_failed_are_four_different_endings(ended):
    assert endings(ended) == {
        "c0-t0000": log.FINISHED,
        "c0-t0001": log.STOPPED,
        "c0-t0002": log.DIVERGED,
        "c0-t0003": log.FAILED,
        "c0-t0004": log.FAILED,
        "c0-t0005": log.FAILED,
        "c0-confirm-s0": log.FINISHED,
    }
    kinds = ["finished", "stopped_early", "diverged", "failed"]
    assert counted(ended)[kinds].to_list() == [2, 1, 1, 3]  # one of them confirmed


def test_an_ending_says_why(ended):
    reasons = {e["trial"]: e["reason"] for e in Ledger.read(ended).ended.values()}
    assert reasons["c0-t0000"] is None
    assert reasons["c0-t0001"] == "stopped early: worse than its rung's best half"
    assert reasons["c0-t0002"].startswith(("supervised is ", "gradient is "))
    assert "at step " in reasons["c0-t0002"]
    assert "compute.device is 'cuda:63', but must be auto, cpu or a device" in reasons["c0-t0003"]


def test_a_diverged_trial_knows_its_step_and_what_it_cost(ended):
    event = Ledger.read(ended).ended["c0-t0002"]
    assert 1 <= event["step"] <= 40 and event["images_seen"] == 8 * event["step"]
    assert event["value"] is None and event["seconds"] > 0


COLLAPSING = """
fixed:
  data: {dataset: digits, batch_size: 16, mu: 1, num_labels: 20}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: simsiam, projector_hidden: 32, projector_dim: 32, predictor_hidden: 8, collapse_below: 0.8}
  optim: {lr: 0.05, finetune: {lr: 0.001}}
  budget: {steps: {pretrain: 30, finetune: 2}, eval_every: 10}
  compute: {cache: false}
search:
  method.stop_gradient: {choice: [true, false]}
study: {num_trials: 2, searcher: grid, scheduler: none, seeds: [0]}
"""


def test_a_collapsed_trial_is_an_ending_of_its_own(tmp_path):
    run = run_here(tmp_path, COLLAPSING)
    event = Ledger.read(run).ended["c0-t0001"]
    assert (event["event"], endings(run)["c0-t0000"]) == (log.COLLAPSED, log.FINISHED)
    steps = f"over steps {event['step'] - 9} to {event['step']}"
    assert event["reason"].startswith("embedding_std is 0.") and steps in event["reason"]
    assert event["step"] in (10, 20, 30) and event["images_seen"] == 16 * event["step"]
    assert event["value"] is None and event["seconds"] > 0
    assert counted(run)[["finished", "collapsed", "failed"]].to_list() == [2, 1, 0]


PRETRAINED = """
fixed:
  data: {dataset: digits, batch_size: 8, num_labels: 20}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: simclr, projector_hidden: 16, projector_dim: 16}
  budget: {steps: {pretrain: 20, finetune: 4}, eval_every: 4}
  compute: {cache: false}
search:
  optim.lr: {choice: [1e-3, 1.0]}  # the second one's features are worse
  optim.finetune.lr: {choice: [1e-4, 1e-3, 1e-2]}
study: {num_trials: 6, searcher: grid, grace_period: 0.2, reduction_factor: 2, finalists: 1, seeds: [0]}
"""


def test_a_bad_pretraining_is_stopped_early_and_never_scored(tmp_path):
    ledger = Ledger.read(run_here(tmp_path, PRETRAINED))
    for trial, begun, end in ledger.trials("all", log.SEARCH):
        if begun["config"]["optim.lr"] == 1e-3:
            assert end["event"] == log.FINISHED and end["step"] == 24, trial
        else:
            assert end["event"] == log.STOPPED and end["step"] == 8, trial
            assert end["value"] is None and "val/probe_accuracy" in end["metrics"]
    assert len(ledger.scores("all", "max")) == 3
