"""Ablations that really run: rows of one frozen reference, paired, equal in budget, resumed, never tested."""

from __future__ import annotations

import os
import signal

import pytest

from analysis.numbers.ablations import ablation_table, ablation_trials, effect_table
from analysis.read.load import load_runs
from tests.support.runs import (
    ablate_here,
    called,
    endings,
    events,
    meanwhile,
    run_here,
    wait_until,
    write_study,
)
from tune_ssl.base.spec import digest
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.study.study import load_study
from tune_ssl.study.trial import override

STUDY = """
fixed:
  data: {dataset: digits, batch_size: 8, mu: 1}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: kmeans}
  budget: {steps: 8, eval_every: 8}
conditions:
  data.num_labels: [20, 40]
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
  losses.cluster.ramp_up: {uniform: [0.1, 0.8]}
ablate:
  no_cluster: {losses.cluster.weight: 0}
  raw_clusters: {method.cluster_to_class: raw, retune: [optim.lr]}
study: {num_trials: 2, finalists: 1, seeds: [0, 1], checkpoint_seconds: 0}
"""


def plan(run):
    return [e for e in events(run) if e["event"] == log.PLANNED]


def started(run, phase):
    """trial -> its first start"""
    found = {}
    for event in events(run):
        if event["phase"] == phase and event["event"] in log.BEGINNINGS:
            found.setdefault(event["trial"], event)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = run_here(tmp_path_factory.mktemp("ablated"), STUDY)
    ablate_here(run)
    return run


def test_each_row_is_trained_on_every_fresh_seed_of_every_condition(run):
    assert [(row["condition"][-2:], row["variant"]) for row in plan(run)] == [
        (labels, name)
        for labels in ("20", "40")
        for name in ("reference", "no_cluster", "raw_clusters")
    ]
    rows = [
        f"c{c}-ablate-{v}-s{s}"
        for c in (0, 1)
        for v in ("no_cluster", "raw_clusters")
        for s in (0, 1)
    ]
    assert sorted(started(run, log.ABLATE)) == sorted(rows)
    assert all(endings(run)[name] == log.FINISHED for name in rows)


def test_the_reference_is_the_locked_config_and_its_confirmed_seeds_are_not_trained_again(run):
    locked = {e["condition"]: e["config"] for e in events(run) if e["event"] == log.LOCKED}
    for row in plan(run):
        if row["variant"] == log.REFERENCE:
            assert row["config"] == locked[row["condition"]] and row["changes"] == {}
    trials = ablation_trials(load_runs([run]))
    reference = trials[trials["variant"] == log.REFERENCE]
    assert sorted(reference["trial"]) == [f"c{c}-confirm-s{s}" for c in (0, 1) for s in (0, 1)]


def test_a_row_changes_what_it_says_and_nothing_else(run):
    study = load_study(run.parents[1] / "study.yaml")
    specs = {condition.id: condition.spec for condition in study.conditions}
    locked = {e["condition"]: e["config"] for e in events(run) if e["event"] == log.LOCKED}
    for name, begin in started(run, log.ABLATE).items():
        base = override(
            specs[begin["condition"]], {**locked[begin["condition"]], "seed": begin["seed"]}
        )
        if begin["variant"] == "no_cluster":
            assert digest(override(base, {"losses.cluster.weight": 0})) == begin["digest"], name
        own = override(specs[begin["condition"]], {**begin["config"], "seed": begin["seed"]})
        assert digest(own) == begin["digest"]
        assert own.budget == base.budget and own.data == base.data


def test_a_retuned_row_has_a_search_of_its_own_that_starts_from_the_reference(run):
    retuned = started(run, log.RETUNE)
    assert sorted(retuned) == [f"c{c}-retune-raw_clusters-t000{t}" for c in (0, 1) for t in (0, 1)]
    assert all(begin["seed"] == 1000 for begin in retuned.values())
    reference = {r["condition"]: r["config"] for r in plan(run) if r["variant"] == log.REFERENCE}
    ended = Ledger.read(run).ended
    for begin in started(run, log.ABLATE).values():
        condition, config = begin["condition"], reference[begin["condition"]]
        if begin["variant"] != "raw_clusters":
            continue
        own = {t: b for t, b in retuned.items() if b["condition"] == condition}
        rates = [own[trial]["config"]["optim.lr"] for trial in sorted(own)]
        assert rates[0] == config["optim.lr"] != rates[1]
        done = [t for t in own if ended[t]["event"] == log.FINISHED]
        best = max(done, key=lambda t: (ended[t]["value"], -own[t]["number"]))
        assert begin["config"] == own[best]["config"]
        assert begin["config"]["losses.cluster.ramp_up"] == config["losses.cluster.ramp_up"]


