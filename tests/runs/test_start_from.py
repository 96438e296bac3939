"""A search begins with the winners of an earlier run; what cannot is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import called, run_here, write_study
from tune_ssl.base.errors import UserError
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import reopen
from tune_ssl.runs.splits import check_data
from tune_ssl.runs.start_from import with_starts
from tune_ssl.study.study import load_study

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised, labeled_view: none}
  budget: {steps: 4, eval_every: 2}
search:
  optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}
  optim.momentum: {uniform: [0.5, 0.9]}
study: {num_trials: 2, searcher: random, scheduler: none, finalists: 1, seeds: [0]}
"""


RATE = "optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}\n  optim.momentum"
DRAWN = STUDY.replace("num_trials: 2", "num_trials: 2, start_from: []")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    return run_here(tmp_path_factory.mktemp("earlier"), DRAWN, name="first")


def started(folder, body, runs):
    study = load_study(write_study(folder, body))
    stores = check_data(study)
    return with_starts(study, stores, runs), stores


def test_the_winner_of_an_earlier_run_is_tried_first_inside_the_new_domains(earlier, tmp_path):
    body = STUDY.replace("[0.5, 0.9]", "[0.1, 0.2]").replace(
        "num_trials: 2", "num_trials: 3, start_from: [first, defaults]"
    )
    study, _ = started(tmp_path, body, earlier.parent)
    ledger = Ledger.read(earlier)
    best = ledger.begun[ledger.locked["all"]["trial"]]["config"]
    [given, defaults] = study.settings.start_from
    assert defaults == "defaults" and given == {
        "from": "first, all",
        "method": "supervised",
        "optim.lr": best["optim.lr"],
        "optim.momentum": 0.2,
    }
    body = body.replace("start_from: [first, defaults]", f"start_from: [{given}, defaults]")
    run = run_here(tmp_path, body)
    begun = Ledger.read(run).begun
    assert [begun[f"c0-t000{n}"].get("given") for n in range(3)] == ["first, all", "defaults", None]
    _, again = reopen(run.parent, run.name)  # nothing of the earlier run is asked for any more
    assert again.settings.start_from == study.settings.start_from


@pytest.mark.parametrize(
    "change, said",
    [
        (("[first]", "[frist]"), "study.start_from names frist: "),
        (("num_labels: 40", "num_labels: 40, image_size: 16"), "has images of digest "),
        ((RATE, "optim.warmup"), "searched none of the keys that this study searches"),
        (("name: supervised, labeled_view: none", "name: soft_kmeans"), "is of supervised, and not of soft_kmeans"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_start_a_study_is_one_line(earlier, tmp_path, change, said):
    body = STUDY.replace("num_trials: 2", "num_trials: 2, start_from: [first]").replace(*change)
    with pytest.raises(UserError) as refused:
        started(tmp_path, body, earlier.parent)
    [problem] = refused.value.problems
    assert said in str(problem) and str(problem).startswith(f"{tmp_path / 'study.yaml'}:"), problem


def test_check_says_so_too(earlier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(earlier.parents[1])
    body = STUDY.replace("num_trials: 2", "num_trials: 2, start_from: [nowhere]")
    path = write_study(tmp_path, body)
    code, _, err = called(monkeypatch, capsys, "check", path, "--fast")
    assert code == 2 and "study.start_from names nowhere: runs/nowhere is not a run folder" in err
    assert not Path("runs/nowhere").exists()
