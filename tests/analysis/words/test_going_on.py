"""A run that went on after its end: what is said of it, and which confirm trials count."""

import json

import pytest
from ruamel.yaml import YAML

from analysis.numbers import tables
from analysis.plots import all_plots
from analysis.read.changes import changes
from analysis.read.load import load_runs
from analysis.report import paper
from analysis.report.provenance import provenance
from analysis.report.report import all_tables
from tests.analysis.conftest import METRIC, said, shown
from tests.analysis.report.test_galleries import png
from tune_ssl.records import log

CONDITION = "data.num_labels=50"
COMMAND = "tune-ssl search a study.num_trials=40 --reopen"
NEW = {"optim.lr": 0.06, "method.temperature": 0.5, "data.num_labels": 50}


def reopen(path, event):
    own = {"phase": log.CONFIRM, "reason": COMMAND}
    event(path, log.REOPENED, None, CONDITION, **own)


def choose(path, event, config, trial="c0-t0005", value=0.79):
    own = {"phase": log.CONFIRM, "digest": "g5", "config": config, "value": value, "ties": 0}
    event(path, log.LOCKED, trial, CONDITION, **own, rule="best finished", half_width=0.1)


def confirm(path, event, config, values, name="c0-confirm1"):
    for seed, value in values.items():
        own = {"phase": log.CONFIRM, "number": seed, "config": config, "seed": seed, "digest": "g5"}
        event(path, log.STARTED, f"{name}-s{seed}", CONDITION, **own)
        metrics = {"test/mean_class_accuracy": value, "test/accuracy": value, METRIC: 0.7}
        own = {"phase": log.CONFIRM, "step": 100, "value": 0.7, "metrics": metrics, "seconds": 1.0}
        event(path, log.FINISHED, f"{name}-s{seed}", CONDITION, **own)


def change(path, settings, opened, command=COMMAND):
    yaml = YAML(typ="safe", pure=True)
    study = yaml.load(path / log.STUDY)
    entry = {"time": "2026-02-03T04:05:06+00:00", "command": command, "settings": settings}
    study.setdefault("changes", []).append({**entry, "opened": opened})
    with open(path / log.STUDY, "w") as file:
        yaml.dump(study, file)


@pytest.fixture(name="anew")
def _anew(tmp_path, write_run, event):
    """A run whose only condition was confirmed, reopened, and confirmed with another config."""
    path = write_run(tmp_path / "a", labels=(50,))
    reopen(path, event)
    choose(path, event, NEW)
    confirm(path, event, NEW, {0: 0.6, 1: 0.62, 2: 0.61, 3: 0.63})
    return path


def test_numbers_are_those_of_the_config_that_is_chosen_now(anew):
    runs = load_runs([anew])
    (row,) = tables.results_table(runs).to_dict("records")
    assert row["mean"] == pytest.approx((0.6 + 0.62 + 0.61 + 0.63) / 4) and row["n"] == 4
    assert set(tables.confirm_trials(runs)["trial"]) == {f"c0-confirm1-s{s}" for s in range(4)}
    assert tables.budget_table(runs)["confirm_trials"].to_list() == [4]
    assert tables.stability_table(runs)["trials"].to_list() == [6 + 4]
    (chosen,) = tables.chosen_table(runs).to_dict("records")
    assert (chosen["trial"], chosen["confirmed_n"], chosen["locked"]) == ("c0-t0005", 4, True)


def test_no_table_or_figure_is_as_if_the_old_confirmation_counted(anew, tmp_path):
    """A twin without the old confirmation has the same tables and figures, but for that of all trials."""
    events = [json.loads(line) for line in (anew / log.TRIALS).read_text().splitlines()]
    old = {f"c0-confirm-s{seed}" for seed in range(5)}
    twin = tmp_path / "twin" / "a"
    twin.mkdir(parents=True)
    for name in (log.STUDY, log.HISTORY, log.SPLITS):
        (twin / name).write_text((anew / name).read_text())
    kept = [e for e in events if e["trial"] not in old and e["event"] != log.REOPENED]
    kept = [e for e in kept if (e["event"], e["trial"]) != (log.LOCKED, "c0-t0001")]
    log.append_all(twin / log.TRIALS, kept)
    ours, theirs = load_runs([anew]), load_runs([twin])
    found, expected = all_tables(ours), all_tables(theirs)
    for stem in set(found) - {"trials"}:
        assert found[stem].drop(columns="opened", errors="ignore").to_csv() == (
            expected[stem].drop(columns="opened", errors="ignore").to_csv()
        ), stem
    drawn = {plot.name: plot.table.to_csv() for plot in all_plots(ours, found)}
    again = {plot.name: plot.table.to_csv() for plot in all_plots(theirs, expected)}
    assert drawn.pop("timeline") != again.pop("timeline")  # what ran, ran
    assert drawn == again


def test_superseded_trials_stay_in_the_table_of_all(anew):
    runs = load_runs([anew])
    table = shown(tables.trial_table(runs), "trials").set_index("Trial")
    assert set(table.loc[[f"c0-confirm-s{s}" for s in range(5)], "Phase"]) == {"superseded"}
    assert set(table.loc[[f"c0-confirm1-s{s}" for s in range(4)], "Phase"]) == {"confirm"}


