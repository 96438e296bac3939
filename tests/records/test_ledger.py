"""The ledger: what began, how it ended, what is chosen, locked and planned, from the events alone."""

from __future__ import annotations

import math

import pytest

from tune_ssl.records import log
from tune_ssl.records.ledger import OPEN, Best, Ledger, latest_reports

CONDITION = "data.num_labels=20"


def event(kind, trial, phase=log.SEARCH, condition=CONDITION, **more):
    return {"event": kind, "trial": trial, "phase": phase, "condition": condition, **more}


def started(trial, phase=log.SEARCH, kind=log.STARTED, **more):
    number = int("".join(filter(str.isdigit, trial)))
    about = {"number": number, "config": {"optim.lr": number}, "seed": 1000, "digest": f"d{number}"}
    return event(kind, trial, phase, **{**about, **more})


def ended(trial, value=None, kind=log.FINISHED, phase=log.SEARCH, **more):
    return event(kind, trial, phase, **{"value": value, "time": 0.0, **more})


def searched(*values):
    """The events of search trials t0, t1, ... that finished with these values."""
    names = [f"t{i}" for i in range(len(values))]
    return [
        e
        for name, value in zip(names, values, strict=True)
        for e in (started(name), ended(name, value))
    ]


def repeated(trial, **by_seed):
    """The events of a trial's repeats: seed -> value, None for one that failed."""
    found = []
    for seed, value in by_seed.items():
        name, kind = f"{trial}-{seed}", log.FAILED if value is None else log.FINISHED
        found.append(started(name, log.FINALIST, repeats=trial))
        found.append(ended(name, value, kind, log.FINALIST))
    return found


# ---- beginnings and endings ----------------------------------------------------------------------


def test_the_first_beginning_and_the_first_ending_of_a_trial_count():
    first, again = started("t0"), started("t0", kind=log.RESUMED, config={"optim.lr": 9})
    ledger = Ledger([first, again, ended("t0", 0.5), ended("t0", 0.9)])
    assert ledger.begun == {"t0": first} and ledger.resumed["t0"] == 1
    assert ledger.ended["t0"]["value"] == 0.5 and ledger.status("t0") == log.FINISHED


def test_a_trial_that_begins_again_after_its_end_is_open_until_its_next_ending_which_counts():
    ledger = Ledger([started("t0"), ended("t0", kind=log.FAILED), started("t0")])
    assert ledger.status("t0") == OPEN and ledger.open_trials() == ["t0"]
    ledger.add(ended("t0", 0.7))
    assert ledger.ended["t0"]["value"] == 0.7 and ledger.open_trials() == []


def test_trials_come_by_condition_and_phase_in_the_order_of_beginning():
    other = event(log.STARTED, "o0", condition="other", number=0, config={}, seed=1, digest="d")
    confirm = started("s1", log.CONFIRM)
    ledger = Ledger([confirm, started("t1"), other, started("t0"), ended("t1", 0.5)])
    found = [(t, e and e["value"]) for t, _, e in ledger.trials(CONDITION, log.SEARCH, log.CONFIRM)]
    assert found == [("t1", 0.5), ("t0", None), ("s1", None)]
    assert ledger.has(log.CONFIRM) and not ledger.has(log.ABLATE)


def test_endings_are_counted_by_phase():
    events = [*searched(0.1, 0.2), started("t2"), started("t3"), ended("t3", kind=log.STOPPED)]
    ledger = Ledger([*events, started("s1", log.CONFIRM)])
    assert ledger.counts() == {
        "search": {"finished": 2, "open": 1, "stopped_early": 1},
        "confirm": {"open": 1},
    }


def test_the_first_failure_is_the_earliest_bad_ending_with_the_last_line_of_its_reason():
    late = ended("t0", kind=log.FAILED, time=9.0, reason="Traceback\nOSError: away\n")
    early = ended("t1", kind=log.DIVERGED, time=5.0, reason=None)
    ledger = Ledger([started("t0"), started("t1"), late, early, ended("t2", kind=log.STOPPED)])
    assert ledger.first_failure(log.SEARCH) == "t1 diverged: no reason is recorded"
    assert Ledger([late]).first_failure(log.SEARCH) == "t0 failed: OSError: away"
    assert Ledger([late]).first_failure(log.CONFIRM) == ""


# ---- what is chosen ------------------------------------------------------------------------------


def test_a_condition_is_chosen_among_finished_trials_with_a_finite_value_the_earlier_of_equals():
    bad = [
        e
        for i, kind in enumerate((log.STOPPED, *log.BAD_ENDINGS), start=4)
        for e in (started(f"t{i}"), ended(f"t{i}", 0.99, kind))
    ]
    ledger = Ledger([*searched(0.5, 0.8, None, 0.8), *bad])
    assert list(ledger.scores(CONDITION, "max").items()) == [("t1", 0.8), ("t3", 0.8), ("t0", 0.5)]
    assert list(ledger.scores(CONDITION, "min")) == ["t0", "t1", "t3"]
    assert ledger.best(CONDITION, "max") == Best("t1", 0.8, False)
    assert ledger.best("other", "max") is None


