"""Searches that really run: every trial is accounted for, in the records, the studies and the report."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.runs import endings, events, finish, optuna_states, start, wait_for, write_study
from tune_ssl.records import ledger, log

STUDY = """
fixed:
  data: {dataset: digits, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: soft_kmeans}
  budget: {steps: 12, eval_every: 3}
conditions:
  data.num_labels: [20, 40]
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
  method.temperature: {log_uniform: [0.01, 1]}
study: {num_trials: 4, finalists: 2, seeds: [0, 1], checkpoint_seconds: 0}
"""

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
study: {num_trials: 6, searcher: grid, max_concurrent: 1, seeds: [0], reduction_factor: 2}
"""


def finalists(run):
    """What the two best finished trials of a condition are called when they run again."""
    names = []
    finished = [e for e in ledger.endings(events(run)).values() if e["event"] == log.FINISHED]
    for c in (0, 1):
        own = [e for e in finished if e["trial"].startswith(f"c{c}-t")]
        best = sorted(own, key=lambda e: (-e["value"], e["trial"]))[:2]
        if len(best) > 1:
            names += [f"c{c}-final{e['trial'][-4:]}-s{s}" for e in best for s in (1001, 1002)]
    return names


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    code, out, err = finish(start(folder, "search", write_study(folder, STUDY), "--name", "one"))
    assert code == 0, out + err
    return folder / "runs" / "one", out, err


def test_a_search_ends_with_its_whole_budget_in_each_condition_and_names_its_report(searched):
    run, out, _ = searched
    trials = endings(run)
    assert sorted(trials) == sorted(
        [f"c{c}-t{t:04d}" for c in (0, 1) for t in range(4)]
        + finalists(run)
        + [f"c{c}-confirm-s{s}" for c in (0, 1) for s in (0, 1)]
    )
    assert set(trials.values()) <= {log.FINISHED, log.STOPPED}
    assert f"report: {run.relative_to(run.parents[1]) / 'report' / 'index.html'}" in out
    assert (run / "report" / "index.html").stat().st_size > 100_000


def test_the_output_is_ours_alone(searched):
    _, out, err = searched
    assert "ray" not in (out + err).lower().replace("array", "")
    assert "Warning" not in err and "Traceback" not in err


def test_each_condition_is_one_optuna_study_that_agrees_with_the_records(searched):
    run, _, _ = searched
    trials, states = endings(run), optuna_states(run)
    assert list(states) == ["data.num_labels=20", "data.num_labels=40"]
    expected = {log.FINISHED: "COMPLETE", log.STOPPED: "PRUNED"}
    for index, found in enumerate(states.values()):
        assert found == [expected[trials[f"c{index}-t{t:04d}"]] for t in range(4)]


def test_test_data_is_measured_only_after_a_config_was_locked_and_only_in_confirmation(searched):
    run, _, _ = searched
    lines = events(run)
    locked = {e["condition"]: e for e in lines if e["event"] == log.LOCKED}
    assert len(locked) == 2
    for line in lines:
        tested = any(key.startswith("test/") for key in line.get("metrics", {}))
        assert tested == (line["phase"] == log.CONFIRM and line["event"] == log.FINISHED)
        if line["phase"] == log.CONFIRM and line["event"] == log.STARTED:
            assert line["time"] >= locked[line["condition"]]["time"]
            assert line["config"] == locked[line["condition"]]["config"]


def test_confirmation_uses_the_fresh_seeds_and_the_best_finished_config(searched):
    run, _, _ = searched
    lines = events(run)
    for condition in ("data.num_labels=20", "data.num_labels=40"):
        ours = [e for e in lines if e["condition"] == condition]
        locked = next(e for e in ours if e["event"] == log.LOCKED)
        ended = ledger.endings(ours)
        values = {
            e["trial"]: [e["value"]]
            for e in ended.values()
            if e["event"] == log.FINISHED and e["phase"] == log.SEARCH
        }
        again = {e["trial"]: e["repeats"] for e in ours if "repeats" in e}
        for name, repeated in again.items():
            values[repeated].append(ended[name]["value"])
        compared = {t: sum(v) / len(v) for t, v in values.items() if not again or len(v) == 3}
        assert locked["value"] == pytest.approx(max(compared.values()))
        assert compared[locked["trial"]] == pytest.approx(locked["value"])
        seeds = {"search": {1000}, "confirm": {0, 1}}
        if again:
            seeds["finalist"] = {1001, 1002}
        for phase, expected in seeds.items():
            starts = [e for e in ours if e["event"] == log.STARTED and e["phase"] == phase]
            assert {e["seed"] for e in starts} == expected