def test_what_was_chosen_anew_is_said_first(anew, event):
    runs = load_runs([anew])
    found = all_tables(runs)
    lines = said(runs)
    sentence = (
        f"soft_kmeans, {CONDITION}: the configuration was chosen anew after its test data had been opened (1 time): "
        "its test figures are not those of a config that was chosen blindly."
    )
    assert sentence in lines
    assert not any("configurations were locked" in line for line in lines)
    text = paper.protocol(runs, found["results"], found["budget"])
    assert "in 1 condition it was chosen anew, with test data open, and only the last" in text
    opened = provenance(runs, runs.studies[0], found["chosen"])["opened"]
    assert [line.endswith(", taken back later") for line in opened] == [True, False]
    reopen(anew, event)
    text = "\n".join(said(load_runs([anew])))
    assert "is being chosen anew after its test data had been opened (2 times)" in text
    assert "No configuration has been confirmed on test data yet." in text


def test_the_same_config_chosen_again_keeps_its_confirmation(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,))
    before = tables.results_table(load_runs([path]))
    reopen(path, event)
    same = {"optim.lr": 0.02, "method.temperature": 0.5, "data.num_labels": 50}
    choose(path, event, same, "c0-t0001", 0.81)
    runs = load_runs([path])
    assert tables.results_table(runs).equals(before)
    assert not (runs.trials["phase"] == "superseded").any()
    assert "chosen anew" in "\n".join(said(runs))


def test_galleries_of_superseded_trials_are_left_out(anew):
    row = {"title": "cat", "png": png(), "width": 30, "captions": []}
    for trial in ("c0-confirm-s0", "c0-confirm1-s0"):
        line = {"trial": trial, "condition": CONDITION, "name": "neighbours", "title": "Nearest"}
        log.append(anew / log.GALLERIES, {**line, "rows": [row], "values": {}, "error": None})
    assert [one.trial for one in load_runs([anew]).galleries] == ["c0-confirm1-s0"]


def test_changes_are_said_with_what_was_open(anew, event):
    change(anew, {"num_trials": [6, 40]}, [CONDITION])
    change(anew, {"seeds": [[0], [0, 1]]}, [CONDITION], "tune-ssl search a study.seeds=[0,1]")
    change(anew, {"time_budget": [None, 9.0]}, [], "tune-ssl search a study.time_budget=9")
    lines = said(load_runs([anew]))
    when = "at 2026-02-03T04:05:06+00:00"
    for line in (
        f"a went on with study.num_trials=40 (before: 6) {when}: the test data of {CONDITION} was open, and the "
        "choice was taken back.",
        f"a went on with study.seeds=[0, 1] (before: [0]) {when}: of {CONDITION} the choice was made before the "
        "test data was opened and stands.",
        f"a went on with study.time_budget=9.0 (before: none) {when}: no test data was open then.",
    ):
        assert line in lines, line


def test_seeds_that_were_added_in_sight_of_test_values_are_a_caveat(anew):
    line = (
        "a: seeds were added after test values had been seen: a p value takes their number for fixed beforehand, and "
        "is too small where they were added until something was decided."
    )
    assert line not in said(load_runs([anew]))
    change(anew, {"seeds": [[0], [0, 1]]}, [], "tune-ssl search a study.seeds=[0,1]")
    assert line not in said(load_runs([anew]))  # no test data was open then
    change(anew, {"seeds": [[0], [0, 1]]}, [CONDITION], "tune-ssl search a study.seeds=[0,1]")
    assert line in said(load_runs([anew]))


def test_changes_of_a_run_that_compares_methods_are_said_once(anew, event):
    change(anew, {"num_trials": [6, 40]}, ["method=a," + CONDITION, "method=b," + CONDITION])
    yaml = YAML(typ="safe", pure=True)
    study = yaml.load(anew / log.STUDY)
    (cell,) = study["conditions"]
    study["conditions"] = [
        {**cell, "id": f"method={m},{CONDITION}", "method": m, "cell": CONDITION} for m in "ab"
    ]
    study["compare"] = {m: {"method": m} for m in "ab"}
    study["study"] = {"compare": {m: {} for m in "ab"}, "study": study["study"]["study"]}
    with open(anew / log.STUDY, "w") as file:
        yaml.dump(study, file)
    text = (anew / log.TRIALS).read_text()
    text = text.replace(f'"{CONDITION}"', f'"method=a,{CONDITION}"')
    (anew / log.TRIALS).write_text(text)
    runs = load_runs([anew])
    assert len(runs.studies) == 2
    (found,) = changes(runs)
    assert found.opened == (f"method=a,{CONDITION}", f"method=b,{CONDITION}")
    assert found.reopened == (f"method=a,{CONDITION}",)


def test_what_a_time_budget_cut_is_a_caveat_until_it_is_done(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,))
    reason = "study.time_budget, 10 min: 5 trials were not begun"
    event(path, log.CUT, None, CONDITION, reason=reason)
    line = f"soft_kmeans, {CONDITION}, search: {reason}."
    assert line in said(load_runs([path]))
    event(path, log.STARTED, "c0-t0006", CONDITION, config={}, number=6, seed=100)
    assert line not in said(load_runs([path]))


def test_a_run_that_never_went_on_says_nothing_of_it(tmp_path, write_run):
    text = "\n".join(said(load_runs([write_run(tmp_path / "a")])))
    assert "went on" not in text and "anew" not in text and "budget" not in text
