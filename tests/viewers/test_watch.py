"""`tune-ssl watch`: a page that follows a run, tells nobody else of it, and changes nothing in it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import called, finish, start, wait_until
from tune_ssl.base.errors import UserError
from tune_ssl.base.yaml_file import to_yaml
from tune_ssl.records import log
from tune_ssl.runs.lock import driver_lock
from tune_ssl.storage.places import place_of
from tune_ssl.viewers import listing, live, watch
from tune_ssl.viewers.pace import finishes

EVIL = "<img src=x onerror='window.hacked=1'><b>b</b></script><script>window.hacked=1</script>"
METRIC = "val/mean_class_accuracy"
CONFIG = {"optim.lr": 0.01}


# ---- a run folder, written as a driver writes it -------------------------------------------------


def write_run(folder: Path, conditions: tuple[str, ...] = ("a", "b"), **study: Any) -> Path:
    """A run of a search of 3 trials in each condition, with 2 seeds to confirm on, that has not begun."""
    settings = {"num_trials": 3, "finalists": 1, "seeds": [0, 1]}
    about = {
        "schema": 1,
        "name": folder.name,
        "id": folder.name,
        "created": "2026-01-02T03:04:05+00:00",
        "command": "tune-ssl search x.yaml",
        "source": "x.yaml",
        "method": "fixmatch",
        "dataset": {"name": "digits", "digest": "d", "classes": ["0", "1"]},
        "metric": METRIC,
        "mode": "max",
        "loss_terms": ["supervised"],
        "conditions": [
            {"id": each, "values": {}, "labels": 20, "validation": 100} for each in conditions
        ],
        "study": {"search": {"optim.lr": {"log_uniform": [0.001, 0.1]}}, "study": settings},
    } | study
    folder.mkdir(parents=True)
    (folder / log.STUDY).write_text(to_yaml(about))
    return folder


def begin(run: Path, trial: str, condition: str, at: float | None = None, **more: Any) -> None:
    own = {"phase": log.SEARCH, "trial": trial, "condition": condition, **more}
    config = {"number": 0, "config": CONFIG, "seed": 0, "digest": "g"}
    log.append(run / log.TRIALS, {"event": log.STARTED, **own, **config, **timed(at)})


def end(run: Path, trial: str, condition: str, at: float | None = None, **more: Any) -> None:
    own = {"phase": log.SEARCH, "trial": trial, "condition": condition}
    ending = {"event": log.FINISHED, "value": 0.5, "step": 9, "metrics": {}, "seconds": 1.0}
    log.append(run / log.TRIALS, {**own, **ending, **timed(at), **more})


def timed(at: float | None) -> dict[str, float]:
    return {} if at is None else {"time": at}


def report(run: Path, trial: str, step: int, value: float, **metrics: float) -> None:
    own = {"trial": trial, "stage": "train", "step": step, "seconds": 0.1}
    log.append(run / log.HISTORY, {**own, "metrics": {METRIC: value, **metrics}})


def content(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def state_of(run: Path, driven: bool | None = False) -> dict[str, Any]:
    return live.LiveRun(run, lambda: driven).state()


# ---- the state -----------------------------------------------------------------------------------


def write_confirmed(run: Path) -> None:
    """What a search and its confirmation leave in the records."""
    for condition in "ab":
        for number in range(3):
            begin(run, f"{condition}{number}", condition)
            end(run, f"{condition}{number}", condition, value=number / 10)
        lock = {"config": CONFIG, "digest": "g", "value": 0.2, "phase": log.CONFIRM}
        own = {"event": log.LOCKED, "trial": f"{condition}2", "condition": condition}
        log.append(run / log.TRIALS, {**own, **lock})
        for seed in (0, 1):
            begin(run, f"{condition}-s{seed}", condition, phase=log.CONFIRM)
            metrics = {"test/accuracy": 0.7654321}
            more = {"phase": log.CONFIRM, "metrics": metrics}
            end(run, f"{condition}-s{seed}", condition, **more)


def test_the_state_says_what_the_list_says_of_a_confirmed_run(tmp_path):
    run = write_run(tmp_path / "r")
    write_confirmed(run)
    found, listed = state_of(run), listing.read_run(run)
    assert (found["state"], found["status"]) == ("finished", listed.status)
    assert listed.status == "confirmed"
    assert found["progress"]["ended"] == found["progress"]["planned"] == 10
    for row in found["conditions"]:
        best = listed.best[row["id"]]
        assert row["best"] == best._asdict() and row["phase"] == "confirmed"
        assert (row["ended"], row["planned"], row["running"], row["finish"]) == (5, 5, 0, None)
    assert found["hint"] == found["problem"] == ""
    assert [trial["trial"] for trial in found["trials"][:2]] == ["b-s1", "b-s0"]
    assert "test/" not in json.dumps(found) and "0.7654" not in json.dumps(found)


@pytest.mark.parametrize(
    "driven, state, status",
    [
        (True, "running", "searching 1 of 6"),
        (False, "stopped", "interrupted: searched 1 of 6"),
        (None, "unknown", "lock cannot be read: searched 1 of 6"),
    ],
)
def test_whether_somebody_drives_it_is_what_the_lock_says(tmp_path, driven, state, status):
    run = write_run(tmp_path / "r")
    begin(run, "t0", "a")
    end(run, "t0", "a")
    begin(run, "t1", "a")
    found = state_of(run, driven)
    assert (found["state"], found["status"]) == (state, status)
    go_on = f"The driver is not running: go on with tune-ssl search --resume {run}"
    assert found["hint"] == (go_on if state == "stopped" else "")
    assert found["progress"]["running"] == (driven is True)
    assert (found["progress"]["planned"], found["progress"]["open"]) == (10, 1)


def test_a_run_that_has_not_begun_waits_for_its_first_trial(tmp_path):
    found = state_of(write_run(tmp_path / "r"), True)
    assert (found["state"], found["status"]) == ("waiting", "searching 0 of 6")
    assert found["progress"]["finish"] is None and found["curves"] == []


def test_a_search_without_confirmation_plans_none_and_says_so_at_its_end(tmp_path):
    run = write_run(tmp_path / "r", ("a",), command="tune-ssl search x.yaml --no-confirm")
    for number in range(3):
        assert state_of(run, True)["progress"]["planned"] == 3
        begin(run, f"t{number}", "a")
        end(run, f"t{number}", "a")
    found = state_of(run)
    assert (found["state"], found["status"]) == ("finished", "searched")
    assert found["hint"].startswith("Nothing is confirmed. tune-ssl search --resume ")


def test_the_time_left_is_that_of_the_trials_that_ended(tmp_path):
    run = write_run(tmp_path / "r")
    now = time.time()
    for condition in "ab":  # two at once, of 10 seconds each
        begin(run, f"{condition}0", condition, now - 20)
        end(run, f"{condition}0", condition, now - 10)
        begin(run, f"{condition}1", condition, now - 10)
        end(run, f"{condition}1", condition, now)
        begin(run, f"{condition}2", condition, now)
    rows = state_of(run, True)["conditions"]
    # In each condition one trial and two confirmations are left: 30 seconds, for both have a place.
    assert [round(row["finish"] - now) for row in rows] == pytest.approx([30, 30], abs=2)
    assert all(row["finish"] is None for row in state_of(run, False)["conditions"])


def test_conditions_share_the_machine_and_no_trial_is_faster_than_itself():
    one = {"a": 5.0, "b": 5.0}
    assert finishes({"a": 10.0, "b": 30.0}, 2.0, one) == {"a": 10.0, "b": 20.0}
    assert finishes({"a": 10.0}, 10.0, {"a": 7.0}) == {"a": 7.0}


def test_a_method_of_a_comparison_has_a_row_of_its_own(tmp_path):
    entries = {"fixmatch": {"search": {}}, "supervised": {"search": {}}}
    settings = {"num_trials": 3, "seeds": [0, 1]}
    run = write_run(
        tmp_path / "r",
        conditions=(),
        **{"study": {"compare": entries, "study": settings}},
    )
    about = (run / log.STUDY).read_text().replace("conditions: []", "conditions:")
    rows = [f"- {{id: '{m} l=20', cell: 'l=20', method: {m}}}\n" for m in entries]
    at = about.index("conditions:\n") + len("conditions:\n")
    (run / log.STUDY).write_text(about[:at] + "".join(rows) + about[at:])
    begin(run, "t0", "supervised l=20")
    found = state_of(run, True)["conditions"]
    assert [(row["method"], row["cell"], row["running"]) for row in found] == [
        ("fixmatch", "l=20", 0),
        ("supervised", "l=20", 1),
    ]
    assert [row["planned"] for row in found] == [3, 3]  # nothing is searched: one trial, two seeds


# ---- reading on ----------------------------------------------------------------------------------


def test_each_line_is_read_once_and_a_torn_one_when_it_is_whole(tmp_path):
    run = write_run(tmp_path / "r")
    begin(run, "t0", "a")
    report(run, "t0", 1, 0.1)
    followed = live.LiveRun(run, lambda: True)

    def curve() -> list[float]:
        return next(c["lines"][0]["y"] for c in followed.state()["curves"] if c["key"] == METRIC)

    assert curve() == [0.1]
    report(run, "t0", 2, 0.2)
    whole = (run / log.HISTORY).read_bytes()
    (run / log.HISTORY).write_bytes(whole[:-20])
    assert curve() == [0.1]
    (run / log.HISTORY).write_bytes(whole)
    assert curve() == [0.1, 0.2]
    at = followed.history.offset
    assert at == len(whole) and followed.state() is followed.state()
    with (run / log.HISTORY).open("ab") as file:
        file.write(b'{"torn')
    report(run, "t0", 3, 0.3)  # closes the torn line, as after a crash
    report(run, "t0", 2, 0.25)  # the last report of a step counts
    assert curve() == [0.1, 0.25, 0.3]


def test_a_file_that_shrank_or_was_replaced_is_read_anew(tmp_path):
    run = write_run(tmp_path / "r")
    for number in range(3):
        begin(run, f"t{number}", "a")
    followed = live.LiveRun(run, lambda: True)
    assert followed.state()["progress"]["running"] == 3
    lines = (run / log.TRIALS).read_text().splitlines(keepends=True)
    (run / log.TRIALS).write_text(lines[0])
    assert followed.state()["progress"]["running"] == 1
    other = tmp_path / "other"
    other.write_text(re.sub(r'"t(\d)"', r'"u\1"', "".join(lines)))
    other.replace(run / log.TRIALS)
    assert followed.state()["progress"]["running"] == 3
    assert set(followed.ledger.begun) == {"u0", "u1", "u2"}


def test_a_long_curve_is_thinned_and_ended_trials_leave(tmp_path):
    run = write_run(tmp_path / "r")
    for number in range(live.KEPT + 3):
        begin(run, f"t{number}", "a")
        lines = [
            {"trial": f"t{number}", "stage": "train", "step": step, "metrics": {METRIC: 0.5}}
            for step in range(2000 if number == 0 else 3)
        ]
        log.append_all(run / log.HISTORY, lines)
    followed = live.LiveRun(run, lambda: True)
    (drawn,) = followed.state()["curves"]
    assert len(drawn["lines"][0]["x"]) == live.POINTS
    assert (drawn["lines"][0]["x"][0], drawn["lines"][0]["x"][-1]) == (0, 1999)
    for number in range(live.KEPT + 3):
        end(run, f"t{number}", "a")
    assert len(followed.state()["curves"][0]["lines"]) == live.KEPT == len(followed.curves.points)


def test_records_that_no_run_writes_are_one_sentence_and_a_run_that_is_gone_too(tmp_path):
    run = write_run(tmp_path / "r")
    begin(run, "t0", "a")
    followed = live.LiveRun(run, lambda: False)
    kept = (run / log.TRIALS).read_bytes()
    (run / log.TRIALS).write_bytes(kept + b'{"schema": 1, "event": "won"}\n')
    found = followed.state()
    assert found["state"] == "broken" and f"{run / log.TRIALS}:" in found["problem"]
    (run / log.TRIALS).write_bytes(kept)
    assert followed.state()["state"] == "stopped"
    run.rename(tmp_path / "elsewhere")
    found = followed.state()
    assert found["state"] == "gone"
    assert found["problem"] == f"{run} is gone: the folder was moved or deleted"
    (tmp_path / "elsewhere").rename(run)
    assert followed.state()["state"] == "stopped"


# ---- the server ----------------------------------------------------------------------------------


@pytest.fixture
def reports(monkeypatch) -> list[Path]:
    """Reports are pages of one line here; the real one has a test below."""
    built: list[Path] = []

    def run(self: watch.Report, target: Path) -> str:
        built.append(target)
        target.mkdir(parents=True)
        more = "<details><summary>More</summary>more</details>" + "<p>text</p>" * 300
        (target / "index.html").write_text(f"<h1>report {len(built)}</h1>{more}")
        return ""

    monkeypatch.setattr(watch.Report, "_run", run)
    monkeypatch.setattr(watch, "BUILD_PAUSE", 0.2)
    monkeypatch.setattr(watch, "PAUSE", 0.05)
    return built


@contextlib.contextmanager
def served(name: str, runs: Path) -> Iterator[int]:
    """The port of a server in this process."""
    said: list[str] = []
    servers: list[Any] = []

    class Kept(watch._Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "_Server", Kept)
        thread = threading.Thread(
            target=watch.serve, args=(name, runs, "127.0.0.1", 0, said.append)
        )
        thread.start()
        wait_until(lambda: bool(said), 20)
        try:
            yield int(re.findall(r":(\d+)/", said[0])[0])
        finally:
            servers[0].shutdown()
            thread.join(20)


def asked(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def test_the_page_is_for_reading_by_this_machine_alone(tmp_path, reports):
    run = write_run(tmp_path / "runs" / "r")
    begin(run, "t0", "a")
    before = content(run)
    with served("r", tmp_path / "runs") as port:
        status, body, headers = asked(port, "/")
        assert status == 200 and b"/live.json" in body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, body, headers = asked(port, "/live.json")
        assert status == 200 and json.loads(body)["state"] == "stopped"
        first = headers["ETag"]
        wait_until(lambda: json.loads(asked(port, "/live.json")[1])["report"]["build"] == 1, 10)
        tag = asked(port, "/live.json")[2]["ETag"]
        assert tag != first and asked(port, "/live.json", if_none_match=tag)[:2] == (304, b"")
        assert asked(port, "/plotly.js", accept_encoding="gzip")[2]["Content-Encoding"] == "gzip"
        assert b"plotly" in asked(port, "/plotly.js")[1][:200]
        for path in ("/study.yaml", "/report/../live.json", "/..%2f", "/x", "/report"):
            assert asked(port, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            status, body, headers = asked(port, "/live.json", method)
            assert (status, body.decode(), headers["Allow"]) == (405, watch.REFUSED, "GET, HEAD")
        assert asked(port, "/live.json", "TRACE")[0] == 501
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            assert asked(port, "/live.json", Host=host)[:2] == (403, watch.FOREIGN.encode())
        for host in ("localhost", f"127.0.0.1:{port}", "[::1]:1"):
            assert asked(port, "/live.json", Host=host)[0] == 200
        assert asked(port, "/", "HEAD")[:2] == (200, b"")
        assert b"report 1" in asked(port, "/report/?build=1")[1]
        folder = reports[0].parents[1]
        assert folder.exists()
    assert content(run) == before and not folder.exists()


def test_an_unchanged_state_costs_nothing(tmp_path, reports, monkeypatch):
    run = write_run(tmp_path / "r")
    begin(run, "t0", "a")
    shown = watch.Watch(run, tmp_path / "reports")
    first = shown.state()
    described: list[int] = []
    whole = live.LiveRun._described
    monkeypatch.setattr(live.LiveRun, "_described", lambda self: described.append(1) or whole(self))
    shown.again = 0.0
    assert shown.state() == first and not described
    report(run, "t0", 1, 0.5)
    shown.again = 0.0
    body, tag = shown.state()
    assert described == [1] and tag != first[1] and json.loads(body)["revision"] == 2
    report(run, "t0", 2, 0.5)
    shown.again = time.monotonic() + 60  # the records were read just now
    assert shown.state() == (body, tag)


def test_the_report_is_built_anew_where_records_changed_and_at_once_at_the_end(
    tmp_path, reports, monkeypatch
):
    monkeypatch.setattr(watch, "BUILD_PAUSE", 300.0)
    run = write_run(tmp_path / "r", ("a",))
    begin(run, "t0", "a")
    shown = watch.Watch(run, tmp_path / "reports")
    shown.live.driven = lambda: driven
    driven = True
    shown.start()
    time.sleep(0.7)
    assert not reports  # nobody watches
    shown.state()
    wait_until(lambda: len(reports) == 1, 10)
    end(run, "t0", "a")
    shown.state()
    time.sleep(0.8)
    assert len(reports) == 1  # too early
    driven = False
    time.sleep(0.06)
    shown.state()
    wait_until(lambda: len(reports) == 2, 10)
    wait_until(lambda: not reports[0].exists(), 10)
    shown.close()


def test_why_there_is_no_report_is_said(tmp_path):
    run = write_run(tmp_path / "r")
    shown = watch.Watch(run, tmp_path / "none")
    shown.state()
    shown.start()
    wait_until(lambda: shown.report.problem == watch.NOTHING_YET, 10)
    shown.close()
    (run / log.STUDY).write_text("schema: 7\n")
    made = watch.Report(run, tmp_path / "reports")
    made.build()
    assert made.page is None and made.problem and "\n" not in made.problem
    assert "Traceback" not in made.problem and "schema" in made.problem


def test_a_run_under_a_url_is_copied_and_the_copy_is_kept_up_to_date(
    tmp_path, reports, monkeypatch
):
    monkeypatch.setattr(watch, "COPY_PAUSE", 0.1)
    run = write_run(tmp_path / "far" / "r")
    begin(run, "t0", "a")
    before = content(run)
    with served((tmp_path / "far" / "r").as_uri(), tmp_path / "runs") as port:

        def state() -> dict[str, Any]:
            return json.loads(asked(port, "/live.json")[1])

        first = state()
        assert first["source"]["url"].endswith("/far/r") and first["source"]["problem"] == ""
        assert first["hint"].startswith("The driver is not running: go on with tune-ssl search ")
        assert f"--resume r --storage {(tmp_path / 'far').as_uri()}" in first["hint"]
        assert content(run) == before and not (tmp_path / "runs").exists()
        begin(run, "t1", "a")
        wait_until(lambda: state()["progress"]["open"] == 2, 10)
        shutil.rmtree(run)
        wait_until(lambda: bool(state()["source"]["problem"]), 10)
        assert state()["progress"]["open"] == 2
    with pytest.raises(UserError, match="is no run that tune-ssl keeps"):
        watch.Copy(place_of((tmp_path / "far" / "no").as_uri()), tmp_path / "copy")


def test_a_run_that_is_driven_here_stays_driven(tmp_path, reports):
    run = write_run(tmp_path / "runs" / "r")
    begin(run, "t0", "a")
    with driver_lock(run):
        before = content(run)
        with served("r", tmp_path / "runs") as port:
            assert json.loads(asked(port, "/live.json")[1])["state"] == "running"
        assert content(run) == before


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_says_where_serves_and_ends_with_130(tmp_path):
    run = write_run(tmp_path / "runs" / "r")
    before = content(run)
    process = start(tmp_path, "watch", "r", "--port", "0")
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"watch: http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it; it changes nothing\)\n", line
        )
        assert found, line
        assert asked(int(found[1]), "/live.json")[0] == 200
        loaded = Path(f"/proc/{process.pid}/maps")
        if loaded.exists():  # neither torch nor ray is in the process that serves
            assert not re.search(r"libtorch|/ray/|sqlalchemy|pandas", loaded.read_text())
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            other = start(tmp_path, "watch", "r", "--port", port)
            code, out, err = finish(other, 30)
    finally:
        process.send_signal(signal.SIGINT)
    assert finish(process, 30) == (130, "", "interrupted\n")
    assert (code, out) == (2, "") and err.startswith(f"127.0.0.1:{port} cannot be listened on: ")
    assert err.endswith("; --port gives another one\n") and len(err.splitlines()) == 1
    assert content(run) == before


def test_a_run_that_there_is_not_is_one_line(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    code, out, err = called(monkeypatch, capsys, "watch", "ome", "--port", 0)
    assert (code, out) == (2, "")
    assert err == "runs/ome is not a run folder; did you mean 'one'? (in runs there are: one)\n"


# ---- in a browser --------------------------------------------------------------------------------


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.fixture
def tab() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome in PATH")
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        browser.close()


def test_the_page_follows_the_run_without_a_reload(tmp_path, reports, tab, monkeypatch):
    fast = re.sub(rb"(PAUSE|OVER|HIDDEN) = \d+", rb"\1 = 200", watch.page())
    monkeypatch.setattr(watch, "page", lambda: fast)
    run = write_run(tmp_path / "runs" / "r", ("a", EVIL), name=EVIL, method=EVIL)
    begin(run, "t0", "a")
    report(run, "t0", 1, 0.1, **{"diag/pseudo_label_accuracy": 0.9, "diag/mask_rate": 0.2})
    seen: list[str] = []
    tab.on("console", lambda message: seen.append(message.text))
    tab.on("pageerror", lambda error: seen.append(str(error)))
    tab.on("request", lambda request: seen.append(request.url))

    def until(true: Any) -> None:
        last = time.monotonic() + 15
        while not true():
            assert time.monotonic() < last, tab.inner_text("body")
            tab.wait_for_timeout(50)

    def points(figure: int) -> int:
        script = "i => [...(document.querySelectorAll('.plot')[i]?.data ?? [])].map((l) => l.x.length)[0] ?? 0"
        return int(tab.evaluate(script, figure))

    with served("r", tmp_path / "runs") as port, driver_lock(run):
        before = content(run)
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.evaluate("window.same = 1")
        until(lambda: tab.inner_text("#state") == "Running" and points(2) == 1)
        heads = tab.locator("figure h3").all_inner_texts()
        assert heads == [
            METRIC,
            "Pseudo-labels that are right, of those used",
            "Unlabeled images that are used (mask rate)",
        ]
        assert tab.inner_text("#progress").startswith("0 of 10 trials have ended (0 %); 1 runs now")
        frame = tab.frame_locator("#report")
        until(lambda: frame.locator("h1").inner_text() == "report 1")
        assert content(run) == before
        report(run, "t0", 2, 0.2)
        end(run, "t0", "a", event=log.FAILED, reason=f"line\n{EVIL}")
        begin(run, "t1", EVIL)
        until(lambda: tab.inner_text("#progress").startswith("1 of 10 trials have ended (10 %)"))
        until(lambda: points(0) == 2)
        assert EVIL in tab.inner_text("#trials") and EVIL in tab.inner_text("#conditions")
        assert tab.inner_text("h1") == EVIL and EVIL in tab.inner_text("#what")
        until(lambda: frame.locator("h1").inner_text() != "report 1")  # nobody reads it: it is new
        frame.locator("summary").click()
        tab.frames[1].evaluate("scrollTo(0, 400)")
        number = len(reports)
        report(run, "t1", 1, 0.4)
        until(lambda: tab.locator("#newer").is_visible())  # somebody reads it: it stays
        assert len(reports) > number
        tab.locator("#newer").click()
        until(lambda: frame.locator("h1").inner_text() == f"report {len(reports)}")
        until(lambda: tab.frames[1].evaluate("scrollY") == 400)
        assert tab.frames[1].evaluate("document.querySelector('details').open")
        assert tab.evaluate("window.same") == 1 and tab.evaluate("window.hacked") is None
        assert tab.locator("img").count() == 0
        for width in (390, 1280):
            tab.set_viewport_size({"width": width, "height": 900})
            until(lambda: tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0)
        home = f"http://127.0.0.1:{port}/"
        assert [text for text in seen if not text.startswith((home, "data:", "blob:"))] == []
        seen.clear()
        kept = run.rename(tmp_path / "moved")
        until(lambda: tab.inner_text("#state") == "Gone")
        assert "the folder was moved or deleted" in tab.inner_text("#problem")
        kept.rename(run)
    until(lambda: tab.inner_text("#connection").startswith("The server is gone"))
    assert "1 of 10" in tab.inner_text("#progress")