def test_the_splits_are_saved_for_every_condition_and_seed(searched):
    run, _, _ = searched
    splits = log.read(run / log.SPLITS)
    assert {(s["condition"], s["seed"]) for s in splits} == {
        (f"data.num_labels={n}", seed) for n in (20, 40) for seed in (1000, 1001, 1002, 0, 1)
    }
    assert all(len(s["labeled"]) == int(s["condition"].split("=")[1]) for s in splits)


def test_a_finished_search_leaves_no_checkpoints_behind(searched):
    run, _, _ = searched
    assert not (run / "ray").exists()


def test_resuming_a_finished_run_repeats_nothing(searched):
    run, _, _ = searched
    before = (run / log.TRIALS).read_text()
    code, out, err = finish(start(run.parents[1], "search", "--resume", "one"))
    assert code == 0, err
    assert (run / log.TRIALS).read_text() == before
    assert "report:" in out


def test_a_name_that_exists_is_refused_and_the_run_left_as_it_was(searched):
    run, _, _ = searched
    before = sorted((p.name, p.stat().st_mtime) for p in run.iterdir())
    code, _, err = finish(start(run.parents[1], "search", "study.yaml", "--name", "one"))
    assert code == 2
    assert err.strip() == (
        "runs/one exists already; `tune-ssl search --resume one` goes on with it, "
        "another --name starts afresh"
    )
    assert sorted((p.name, p.stat().st_mtime) for p in run.iterdir()) == before


# ---- how trials end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    code, out, err = finish(start(folder, "search", write_study(folder, ENDINGS), "--name", "e"))
    assert code == 0, out + err
    return folder / "runs" / "e"


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
    assert optuna_states(ended) == {"all": ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "FAIL"]}


def test_an_ending_says_why(ended):
    reasons = {e["trial"]: e["reason"] for e in ledger.endings(events(ended)).values()}
    assert reasons["c0-t0000"] is None
    assert "pruner" in reasons["c0-t0001"]
    assert reasons["c0-t0002"].startswith(("supervised is ", "gradient is "))
    assert "at step " in reasons["c0-t0002"]
    assert "compute.device is 'cuda:63', but must be auto, cpu or a device" in reasons["c0-t0003"]


def test_a_diverged_trial_knows_its_step_and_what_it_cost(ended):
    event = ledger.endings(events(ended))["c0-t0002"]
    assert 1 <= event["step"] <= 40 and event["images_seen"] == 8 * event["step"]
    assert event["value"] is None and event["seconds"] > 0


def test_the_report_counts_every_kind_of_ending(ended):
    table = (ended / "report" / "tables" / "stability.csv").read_text()
    header, row = table.splitlines()[:2]
    counts = dict(zip(header.split(","), row.split(","), strict=False))
    kinds = ("finished", "stopped_early", "diverged", "failed")
    assert [counts[kind] for kind in kinds] == ["2", "1", "1", "3"]  # one of them confirmed


# ---- pretrained networks -------------------------------------------------------------------------

PRETRAINED = """
fixed:
  data: {dataset: digits, batch_size: 8, num_labels: 20}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: simclr, projector_hidden: 16, projector_dim: 16}
  budget: {steps: {pretrain: 20, finetune: 4}, eval_every: 4}
search:
  optim.finetune.lr: {choice: [1e-4, 1e-3, 1e-2, 1e-1]}
study: {num_trials: 4, searcher: grid, scheduler: none, finalists: 1, seeds: [0, 1]}
"""


def shelves(cache):
    return [path for path in (cache / "pretrained").iterdir() if path.is_dir()]


def told(run):
    """All that the records say of each trial of the search and of its reports, but the time."""
    history = ledger.latest_reports(log.read(run / log.HISTORY))
    said = ("event", "step", "value", "metrics", "images_seen", "reason")
    ended = ledger.endings(events(run))
    return (
        {(r["trial"], r["step"]): r["metrics"] for r in history if "-t" in r["trial"]},
        {t: [event[key] for key in said] for t, event in ended.items() if "-t" in t},
    )


@pytest.mark.slow
def test_a_study_pretrains_once_per_seed_and_reports_what_it_would_have_without_the_cache(
    tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("TUNE_SSL_CACHE", str(cache))
    two = "conditions={data.num_labels: [20, 40]}"
    search = ["search", write_study(tmp_path, PRETRAINED), two, "--no-report", "--name"]
    code, out, err = finish(start(tmp_path, *search, "each", "--no-cache", "--no-confirm"))
    assert code == 0, out + err
    assert not (cache / "pretrained").exists()

    # Interrupted while one trial pretrains and another waits for it, and resumed.
    process = start(tmp_path, *search, "once", start_new_session=True)
    run = tmp_path / "runs" / "once"
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) > 0)
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process, timeout=60)[0] == 130
    assert len(shelves(cache)) == 1 and not endings(run)
    code, out, err = finish(start(tmp_path, "search", "--resume", "once", "--no-report"))
    assert code == 0, out + err

    assert told(run) == told(tmp_path / "runs" / "each")
    assert set(endings(run).values()) == {log.FINISHED}
    assert len(endings(run)) == 2 * 4 + 2 * 2
    assert len(shelves(cache)) == 3  # of the seeds 1000, 0 and 1
    assert all(len(list(folder.iterdir())) == 5 for folder in shelves(cache))