def test_an_ablation_never_opens_test_data(run):
    for event in events(run):
        if event["phase"] in (log.ABLATE, log.RETUNE):
            assert not any(key.startswith("test/") for key in event.get("metrics") or {})


def test_rows_share_the_split_of_their_seed_and_differences_are_paired(run):
    trials = ablation_trials(load_runs([run]))
    assert trials.groupby(["condition", "seed"])["split"].nunique().eq(1).all()
    table = ablation_table(load_runs([run]))
    assert list(table["variant"])[:3] == ["reference", "no_cluster", "raw_clusters"]
    for row in table.to_dict("records"):
        own = trials[trials["condition"] == row["condition"]].pivot(
            index="seed", columns="variant", values="value"
        )
        assert row["mean"] == pytest.approx(own[row["variant"]].mean()) and row["n"] == 2
        if row["variant"] != log.REFERENCE:
            expected = (own[row["variant"]] - own[log.REFERENCE]).mean()
            assert row["diff"] == pytest.approx(expected)


def test_ablating_again_trains_nothing_and_new_rows_are_added(run):
    before = len(events(run))
    ablate_here(run)
    assert len(events(run)) == before
    told = ablate_here(run, only=("no_ramp_up", "no_cluster"), conditions=("data.num_labels=40",))
    assert told == []
    added = {begin["trial"] for begin in events(run)[before:] if begin["event"] == log.STARTED}
    assert added == {"c1-ablate-no_ramp_up-s0", "c1-ablate-no_ramp_up-s1"}


