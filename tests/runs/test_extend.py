"""A run that has ended is taken on: more seeds, more trials, failed ones again; what may not be is one line."""

from __future__ import annotations

import pytest

from tests.support.runs import called, events, run_here
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised, labeled_view: none}
  budget: {steps: 10, eval_every: 5}
search:
  optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}
study: {num_trials: 2, searcher: random, scheduler: none, finalists: 1, seeds: [0, 1]}
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return run_here(tmp_path_factory.mktemp("ended"), STUDY)


@pytest.fixture
def go_on(ended, monkeypatch, capsys):
    """`go_on("study.seeds=[0]")`: the run is taken on with that; its code, output and messages."""
    monkeypatch.chdir(ended.parents[1])

    def call(*more):
        return called(monkeypatch, capsys, "search", "--resume", ended.name, "--no-report", *more)

    return call


def content(run):
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.suffix != ".lock"}


REFUSED = {
    "study.num_trials=1": "study.num_trials is 1, but the run has 2: it can only be raised",
    "study.seeds=[0]": "study.seeds is [0], but must have the run's own [1] too",
    "study.seeds=[1, 0, 2]": "study.seeds is [1, 0, 2], but must begin with the run's own [0, 1]",
    "study.seeds=[0, 1, 1000]": "study.seeds is [0, 1, 1000], but must not have the tuning_seed, 1000",
    "study.time_budget=0": "override study.time_budget=0: study.time_budget is 0, but must be greater than 0",
    "study.metric=val/loss": "study.metric cannot be changed in a run that has begun (what can: study.num_trials, ",
    "study.num_trial=4": "'study.num_trial', but must be a known key that a run can be taken on with; did you mean",
    "optim.lr=1": "'optim.lr', but must be a known key that a run can be taken on with",
    "study.finalists=null": "override study.finalists=null: study.finalists must have a value",
    "study.num_trials=[": "override study.num_trials=[: study.num_trials has a value that is not YAML: ",
    "x.yaml": "a resumed run keeps its name, study and data: x.yaml is not taken; study.num_trials=40 adds trials",
    "study.num_trials=4": "study.num_trials is 4, but the config of condition all is chosen and its test data was "
    "opened; "
    "--reopen chooses anew, and the report says so. study.seeds needs no new choice",
}  # fmt: skip


@pytest.mark.parametrize("more, said", REFUSED.items())
def test_what_a_run_cannot_be_taken_on_with_is_one_line_and_changes_nothing(
    go_on, ended, more, said
):
    before = content(ended)
    code, _, err = go_on(more)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert before == content(ended)


def test_reopen_without_anything_new_to_choose_is_refused(go_on):
    code, _, err = go_on("--reopen", "study.seeds=[0, 1, 2]")
    assert code == 2 and err.startswith("--reopen takes back what was chosen, but nothing new is")


def test_a_run_is_taken_on_to_fresh_seeds_and_then_to_more_trials(go_on, ended):
    first = Ledger.read(ended)
    chosen = first.locked["all"]["config"]
    code, out, err = go_on("study.seeds=[0, 1, 2, 3]")
    assert (code, err) == (0, "") and "study.seeds=[0, 1, 2, 3] (before: [0, 1])" in out
    ledger = Ledger.read(ended)
    seeds = {s["seed"] for _, s, _ in ledger.trials("all", log.CONFIRM)}
    assert seeds == {0, 1, 2, 3} and ledger.locked["all"]["config"] == chosen
    assert sum(e["event"] == log.STARTED for e in events(ended)) == 2 + 4
    [change] = read_yaml(ended / log.STUDY).data["changes"]
    assert change["settings"] == {"seeds": [[0, 1], [0, 1, 2, 3]]} and change["opened"] == ["all"]

    code, out, err = go_on("study.num_trials=5", "study.finalists=2", "--reopen")
    assert (code, err) == (0, ""), err
    ledger = Ledger.read(ended)
    assert sum(1 for _ in ledger.trials("all", log.SEARCH)) == 5
    assert sum(1 for _ in ledger.trials("all", log.FINALIST)) == 4
    assert (
        len(ledger.reopened["all"]) == 1 and len(read_yaml(ended / log.STUDY).data["changes"]) == 2
    )
    now = ledger.locked["all"]["config"]
    confirms = [(t, s) for t, s, _ in ledger.trials("all", log.CONFIRM) if not ledger.superseded(t)]
    assert {s["seed"] for _, s in confirms} == {0, 1, 2, 3}
    assert all(s["config"] == now for _, s in confirms)
    assert (now == chosen) == all(not ledger.superseded(t) for t in ledger.begun)

    code, out, err = go_on()  # as often as one likes
    assert (code, err) == (0, "") and Ledger.read(ended).begun == ledger.begun


def test_options_of_a_run_that_goes_on_need_one(monkeypatch, capsys):
    for option in ("--reopen", "--retry-failed"):
        code, _, err = called(monkeypatch, capsys, "search", "x.yaml", option)
        assert code == 2 and err == f"{option} is for a run that goes on: give --resume RUN too\n"


def test_where_no_other_config_is_left_the_choice_stands(tmp_path, monkeypatch, capsys):
    space = "search:\n  method.labeled_view: {choice: [none, weak]}\n"
    body = STUDY.replace("search:\n  optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}\n", space)
    run = run_here(tmp_path, body)
    monkeypatch.chdir(tmp_path)
    more = ("study.num_trials=20", "--reopen")
    code, _, err = called(monkeypatch, capsys, "search", "--resume", "one", *more)
    assert (
        code == 2
        and "there is no other config to choose: every config of the space was tried" in err
    )
    assert not Ledger.read(run).reopened


def test_the_same_command_goes_on_after_a_kill(tmp_path, monkeypatch, capsys):
    run = run_here(tmp_path, STUDY)
    monkeypatch.chdir(tmp_path)
    more = ("study.num_trials=3", "--reopen", "--no-report")
    lines = []
    monkeypatch.setattr("tune_ssl.tuning.run.train_all", lambda *_: lines.append("killed"))
    called(monkeypatch, capsys, "search", "--resume", "one", *more)
    assert lines and Ledger.read(run).reopened and not Ledger.read(run).locked
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, _, err = called(monkeypatch, capsys, "search", "--resume", "one", *more)
    assert (code, err) == (0, "") and len(Ledger.read(run).reopened["all"]) == 1
    assert sum(1 for _ in Ledger.read(run).trials("all", log.SEARCH)) == 3
