"""`tune-ssl best`: the printed study is the winner, whole, and every command takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import events
from tests.viewers.test_listing import keep
from tune_ssl.base.spec import digest
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.study.study import load_fixed, load_study
from tune_ssl.study.trial import override

ONE = Path("runs/one")
LABELS = "data.num_labels=100"


def started(trial: str):
    return next(e for e in events(ONE) if e["trial"] == trial and e["event"] == log.STARTED)


def locked(condition: str = LABELS):
    return next(e for e in events(ONE) if e["event"] == log.LOCKED and e["condition"] == condition)


def test_the_printed_study_is_the_locked_config_with_the_first_fresh_seed(command):
    code, out, err = command("best", "one", "--condition", LABELS)
    assert (code, err) == (0, "")
    Path("best.yaml").write_text(out)
    spec = load_fixed("best.yaml").fixed
    assert digest(spec) == started("c1-confirm-s3")["digest"]
    assert digest(override(spec, {"seed": 1000})) == locked()["digest"]
    study = load_study("best.yaml")
    assert study.conditions[0].spec == spec and not study.search and not study.ablate
    assert (study.settings.seeds, study.settings.num_trials) == ([3, 4], 1)
    assert study.settings.finalist_seeds == [1001]
    code, out, _ = command("check", "best.yaml")
    assert code == 0 and "1 condition x 1 trial over 0 searched keys" in out


def test_training_it_repeats_the_confirmed_run(command):
    assert command("best", "one", "--condition", LABELS, "-o", "best.yaml")[:2] == (
        0,
        "best.yaml\n",
    )
    code, out, _ = command("train", "best.yaml")
    value = Ledger.read(ONE).ended["c1-confirm-s3"]["value"]
    assert code == 0 and f"spec {started('c1-confirm-s3')['digest']}: supervised on digits" in out
    assert f"val/mean_class_accuracy {value:.4f}" in " ".join(out.split())


def test_the_header_says_where_it_comes_from_and_that_the_value_is_no_result(command):
    lock = locked()
    text = command("best", "one", "--condition", LABELS)[1]
    header = [line for line in text.splitlines() if line.startswith("# ")]
    seeds = "1000, 1001"
    assert header[:4] == [
        f"# supervised on digits, condition {LABELS}: the config of trial {lock['trial']} of run "
        "runs/one.",
        "# It is locked: its results are those on the fresh seeds.",
        f"# val/mean_class_accuracy {lock['value']:.4f} on validation images, mean over tuning "
        f"seeds {seeds}: the best of 3 finished trials,",
        "# and for that too good. It has no interval and is no result; `tune-ssl report runs/one` "
        "has those.",
    ]
    assert f"# Digest {lock['digest']} with tuning seed 1000" in text
    assert "# Train it:   tune-ssl train FILE    (as c1-confirm-s3 was)" in header


def test_before_the_confirmation_the_selection_rule_picks_and_nothing_is_called_locked(command):
    expected = locked()
    keep(ONE, lambda event: event["phase"] != log.CONFIRM)
    text = command("best", "one", "--condition", LABELS)[1]
    assert f"trial {expected['trial']} of run" in text and "confirm-s3" not in text
    assert "# Nothing is locked yet: it is what the selection rule picks now" in text
    Path("best.yaml").write_text(text)
    assert digest(override(load_fixed("best.yaml").fixed, {"seed": 1000})) == expected["digest"]

    keep(ONE, lambda event: event["phase"] == log.SEARCH and event["condition"] == LABELS)
    text = command("best", "one", "--condition", LABELS)[1]
    ended = Ledger.read(ONE).ended
    first = max(sorted(ended), key=lambda trial: ended[trial]["value"])
    assert f"trial {first} of run" in text
    assert f"{ended[first]['value']:.4f} on validation images, tuning seed 1000: " in text


def test_a_folder_gets_a_file_of_each_condition_and_nothing_is_overwritten(command):
    code, out, _ = command("best", "one", "-o", "all")
    names = ["all/c0-data.num_labels-20.yaml", "all/c1-data.num_labels-100.yaml"]
    assert (code, out.splitlines()) == (0, names)
    for i, name in enumerate(names):
        assert digest(load_fixed(name).fixed) == started(f"c{i}-confirm-s3")["digest"]
    Path(names[0]).unlink()
    before = Path(names[1]).read_text()
    code, out, err = command("best", "one", "-o", "all")
    assert (code, out, err) == (2, "", f"{names[1]} exists already\n")
    assert not Path(names[0]).exists() and Path(names[1]).read_text() == before


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["one"],
            "runs/one has 2 conditions: give --condition with one of data.num_labels=20, "
            "data.num_labels=100\n",
        ),
        (
            ["one", "--condition", "data.num_labels=10"],
            "--condition is 'data.num_labels=10', but must be a known condition; did you mean "
            "'data.num_labels=100'? (known: data.num_labels=100, data.num_labels=20)\n",
        ),
        (["on"], "runs/on is not a run folder; did you mean 'one'? (in runs there are: one)\n"),
        (
            ["one", "--condition", LABELS, "-o", "no/such/b.yaml"],
            "no/such/b.yaml cannot be written: No such file or directory\n",
        ),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(command, tmp_path, arguments, expected):
    before = sorted(tmp_path.rglob("*"))
    assert command("best", *arguments) == (2, "", expected)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_search_without_a_finished_trial_has_no_best(command):
    keep(ONE, lambda event: event["event"] == log.STARTED and event["trial"] == "c0-t0000")
    expected = f"runs/one has no finished search trial in condition {LABELS} yet\n"
    assert command("best", "one", "--condition", LABELS) == (2, "", expected)
    assert command("best", "one", "-o", "x")[2] == "runs/one has no finished search trial yet\n"
