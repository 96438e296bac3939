"""`tune-ssl list`: what a run is of, how far it is, and whether somebody works on it, which is never guessed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import HEAVY
from tests.support.runs import events
from tune_ssl.base.errors import UserError
from tune_ssl.records import log
from tune_ssl.runs.lock import driver_lock, in_use
from tune_ssl.viewers import listing

ONE = Path("runs/one")


def first_finalist() -> str:
    return next(event["trial"] for event in events(ONE) if event["phase"] == log.FINALIST)


def keep(run: Path, wanted) -> None:
    """Leave only the events for which `wanted(event)` holds."""
    kept = [event for event in events(run) if wanted(event)]
    (run / log.TRIALS).write_text("".join(json.dumps(event) + "\n" for event in kept))


def test_a_confirmed_run_shows_its_endings_and_what_each_condition_was_chosen_by(command):
    code, out, err = command("list")
    assert (code, err) == (0, "")
    locked = [event for event in events(ONE) if event["event"] == log.LOCKED]
    for lock in locked:
        assert f"{lock['condition']}" in out and f"{lock['value']:.4f}*" in out
    assert "supervised on digits" in out and "confirmed" in out and "14 finished" in out


def test_the_same_as_json(command):
    code, out, _ = command("list", "--json")
    (item,) = json.loads(out)
    assert code == 0 and item["problem"] is None and item["running"] is False
    assert (item["name"], item["path"], item["status"]) == ("one", "runs/one", "confirmed")
    assert item["trials"] == {
        "search": {"finished": 6},
        "finalist": {"finished": 4},
        "confirm": {"finished": 4},
    }
    for event in events(ONE):
        if event["event"] == log.LOCKED:
            best = item["best"][event["condition"]]
            assert best == {"trial": event["trial"], "value": event["value"], "locked": True}


def test_a_lock_without_a_value_is_listed_all_the_same(command):
    lines = [{**e, "value": None} if "value" in e else e for e in events(ONE)]
    (ONE / log.TRIALS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, err = command("list")
    assert (code, err) == (0, "") and "nan*" in out
    assert "NaN" not in command("list", "--json")[1]


@pytest.mark.parametrize(
    "wanted, expected",
    [
        (lambda e: False, "interrupted: searched 0 of 6"),
        (lambda e: e["trial"] == "c0-t0000", "interrupted: searched 1 of 6"),
        (
            lambda e: e["trial"] == "c0-t0000" and e["event"] == "started",
            "interrupted: searched 0 of 6",
        ),
        (lambda e: e["phase"] == "search", "searched"),
        (
            lambda e: e["phase"] == "search" or e["trial"] == first_finalist(),
            "interrupted: repeated finalists 1 of 4",
        ),
        (lambda e: e["phase"] != "confirm", "interrupted: confirmed 0 of 2 conditions"),
        (
            lambda e: e["phase"] != "confirm" or e["event"] == "locked",
            "interrupted: confirmed 0 of 4",
        ),
        (
            lambda e: e["trial"] != "c1-confirm-s4",
            "interrupted: confirmed 3 of 4",
        ),
        (
            lambda e: not (e["phase"] == "confirm" and e["condition"].endswith("=100")),
            "interrupted: confirmed 1 of 2 conditions",
        ),
    ],
)
def test_the_status_is_read_from_the_records(command, wanted, expected):
    keep(ONE, wanted)
    assert listing.read_run(ONE).status.startswith(expected)


def test_only_the_lock_says_that_somebody_works_on_it(command):
    keep(ONE, lambda event: event["trial"] == "c0-t0000" and event["event"] == "started")
    assert listing.read_run(ONE).running is False
    code = (
        "import sys, pathlib\nfrom tune_ssl.runs.lock import driver_lock\n"
        "with driver_lock(pathlib.Path('runs/one')):\n    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as held:
        assert held.stdout.readline() == "locked\n"
        found = listing.read_run(ONE)
        assert (found.running, found.status) == (True, "searching 0 of 6")
        assert found.trials == {"search": {"open": 1}}
        held.stdin.close()
    assert not in_use(ONE)


def test_looking_at_the_lock_takes_it_from_nobody_and_leaves_no_file(command):
    assert not in_use(ONE) and not (ONE / ".driver.lock").exists()
    with driver_lock(ONE):
        assert in_use(ONE)
        with (
            pytest.raises(UserError, match="is in use by another tune-ssl process"),
            driver_lock(ONE),
        ):
            pass
    assert not in_use(ONE)


def test_a_lock_that_cannot_be_asked_is_said_so(command, monkeypatch):
    def denied(run):
        raise PermissionError

    monkeypatch.setattr(listing, "in_use", denied)
    found = listing.read_run(ONE)
    assert (found.running, found.status) == (None, "lock cannot be read: confirmed")


def test_an_ablation_counts_its_rows_and_what_is_confirmed_of_the_reference(command):
    lock = next(event for event in events(ONE) if event["event"] == log.LOCKED)
    shared = {"phase": log.ABLATE, "condition": lock["condition"]}
    for variant in (log.REFERENCE, "no_decay"):
        row = {"changes": {}, "retune": [], "config": lock["config"], "variant": variant}
        planned = {"event": log.PLANNED, "trial": None, **shared, **row}
        log.append(ONE / log.TRIALS, planned)
    assert listing.read_run(ONE).status == "interrupted: ablated 0 of 2"
    for seed in (3, 4):
        trial = {"trial": f"c0-ablate-no_decay-s{seed}", **shared}
        begin = {"seed": seed, "variant": "no_decay", "config": {}}
        log.append(ONE / log.TRIALS, {"event": log.STARTED, **trial, **begin})
        log.append(ONE / log.TRIALS, {"event": log.FINISHED, **trial, "value": 0.5})
    assert listing.read_run(ONE).status == "ablated"
    assert listing.read_run(ONE).best[lock["condition"]].value == lock["value"]


def test_what_another_config_confirmed_is_still_to_be_trained_of_the_reference(command):
    lock = next(event for event in events(ONE) if event["event"] == log.LOCKED)
    row = {"changes": {}, "retune": [], "config": {"optim.lr": 1}, "variant": log.REFERENCE}
    about = {"phase": log.ABLATE, "condition": lock["condition"], "trial": None}
    log.append(ONE / log.TRIALS, {"event": log.PLANNED, **about, **row})
    assert listing.read_run(ONE).status == "interrupted: ablated 0 of 2"


def test_a_broken_run_is_a_line_and_the_others_are_listed(command):
    for name in ("torn", "later", "gone", "odd", "bare", "mine", "alien"):
        shutil.copytree(ONE, f"runs/{name}")
    Path("runs/torn/study.yaml").write_text("schema: [1\n")
    text = Path("runs/later/study.yaml").read_text()
    Path("runs/later/study.yaml").write_text(text.replace("schema: 1", "schema: 2"))
    Path("runs/gone/study.yaml").unlink()
    Path("runs/odd/trials.jsonl").write_text('{"schema": 1, "event": "started"}\n')
    Path("runs/bare/study.yaml").write_text(text.replace("num_trials: 3", "num_trials: many"))
    event = {"event": "finished", "phase": "search", "trial": "c0-t0000", "value": "much"}
    log.append(Path("runs/alien/trials.jsonl"), event | {"condition": "nope"})
    alien = Path("runs/alien/trials.jsonl").read_text().splitlines()
    Path("runs/alien/trials.jsonl").write_text("\n".join([alien[0], alien[-1], *alien[1:-1]]))
    shutil.rmtree("runs/mine")
    Path("runs/mine").mkdir()  # no run at all
    (ONE / log.TRIALS).open("a").write('{"torn')
    code, out, err = command("list")
    assert (code, err) == (0, "")
    assert "14 finished" in out
    assert [line for line in out.splitlines() if line.startswith("broken")] == [
        "broken: runs/alien/trials.jsonl:2: `value` is 'much', but must be a finite number or null",
        "broken: runs/bare/study.yaml: study.study.num_trials is wrong: Input should be a valid "
        "integer, unable to parse string as an integer",
        "broken: runs/gone has no study.yaml",
        "broken: runs/later/study.yaml: schema is wrong: Input should be 1",
        "broken: runs/odd/trials.jsonl:1: has a record without 'phase'",
        "broken: runs/torn/study.yaml:2: the file is not valid YAML: expected ',' or ']', but got "
        "'<stream end>'",
    ]
    problems = {item["name"]: item["problem"] for item in json.loads(command("list", "--json")[1])}
    assert problems["one"] is None and problems["gone"] == "runs/gone has no study.yaml"


def test_no_runs(command):
    Path("none").mkdir()
    assert command("list", "--runs", "none") == (0, "none has no run folder\n", "")
    assert command("list", "--runs", "none", "--json") == (0, "[]\n", "")
    code, out, err = command("list", "--runs", "nowhere")
    assert (code, out, err) == (2, "", "nowhere cannot be listed: No such file or directory\n")


def test_the_list_loads_nothing_heavy(command):
    code = (
        "import sys\nfrom tune_ssl.cli.main import main\nsys.argv[1:] = ['list']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *[m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "confirmed" in done.stdout and done.stdout.splitlines()[-1] == "LOADED"
