"""`tune-ssl compare`: one run of several methods, its report, its winners, and the answer in words."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.numbers.comparisons import difference_table
from analysis.numbers.helps import questions
from analysis.read.load import load_runs
from analysis.report.report import all_tables, write_report
from analysis.words.answer import answer
from tests.support.runs import COMMAND, called, run_here
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.status import RunStatus

BODY = """
fixed:
  data: {dataset: digits, batch_size: 8}
  budget: {steps: 60, eval_every: 30}
conditions:
  data.num_labels: [20, 100]
compare:
  supervised: {search: {optim.lr: {log_uniform: [3e-3, 3e-2]}}}
  label_spreading: {search: {method.k: {choice: [5, 7]}}}
  few: {fixed: {method: {name: nearest_neighbors}}, search: {}}
study: {num_trials: 2, finalists: 1, seeds: [3, 4, 5, 6], scheduler: none}
"""
CELLS = ("data.num_labels=20", "data.num_labels=100")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """runs/one: three methods at two label budgets, searched and confirmed. Nobody writes into it."""
    return run_here(tmp_path_factory.mktemp("compared"), BODY)


@pytest.fixture
def command(compared, monkeypatch, capsys):
    monkeypatch.chdir(compared.parent.parent)
    return lambda *arguments: called(monkeypatch, capsys, *arguments)


def test_all_methods_share_one_run_its_splits_and_its_seeds(compared):
    ledger = Ledger.read(compared)
    digests: dict[tuple[str, int], set[str]] = {}
    for split in log.read(compared / log.SPLITS):
        cell = split["condition"].partition(",method=")[0]
        digests.setdefault((cell, split["seed"]), set()).add(split["digest"])
    assert all(len(own) == 1 for own in digests.values())
    assert len({start["condition"] for start in ledger.begun.values()}) == 6
    assert set(ledger.locked) == {
        f"{c},method={m}" for c in CELLS for m in ("supervised", "label_spreading", "few")
    }


def test_a_method_with_nothing_to_search_has_one_trial_and_counts_as_done(compared):
    ledger = Ledger.read(compared)
    trials = [t for t, s, _ in ledger.trials(f"{CELLS[0]},method=few", log.SEARCH)]
    assert len(trials) == 1
    status = RunStatus.read(compared)
    assert status.in_words(False) == "confirmed" and status.parts()[0].planned == 2 * (2 + 2 + 1)


def test_the_report_shows_each_method_under_the_same_conditions(compared, tmp_path):
    runs = load_runs([compared])
    assert runs.labels == ["supervised", "label_spreading", "few"]
    assert set(runs.conditions["condition"]) == set(CELLS)
    page = write_report([compared], tmp_path / "report").read_text()
    results = (tmp_path / "report/tables/results.csv").read_text().splitlines()
    assert len(results) == 1 + 6 and "supervised vs label_spreading vs few on digits" in page


def test_the_answer_compares_with_the_best_method_that_uses_no_unlabeled_image(compared):
    runs = load_runs([compared])
    found = questions(runs, difference_table(runs))
    assert [q.condition[0] for q in found] == list(CELLS)
    for question in found:
        assert question.floor in ("supervised", "few")
        assert [c.label for c in question.contenders] == ["label_spreading"]
        assert question.contenders[0].gain.n == 4
    lines = answer(compared, all_tables)
    assert lines[0].startswith("With 20 labels: ") and " reaches " in lines[0]
    assert any(line.startswith("in short: ") for line in lines)
    assert any("tune-ssl export one --runs" in line for line in lines)


def test_a_conditions_winner_is_the_method_that_is_best_on_validation_images(compared, command):
    ledger = Ledger.read(compared)
    ids = [f"{CELLS[0]},method={m}" for m in ("supervised", "label_spreading", "few")]
    values = {c: ledger.confirmed(c) for c in ids}
    best = max(values, key=values.get)
    assert ledger.best_of(ids, "max") == best
    code, out, _ = command("best", "one", "--condition", CELLS[0])
    assert code == 0 and f"condition {best}:" in out
    code, out, _ = command("best", "one", "--condition", ids[0])
    assert code == 0 and f"condition {ids[0]}:" in out
    code, _, err = command("best", "one", "--condition", "data.num_labels=9")
    assert code == 2 and "did you mean 'data.num_labels=20'?" in err


def test_the_winner_is_exported_and_classifies_images(compared, command, tmp_path):
    out = tmp_path / "model"
    code, said, _ = command("export", "one", "--condition", CELLS[1], "-o", str(out))
    assert code == 0 and json.loads((out / log.MODEL).read_text())["condition"] in said
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    code, said, _ = command("predict", str(out), str(tmp_path / "a.png"))
    assert code == 0 and said.startswith("path,class,confidence,p_0")


def test_a_trial_of_a_comparison_is_trained_again_to_the_same_value(compared, command):
    ledger = Ledger.read(compared)
    trial, end = next((t, e) for t, e in ledger.ended.items() if e["phase"] == log.CONFIRM)
    code, out, _ = command("train", str(compared), "--trial", trial)
    assert code == 0 and f"val/mean_class_accuracy {end['value']:.4f}" in " ".join(out.split())
    code, _, err = command("train", str(compared), "--trial", "c9-t0000")
    assert code == 2 and "--trial is 'c9-t0000', but must be a known trial" in err


@pytest.mark.slow
def test_one_command_compares_on_a_real_cluster_is_interrupted_and_goes_on(tmp_path):
    """Ctrl-C in the middle, and --resume: every trial once, and the answer at the end."""
    import signal
    import time

    small = ["budget.steps=40", "study.num_trials=2", "study.seeds=[0, 1]", "data.num_labels=30"]
    words = [
        *COMMAND,
        "compare",
        "supervised",
        "label_spreading",
        "fixmatch",
        *small,
        "--name",
        "r",
    ]
    first = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run = tmp_path / "runs/r"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (run / log.TRIALS).exists():
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 130 and "Go on with:" in said
    done = subprocess.run(
        [*COMMAND, "compare", "--resume", "r"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    ledger = Ledger.read(run)
    assert not ledger.open_trials() and len(ledger.locked) == 3
    assert "in short: " in done.stdout and Path(run / "report/index.html").exists()