def test_of_finalists_only_those_count_whose_repeats_all_finished_by_their_mean():
    events = [*searched(0.9, 0.8, 0.7), *repeated("t0", a=0.6), *repeated("t1", a=0.8, b=0.5)]
    ledger = Ledger(events)
    assert ledger.scores(CONDITION, "max") == {"t0": 0.75, "t1": pytest.approx(0.7)}
    assert list(ledger.scores(CONDITION, "max", log.SEARCH)) == ["t0", "t1", "t2"]
    failed = Ledger([*events, *repeated("t0", b=None)])
    assert failed.best(CONDITION, "max").trial == "t1"
    unfinished = Ledger([*events, started("t0-c", log.FINALIST, repeats="t0")])
    assert unfinished.best(CONDITION, "max").trial == "t1"
    none_finished = Ledger([*searched(0.9, 0.8), *repeated("t0", a=None)])
    assert none_finished.best(CONDITION, "max") == Best("t0", 0.9, False)


def test_finalists_are_the_best_trials_if_they_are_several():
    ledger = Ledger(searched(0.5, 0.9, 0.8))
    assert ledger.finalists(CONDITION, "max", 2) == ["t1", "t2"]
    assert ledger.finalists(CONDITION, "max", 9) == ["t1", "t2", "t0"]
    assert ledger.finalists(CONDITION, "max", 1) == []
    assert Ledger(searched(0.5)).finalists(CONDITION, "max", 4) == []


def test_what_is_locked_stays_the_best_and_the_first_lock_counts():
    locks = [
        event(log.LOCKED, trial, log.CONFIRM, value=value)
        for trial, value in (("t0", 0.5), ("t1", 1))
    ]
    ledger = Ledger([*searched(0.5, 0.9), *locks])
    assert ledger.best(CONDITION, "max") == Best("t0", 0.5, True)
    unknown = Ledger([event(log.LOCKED, "t0", log.CONFIRM, value=None)])
    assert math.isnan(unknown.best(CONDITION, "max").value)


def test_the_plan_of_an_ablation_is_kept_row_by_row_and_tells_that_nothing_was_searched():
    rows = [
        event(log.PLANNED, None, log.ABLATE, variant=name, config={"x": i})
        for i, name in enumerate(("reference", "no_ramp", "reference"))
    ]
    ledger = Ledger(rows)
    assert {name: row["config"] for name, row in ledger.planned[CONDITION].items()} == {
        "reference": {"x": 0},
        "no_ramp": {"x": 1},
    }
    assert ledger.only_ablates and not Ledger([started("t0"), *rows]).only_ablates
    assert not Ledger().only_ablates


def test_a_retuned_row_takes_its_own_best_finished_trial():
    events = [
        e
        for i, (value, variant) in enumerate([(0.5, "a"), (0.8, "a"), (0.8, "a"), (0.9, "b")])
        for e in (
            started(f"r{i}", log.RETUNE, variant=variant),
            ended(f"r{i}", value, phase=log.RETUNE),
        )
    ]
    ledger = Ledger([*events, started("r4", log.RETUNE, variant="a")])
    assert ledger.retuned(CONDITION, "a", "max") == {"optim.lr": 1}
    assert ledger.retuned(CONDITION, "a", "min") == {"optim.lr": 0}
    assert ledger.retuned(CONDITION, "c", "max") is None


def test_a_seed_is_confirmed_where_that_very_config_ended_other_than_by_a_failure():
    ends = [(3, log.FINISHED), (4, log.FAILED), (5, log.DIVERGED), (6, None)]
    events = []
    for seed, kind in ends:
        events.append(started(f"s{seed}", log.CONFIRM, seed=seed, config={"a": 1}))
        events += [ended(f"s{seed}", kind=kind, phase=log.CONFIRM)] if kind else []
    assert Ledger(events).confirmed_seeds(CONDITION, {"a": 1}) == {3, 5}
    assert Ledger(events).confirmed_seeds(CONDITION, {"a": 2}) == set()


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"event": "finis', "\x00\x00\x00"])
def test_a_torn_last_line_is_closed_and_dropped_with_a_warning(tmp_path, torn):
    path = tmp_path / log.TRIALS
    log.append(path, started("t0"))
    with open(path, "a") as file:
        file.write(torn)
    log.append(path, ended("t0", float("nan")))
    with pytest.warns(UserWarning, match=r"trials.jsonl: 1 torn line\(s\) dropped"):
        ledger = Ledger.read(tmp_path)
    assert ledger.status("t0") == log.FINISHED and ledger.ended["t0"]["value"] is None
    assert Ledger.glance(tmp_path).ended == ledger.ended  # of a run that goes on: no warning


def test_of_a_report_that_stands_twice_the_last_one_counts():
    def report(step, value):
        return {"trial": "t0", "stage": "train", "step": step, "metrics": {"val/accuracy": value}}

    found = latest_reports([report(1, 0.1), report(2, 0.2), report(1, 0.3)])
    assert found == [report(1, 0.3), report(2, 0.2)]