def test_a_bad_pretraining_is_stopped_early_and_never_scored(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    body = PRETRAINED.replace("choice: [1e-4, 1e-3, 1e-2, 1e-1]", "choice: [1e-4, 1e-3, 1e-2]")
    asha = "study={num_trials: 6, searcher: grid, grace_period: 0.2, reduction_factor: 2}"
    rates = "search:\n  optim.lr: {choice: [1e-3, 1.0]}\n"  # the second one's features are worse
    path = write_study(tmp_path, body.replace("search:\n", rates))
    code, out, err = finish(
        start(tmp_path, "search", path, asha, "--name", "s", "--no-confirm", "--no-report")
    )
    assert code == 0, out + err
    run = tmp_path / "runs" / "s"
    rate = {e["trial"]: e["config"]["optim.lr"] for e in events(run) if "config" in e}
    assert len(rate) == 6
    for trial, event in ledger.endings(events(run)).items():
        if rate[trial] == 1e-3:
            assert event["event"] == log.FINISHED and event["step"] == 24
        else:
            assert event["event"] == log.STOPPED and event["step"] == 8
            assert event["value"] is None and "val/probe_accuracy" in event["metrics"]
    assert sorted(optuna_states(run)["all"]) == ["COMPLETE"] * 3 + ["PRUNED"] * 3


COLLAPSING = """
fixed:
  data: {dataset: digits, batch_size: 16, num_labels: 20}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: simsiam, projector_hidden: 32, projector_dim: 32, predictor_hidden: 8, collapse_below: 0.7}
  optim: {lr: 0.05, finetune: {lr: 0.001}}
  budget: {steps: {pretrain: 30, finetune: 2}, eval_every: 10}
search:
  method.stop_gradient: {choice: [true, false]}
study: {num_trials: 2, searcher: grid, scheduler: none}
"""


def test_a_collapsed_trial_is_an_ending_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    path = write_study(tmp_path, COLLAPSING)
    code, out, err = finish(start(tmp_path, "search", path, "--name", "c", "--no-confirm"))
    assert code == 0, out + err
    run = tmp_path / "runs" / "c"
    assert endings(run) == {"c0-t0000": log.FINISHED, "c0-t0001": log.COLLAPSED}
    assert optuna_states(run) == {"all": ["COMPLETE", "FAIL"]}
    event = ledger.endings(events(run))["c0-t0001"]
    steps = f"over steps {event['step'] - 9} to {event['step']}"
    assert event["reason"].startswith("embedding_std is 0.") and steps in event["reason"]
    assert event["step"] in (10, 20, 30) and event["images_seen"] == 16 * event["step"]
    assert event["value"] is None and event["seconds"] > 0
    header, row = (run / "report" / "tables" / "stability.csv").read_text().splitlines()[:2]
    counts = dict(zip(header.split(","), row.split(","), strict=False))
    assert (counts["finished"], counts["collapsed"], counts["failed"]) == ("1", "1", "0")
    assert "collapsed" in (run / "report" / "index.html").read_text()


# ---- Ctrl-C ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT],
        pytest.param([signal.SIGINT, signal.SIGINT], marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM], marks=pytest.mark.slow),  # a batch system's
    ],
)
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path, signals):
    long = STUDY.replace("steps: 12", "steps: 2000").replace("scheduler: asha", "scheduler: none")
    process = start(
        tmp_path, "search", write_study(tmp_path, long), "--name", "c", start_new_session=True
    )
    run = tmp_path / "runs" / "c"
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) > 4)
    time.sleep(random.uniform(0, 1))  # in the driver's own code, or while it waits in Ray's
    for number in signals:
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:  # a terminal sends it to the whole group; ray's own processes must not make noise of it
            os.killpg(process.pid, number)
        time.sleep(0.5)
    code, out, err = finish(process, timeout=60)
    assert code == 130, out + err
    assert err.strip().splitlines()[-1] == (
        "interrupted; what is finished is kept. Go on with: tune-ssl search --resume c"
    )
    assert "Traceback" not in out + err
    assert "RUNNING" in optuna_states(run)["data.num_labels=20"]


def test_importing_the_public_package_loads_neither_torch_nor_ray():
    code = "import sys, tune_ssl; tune_ssl.load_study; print('torch' in sys.modules, 'ray' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