@pytest.mark.slow
def test_of_a_yaml_the_fixed_part_is_taken_apart_also_after_ctrl_c(
    ray_here, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    body = STUDY.replace("conditions:\n  data.num_labels: [20, 40]\n", "")
    path = write_study(tmp_path, body.replace("steps: 8", "steps: 64"))
    run = tmp_path / "runs" / "two"

    def press_ctrl_c():
        wait_until(lambda: run.exists() and len(endings(run)) >= 2)
        os.kill(os.getpid(), signal.SIGINT)

    options = ("--factorial", "no_cluster,no_augmentation_consistency", "--name", "two")
    before = signal.signal(signal.SIGINT, lambda *_: None)  # it must not end the tests
    try:
        with meanwhile(press_ctrl_c):
            code, _, err = called(
                monkeypatch, capsys, "ablate", path, *options, "study.max_concurrent=1"
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and "tune-ssl ablate two" in err and "Traceback" not in err
    code, out, err = called(monkeypatch, capsys, "ablate", "two")
    assert code == 0 and "report: runs/two/report/index.html" in out, out + err
    names = ("reference", "no_cluster", "no_augmentation_consistency")
    names += ("no_cluster+no_augmentation_consistency",)
    assert sorted(endings(run)) == sorted(f"c0-ablate-{v}-s{s}" for v in names for s in (0, 1))
    counts = [e["trial"] for e in events(run) if e["event"] in log.ENDINGS]
    assert len(counts) == len(set(counts))
    runs = load_runs([run])
    y = ablation_trials(runs).pivot(index="seed", columns="variant", values="value")
    effects = effect_table(runs).set_index("effect")["mean"]
    a, b, both = y[names[1]], y[names[2]], y[names[3]]
    none = y["reference"]
    assert effects["no_cluster"] == pytest.approx(((a - none + both - b) / 2).mean())
    pair = "no_cluster x no_augmentation_consistency"
    assert effects[pair] == pytest.approx((both - b - a + none).mean())


@pytest.fixture
def empty(tmp_path):
    """A run folder in which nothing was trained yet; `begin` writes what was."""
    return run_here(tmp_path, STUDY.replace("finalists: 1", "finalists: 2"), dry=True)


def begin(run, trial, phase=log.SEARCH, condition="data.num_labels=20", value=0.5, **more):
    about = {"phase": phase, "trial": trial, "condition": condition}
    config = {"optim.lr": 1e-3 * (1 + int(trial[-1]))}
    start = {"number": 0, "config": config, "seed": 1000, "digest": "d", **more}
    log.append(run / log.TRIALS, {"event": log.STARTED, **about, **start})
    if value is not None:
        ending = {"event": log.FINISHED, "value": value, "step": 12, "metrics": {}}
        log.append(run / log.TRIALS, {**ending, **about})


def test_an_unfinished_search_has_no_reference_yet(empty, monkeypatch, capsys):
    begin(empty, "c0-t0000")
    for missing in ("c0-t0001", "c1-t0000", "c1-t0001"):
        code, _, err = called(monkeypatch, capsys, "ablate", empty)
        where = "40" if missing.startswith("c1") else "20"
        text = (
            f"has a search that is not over in condition data.num_labels={where}; `tune-ssl search"
        )
        assert code == 2 and text in err and not plan(empty)
        begin(empty, missing, condition=f"data.num_labels={where}")
    begin(empty, "c0-final0000-s1001", log.FINALIST, repeats="c0-t0000")
    code, _, err = called(monkeypatch, capsys, "ablate", empty)
    assert code == 2 and "has a search that is not over in condition data.num_labels=20" in err


def test_what_a_rows_method_lacks_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    body = STUDY.replace("retune: [optim.lr]", "retune: [losses.cluster.ramp_up]").replace(
        "method.cluster_to_class: raw", "method: {name: supervised}, losses: {}"
    )
    path = write_study(tmp_path, body)
    code, _, err = called(monkeypatch, capsys, "ablate", path, "--runs", tmp_path / "runs")
    assert code == 2 and "losses.cluster" in err and "is not a known key" in err
    assert not (tmp_path / "runs").exists()


def test_a_row_that_does_not_measure_the_studys_metric_is_left_out_with_a_word(tmp_path):
    body = STUDY.replace("num_trials: 2", "num_trials: 2, metric: val/cluster_accuracy")
    run = run_here(tmp_path, body, dry=True)
    told = ablate_here(run, only=("supervised_only", "no_cluster"), dry=True)
    assert told == [
        f"data.num_labels={n}: supervised_only has no val/cluster_accuracy and is left out"
        for n in (20, 40)
    ]
    assert {row["variant"] for row in plan(run)} == {"reference", "no_cluster"}


def test_fewer_steps_are_said(tmp_path):
    body = STUDY.replace("{name: kmeans}", "{name: simclr}").replace(
        "losses.cluster.ramp_up", "data.mu"
    )
    body = body.replace("{uniform: [0.1, 0.8]}", "{int: [1, 2]}").partition("ablate:")[0]
    body += "ablate:\n  random_init: {method.init: random}\nstudy: {num_trials: 2, seeds: [0]}\n"
    told = ablate_here(run_here(tmp_path, body, dry=True), dry=True)
    assert told[0] == "data.num_labels=20: random_init trains 8 steps of 16"


def test_an_ablation_without_a_search_is_not_resumed_as_one(tmp_path, monkeypatch, capsys):
    run = run_here(tmp_path, STUDY, dry=True)
    ablate_here(run, dry=True)
    code, _, err = called(monkeypatch, capsys, "search", "--resume", run)
    assert code == 2 and err.endswith("no search; `tune-ssl ablate one` goes on with it\n")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ("--only", "no_clustr"),
            "--only is 'no_clustr', but must be a known variant; did you mean 'no_cluster'?",
        ),
        (("--only", ","), "--only is ',', but must name variants: a,b"),
        (("--factorial", "no_cluster"), "--factorial is no_cluster, but must name 2 to 5"),
        (
            ("--condition", "data.num_labels=2"),
            "--condition is 'data.num_labels=2', but must be a known condition",
        ),
        (("optim.lr=1",), "a run keeps its name, study and data: give it alone"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, monkeypatch, capsys, arguments, expected):
    before = (run / log.TRIALS).read_bytes()
    code, _, err = called(monkeypatch, capsys, "ablate", run, *arguments)
    assert code == 2 and err.count("\n") == 1 and err.startswith(expected), err
    assert (run / log.TRIALS).read_bytes() == before
