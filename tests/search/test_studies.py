"""The Optuna storage: where it may be, what it survives, and that the records bring back what it lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import sqlalchemy

from tests.support import postgres
from tests.support.runs import called, events, finish, run_here, start, wait_for, write_study
from tests.support.studies import STUDY, agree, begun, content, search, source_of
from tune_ssl.base import retry
from tune_ssl.base.errors import Stopped, UserError
from tune_ssl.base.spec import StudySpec
from tune_ssl.records import ledger, log
from tune_ssl.runs.folder import refuse_changed
from tune_ssl.search import journal
from tune_ssl.search.rebuild import moment
from tune_ssl.search.retrying import PatientStorage
from tune_ssl.search.storage import check_storage, open_reading, open_storage, study_name
from tune_ssl.viewers import dashboard

LITE = "sqlite:///o.db"


@pytest.fixture(scope="module")
def server():
    with postgres.server() as running:
        yield running


@pytest.fixture(params=["journal", LITE, pytest.param("postgresql", marks=pytest.mark.slow)])
def storage(request, monkeypatch):
    """Each kind of storage in turn."""
    if request.param != "postgresql":
        return request.param
    return new_database(request.getfixturevalue("server"), monkeypatch)


def new_database(server, monkeypatch):
    """The URL of an empty database, also in the environment: study.yaml keeps no password."""
    url = server.url(f"d{len(server.query('SELECT 1 FROM pg_database'))}")
    monkeypatch.setenv("TUNE_SSL_OPTUNA_STORAGE", url)
    return url


# ---- what may be given ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, expected",
    [
        ("jurnal", "is neither a URL nor 'journal', but must be journal, sqlite:///FILE or"),
        ("postgrsql://u:geheim@h/d", "is 'postgrsql://...', but must be {F}; did you mean 'postg"),
        ("mysql://u:geheim@h/d", "is 'mysql://...', but must be journal, sqlite:///FILE or"),
        ("postgresql://u:geheim@h:port/d", "is a URL that cannot be read; it must be journal, "),
        ("postgresql://u:***@h/d", "is postgresql://u:***@h/d, and study.yaml keeps no secrets: "),
        ("sqlite://", "is sqlite without a file, which keeps nothing: give sqlite:///FILE"),
        (
            "sqlite:///:memory:",
            "is sqlite without a file, which keeps nothing: give sqlite:///FILE",
        ),
        ("sqlite:////nowhere/o.db", "is /nowhere/o.db, but there is no folder /nowhere"),
        ("sqlite:///../../text", "text, which is no sound sqlite database: file is not a database"),
        (
            "postgresql+psycopg2://u:geheim@h/d",
            "needs the package psycopg2, which is not installed; pip install 'psycopg2'",
        ),
        ("postgresql://u:geheim@127.0.0.1:26999/d", "cannot be used: connection failed: "),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, given, expected
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("not a database\n" * 100)
    path = write_study(tmp_path, STUDY.replace("STORAGE", given))
    code, out, err = called(monkeypatch, capsys, "search", path, "--name", "r")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith(f"{path}:12: study.optuna_storage ")
    assert (
        expected.replace("{F}", "journal, sqlite:///FILE or postgresql://USER@HOST/DATABASE") in err
    )
    assert "geheim" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.yaml", "text"]


@pytest.mark.parametrize(
    "change, expected",
    [
        (("tune:", "other:"), 'password authentication failed for user "other"'),
        (("p%25", "q%25"), 'password authentication failed for user "tune"'),
        (("/DATABASE", "/none"), 'database "none" does not exist'),
    ],
)
def test_a_server_that_refuses_is_one_line_without_the_password(
    tmp_path, monkeypatch, capsys, server, change, expected
):
    monkeypatch.chdir(tmp_path)
    url = server.dsn("DATABASE").replace(*change).replace("DATABASE", "postgres")
    monkeypatch.setenv("TUNE_SSL_OPTUNA_STORAGE", url)  # wins over the file's
    path = write_study(tmp_path, STUDY.replace("STORAGE", "journal"))
    code, out, err = called(monkeypatch, capsys, "search", path, "--name", "r")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("TUNE_SSL_OPTUNA_STORAGE cannot be used: ") and expected in err
    assert "ss/w" not in err and "ss%2Fw" not in err
    assert not (tmp_path / "runs").exists()


def test_who_may_not_make_tables_is_told_so_at_once(tmp_path, monkeypatch, server):
    server.query("CREATE USER guest PASSWORD 'geheim'")
    server.url("closed")
    url = server.dsn("closed").replace(f"tune:{postgres.QUOTED}", "guest:geheim")
    with pytest.raises(UserError) as refused:
        monkeypatch.setenv("TUNE_SSL_OPTUNA_STORAGE", url)
        check_storage(StudySpec(), tmp_path / "r")
    assert str(refused.value) == (
        "TUNE_SSL_OPTUNA_STORAGE cannot be used: guest may not create tables there "
        "(GRANT CREATE ON SCHEMA)"
    )


def test_a_server_that_never_answers_does_not_hold_the_command(tmp_path, monkeypatch):
    pytest.importorskip("psycopg")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://u:geheim@127.0.0.1:{port}/d?connect_timeout=2"
        run = begun(tmp_path)
        monkeypatch.setenv("TUNE_SSL_OPTUNA_STORAGE", url)
        with pytest.raises(UserError, match="cannot be used: connection timeout expired"):
            check_storage(StudySpec(), run)


# ---- several runs in one database ----------------------------------------------------------------


def test_runs_that_share_a_database_do_not_mix_and_a_resume_finds_its_own(tmp_path, storage):
    if storage == "journal":
        pytest.skip("a journal is one run's")
    shared, few = (
        storage.replace("o.db", "../o.db"),
        STUDY.replace("num_trials: 8", "num_trials: 3"),
    )
    runs = [begun(tmp_path, shared, name, few) for name in ("a", "b")]
    shared = shared.replace("../o.db", "../../../runs/o.db")
    again = begun(tmp_path / "elsewhere", shared, "a", few)
    for run in (*runs, again):
        search(run, reports=20)
    for run in (*runs, again):
        told = []
        search(run, told)
        assert told == []
        agree(run)
        assert [len(trials) for trials in content(run).values()] == [3, 3]


def test_drivers_may_make_the_tables_of_a_new_database_at_the_same_time(
    tmp_path, monkeypatch, server
):
    run = begun(tmp_path, new_database(server, monkeypatch))
    code = "import sys; from pathlib import Path; from tune_ssl.search.storage import open_storage as o; o(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(run)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors


def test_the_dashboard_shows_the_runs_studies_of_a_database_and_changes_nothing(tmp_path, storage):
    if storage == "journal":
        pytest.skip("tests/test_dashboards.py")
    shared, few = (
        storage.replace("o.db", "../o.db"),
        STUDY.replace("num_trials: 8", "num_trials: 2"),
    )
    run, other = (begun(tmp_path, shared, name, few) for name in ("a", "b"))
    for each in (other, run):
        search(each)
    pytest.importorskip("optuna_dashboard")
    app, answers = dashboard.read_only(dashboard.application(run)), []

    def asked(path, method="GET"):
        environ = {
            "PATH_INFO": path,
            "REQUEST_METHOD": method,
            "SERVER_NAME": "x",
            "SERVER_PORT": "1",
        }
        setup_testing_defaults(environ)
        return b"".join(app(environ, lambda status, headers, *_: answers.append(status)))

    shown = json.loads(asked("/api/studies"))["study_summaries"]
    names = [study["study_name"] for study in shown]
    assert len(names) == 2 and all(name.startswith("a-") for name in names)
    trials = json.loads(asked(f"/api/studies/{shown[0]['study_id']}"))["trials"]
    assert len(trials) == 2
    asked(f"/api/studies/{shown[0]['study_id']}", "DELETE")
    assert answers == ["200 OK", "200 OK", "403 Forbidden"]
    reading = open_reading(run)
    with pytest.raises(PermissionError, match="lets nobody change them"):
        reading.set_study_user_attr(shown[0]["study_id"], "note", "mine")
    with pytest.raises(optuna.exceptions.StorageInternalError):  # nor does the database
        reading.inner.set_study_user_attr(shown[0]["study_id"], "note", "mine")
    agree(run)


def test_long_and_odd_names_fit_into_the_database_and_stay_apart(tmp_path, monkeypatch, server):
    run = begun(tmp_path, new_database(server, monkeypatch))
    prefix = source_of(run).prefix
    long = "data.num_labels=" + 300 * "1"
    names = [long + f" optim.lr={i}" + 300 * "x" for i in range(2)] + ["a\0b", "a\u1e9eb"]
    stored = [study_name(prefix, name) for name in names]
    assert len(set(stored)) == 4 and max(map(len, stored)) <= 512
    for name in stored:
        optuna.create_study(storage=open_storage(run), study_name=name)
    assert study_name("", long) == long  # the journal has no limit


# ---- storage that is away or locked --------------------------------------------------------------


def hold(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that has taken something when it prints a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


LOCK_SQLITE = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""
LOCK_JOURNAL = """
import sys, time
from optuna.storages.journal import JournalFileSymlinkLock
lock = JournalFileSymlinkLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
lock.release()
"""
LOCK_POSTGRES = """
import psycopg, sys, time
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE")
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_storage_that_another_process_has_locked_is_waited_for(tmp_path, storage):
    run = begun(tmp_path, storage)
    search(run, reports=20)
    told = []
    source = source_of(run, told)
    if storage == "journal":
        process, said = hold(LOCK_JOURNAL, str(run / "optuna.log"), "4"), "held by another process"
    elif storage == LITE:
        process, said = hold(LOCK_SQLITE, str(run / "o.db"), "12"), "database is locked"
    else:
        process, said = hold(LOCK_POSTGRES, storage, "8"), "lock timeout"
    for cell in source.cells:
        cell.ask()
    process.wait()
    assert len(told) == 2 and said in told[0] and told[0].endswith("; waiting")
    assert told[0].startswith("the Optuna storage does not answer: ")
    assert told[1] == "it answers again; going on"
    del source
    search(run)
    agree(run)


def test_a_dead_processs_lock_on_the_journal_is_removed(tmp_path, monkeypatch):
    run = begun(tmp_path)
    search(run, reports=20)
    (run / "optuna.log.lock").symlink_to("optuna.log")  # of our own killed driver
    (run / "optuna.log.lockabc.rename").symlink_to("optuna.log")
    told = []
    source = source_of(run, told)
    assert not list(run.glob("optuna.log.*"))
    monkeypatch.setattr(journal, "GRACE", 3.0)  # another's, while we run: when its grace is over
    (run / "optuna.log.lock").symlink_to("nowhere")
    source.cells[0].ask()
    assert "its lock is held by another process; waiting" in told[0]
    assert not list(run.glob("optuna.log.*"))


def test_a_journal_that_is_away_is_waited_for_and_none_is_begun_in_its_place(tmp_path, monkeypatch):
    run = begun(tmp_path)
    search(run, reports=20)
    told = []
    source = source_of(run, told)
    away = run / "away"
    (run / "optuna.log").rename(away)
    threading.Timer(3, away.rename, [run / "optuna.log"]).start()
    source.cells[0].ask()
    assert "No such file or directory; waiting" in told[0] and len(told) == 2
    (run / "optuna.log").rename(away)
    monkeypatch.setattr(retry, "LONGEST", 1.0)
    with pytest.raises(Stopped, match="^the Optuna storage does not answer: .*optuna.log: No such"):
        source.cells[0].ask()
    began = time.monotonic()
    with pytest.raises(Stopped):  # nobody waits a second time
        source.cells[0].ask()
    assert time.monotonic() - began < 0.5
    assert not (run / "optuna.log").exists()
    away.rename(run / "optuna.log")
    search(run)
    agree(run)


def test_a_server_that_is_restarted_in_the_middle_is_waited_for(tmp_path, monkeypatch, server):
    run = begun(tmp_path, new_database(server, monkeypatch))
    search(run, reports=20)
    told = []
    source = source_of(run, told)
    source.cells[0].ask()
    server.stop(signal.SIGQUIT)
    server.start()  # a connection that died meanwhile is noticed before it is used
    source.cells[0].ask()
    assert told == []
    server.stop()
    threading.Timer(3, server.start).start()
    source.cells[0].ask()
    assert told[0].endswith("; waiting") and told[1:] == ["it answers again; going on"]
    assert postgres.PASSWORD not in told[0] and postgres.QUOTED not in told[0]
    del source
    search(run)
    agree(run)


@pytest.mark.slow
def test_a_connection_that_dies_before_any_statement_is_waited_for(tmp_path, monkeypatch, server):
    """The error comes once; Optuna may go on with the dead session, and what it gets then is another one."""
    run = begun(tmp_path, new_database(server, monkeypatch))
    search(run, reports=20)
    told, seen = [], [0]
    cell = source_of(run, told).cells[0]
    before = len(next(iter(content(run).values())))

    def die_before(number):
        """Ask for a trial; all connections end before its statement of that number. Whether it has so many."""
        seen[0] = 0

        def kill(*_):
            seen[0] += 1
            if seen[0] == number:
                server.query(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )

        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", kill)
        try:
            cell.ask()
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", kill)
        return seen[0] >= number

    number = 1
    while die_before(number):
        number += 1
    assert number > 20  # of each kind: studies, trials, their parts, parameters, the commit
    assert all(line.endswith(("; waiting", "; going on")) for line in told)
    made = len(next(iter(content(run).values()))) - before
    assert made == number  # each suggestion made one trial, and none made two


class LosesAnswers(PatientStorage):
    """A storage whose every third change is made, and its answer is lost."""

    calls = 0

    def _call(self, name, *arguments, **named):
        inner = self.inner
        if name.startswith(("set_", "create_")):
            LosesAnswers.calls += 1
            if LosesAnswers.calls % 3 == 0:
                self.inner = LostOnce(inner)
        try:
            return super()._call(name, *arguments, **named)
        finally:
            self.inner = inner


class LostOnce:
    def __init__(self, inner):
        self.inner, self.lost = inner, False

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        def call(*arguments, **named):
            answer = method(*arguments, **named)
            if not self.lost:
                self.lost = True
                raise ConnectionResetError("the connection was lost after the commit")
            return answer

        return call


def test_a_lost_answer_repeats_and_leaks_nothing(tmp_path, monkeypatch, storage):
    few = STUDY.replace("num_trials: 8", "num_trials: 4")
    plain = begun(tmp_path, storage, "plain", few)
    search(plain)
    monkeypatch.setattr("tune_ssl.studies.PatientStorage", LosesAnswers)
    lossy = begun(tmp_path, storage, "lossy", few)
    LosesAnswers.calls = 0
    search(lossy)
    assert LosesAnswers.calls > 60
    assert content(lossy) == content(plain)  # the same trials, each told once
    agree(lossy)


def test_a_journal_write_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    run = begun(tmp_path)
    search(run, reports=20)
    source = source_of(run, [])
    before = (run / "optuna.log").read_bytes()
    synced, failures = os.fsync, [OSError(5, "Input/output error")]

    def fsync(descriptor):
        if failures:
            raise failures.pop()
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    source.cells[0].ask()
    lines = (run / "optuna.log").read_bytes()
    assert lines.startswith(before)
    operations = [json.loads(line)["op_code"] for line in lines[len(before) :].splitlines()]
    assert operations == [4, 5, 5, 5]  # one new trial with three parameters


# ---- damage --------------------------------------------------------------------------------------


def test_what_a_deleted_journal_knew_comes_back_from_the_records(tmp_path):
    run = begun(tmp_path)
    search(run, reports=40)
    before, told = content(run), []
    (run / "optuna.log").unlink()
    source_of(run, told)
    count = sum(map(len, before.values()))
    assert told == [f"the Optuna storage lacked {count} trials of r: made again from its records"]
    assert content(run) == before
    told.clear()
    search(run, told)
    assert told == []
    agree(run)
    assert [len(trials) for trials in content(run).values()] == [8, 8]


SLOW_ONE = pytest.param("gp", marks=pytest.mark.slow)


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "cmaes", "random", "grid", SLOW_ONE])
def test_after_a_rebuild_no_suggestion_is_repeated(tmp_path, sampler):
    kind = f"searcher: {sampler}" if sampler in ("random", "grid") else f"sampler: {sampler}"
    body = STUDY.replace("num_trials: 8", f"num_trials: 12, {kind}, scheduler: none")
    run = begun(tmp_path, body=body)
    for reports in (30, 50, 40):
        search(run, reports=reports)
        (run / "optuna.log").unlink()
    search(run)
    agree(run)
    for trials in content(run).values():
        assert len({json.dumps(t[2]) for t in trials}) == len(trials) == 12


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.97])
def test_a_journal_cut_anywhere_is_made_whole(tmp_path, cut):
    run = begun(tmp_path)
    search(run, reports=60)
    path = run / "optuna.log"
    os.truncate(path, int(path.stat().st_size * cut))
    search(run)
    agree(run)


DAMAGES = {
    "garbage": lambda data: data[: len(data) // 2] + b"\0\xff garbage\n" + data[len(data) // 2 :],
    "a flipped bracket": lambda data: data.replace(b'{"op_code":6', b'["op_code":6', 1),
    "another operation": lambda data: data.replace(b'"op_code":5', b'"op_code":99', 1),
    "a list": lambda data: data.replace(b"\n", b"\n[1]\n", 3),
    "holes": lambda data: data[:3000] + bytes(500) + data[3500:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_moved_aside_and_made_again(tmp_path, damage):
    run = begun(tmp_path)
    search(run, reports=60)
    before, path = content(run), run / "optuna.log"
    damaged = DAMAGES[damage](path.read_bytes())
    path.write_bytes(damaged)
    told = []
    source_of(run, told)
    assert told[0].startswith(f"{path} is damaged (")
    assert told[0].endswith("; it is kept as optuna.log.broken-1")
    assert (run / "optuna.log.broken-1").read_bytes() == damaged
    assert "trials of r: made again from its records" in told[1] and len(told) == 2
    assert content(run) == before
    search(run)
    agree(run)


@pytest.mark.parametrize("change", ["a value", "a parameter", "no study"])
def test_what_was_changed_in_the_journal_is_what_the_records_say_again(tmp_path, change):
    run = begun(tmp_path)
    search(run, reports=60)
    before, path = content(run), run / "optuna.log"
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "a value":
        told = next(i for i, line in enumerate(lines) if b'"op_code":6' in line and b"[0." in line)
        lines[told] = lines[told].replace(b"[0.", b"[0.0")
    elif change == "a parameter":
        drawn = next(
            i for i, line in enumerate(lines) if b'"op_code":5' in line and b'"optim' in line
        )
        lines[drawn] = re.sub(
            rb'(internal":0\.0*)(.)', lambda m: m[1] + b"12"[m[2] == b"1" :][:1], lines[drawn]
        )
    else:
        del lines[0]
    path.write_bytes(b"".join(lines))
    told = []
    source_of(run, told)
    assert "trials of r: made again from its records" in told[0]
    assert sorted(content(run).items()) == sorted(before.items())


def test_a_storage_restored_from_an_older_copy_is_brought_up_to_the_records(tmp_path, storage):
    run = begun(tmp_path, storage)
    search(run, reports=25)
    if storage.startswith("postgresql"):  # what was not there at the time
        study = "SELECT max(study_id) FROM studies"
    else:
        path = run / ("optuna.log" if storage == "journal" else "o.db")
        older = path.read_bytes()
    search(run, reports=40)
    before, told = content(run), []
    if storage.startswith("postgresql"):
        late = f"SELECT trial_id FROM trials WHERE study_id = ({study}) AND number > 1"
        for table in ("trial_params", "trial_values", "trial_intermediate_values"):
            postgres_delete(storage, f"DELETE FROM {table} WHERE trial_id IN ({late})")
        for table in ("trial_system_attributes", "trial_user_attributes", "trials"):
            postgres_delete(storage, f"DELETE FROM {table} WHERE trial_id IN ({late})")
    else:
        path.write_bytes(older)
    source_of(run, told)
    assert len(told) == 1 and told[0].startswith("the Optuna storage lacked ")
    agree(run)
    assert {name: len(t) for name, t in content(run).items()} == {
        n: len(t) for n, t in before.items()
    }
    search(run)
    agree(run)


def postgres_delete(url, statement):
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def test_an_emptied_database_is_filled_from_the_records(tmp_path, storage):
    if storage == "journal":
        pytest.skip("it has no database")
    run = begun(tmp_path, storage)
    search(run, reports=40)
    before, told = content(run), []
    if storage == LITE:
        (run / "o.db").unlink()
    else:
        postgres_delete(storage, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    source_of(run, told)
    assert len(told) == 1 and "trials of r: made again from its records" in told[0]
    assert content(run) == before
    search(run)
    agree(run)


def test_a_damaged_sqlite_file_in_the_run_folder_is_moved_aside(tmp_path):
    run = begun(tmp_path, LITE)
    search(run, reports=40)
    before, told = content(run), []
    data = bytearray((run / "o.db").read_bytes())
    data[4096:40960] = os.urandom(36864)
    (run / "o.db").write_bytes(data)
    source_of(run, told)
    assert "which is no sound sqlite database: " in told[0]
    assert told[0].endswith("; it is kept as o.db.broken-1")
    assert content(run) == before


def test_a_run_may_move_to_another_storage(tmp_path, monkeypatch, server):
    run = begun(tmp_path)
    search(run, reports=40)
    before, told = content(run), []
    new_database(server, monkeypatch)
    source_of(run, told)
    assert len(told) == 1 and content(run) == before


def test_a_recorded_config_outside_the_search_space_is_one_line(tmp_path):
    run = begun(tmp_path)
    search(run, reports=20)
    lines = (
        (run / log.TRIALS).read_text().replace('"model.feature_dim": ', '"model.feature_dim": 9')
    )
    (run / log.TRIALS).write_text(lines)
    (run / "optuna.log").unlink()
    with pytest.raises(
        UserError, match=r"r: c0-t0000: model.feature_dim is 9\d+ in trials.jsonl, w"
    ):
        source_of(run)


# ---- whole runs in processes of their own --------------------------------------------------------

REAL = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  budget: {steps: 400, eval_every: 20}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 5, scheduler: none, finalists: 1, seeds: [0], checkpoint_seconds: 0, max_concurrent: 1}
"""


@pytest.mark.slow
def test_a_killed_driver_and_a_restarted_storage_lose_and_repeat_nothing(
    tmp_path, storage, monkeypatch, request
):
    monkeypatch.setenv("TUNE_SSL_OPTUNA_STORAGE", storage)
    process = start(
        tmp_path,
        "search",
        write_study(tmp_path, REAL),
        "--name",
        "k",
        "--no-confirm",
        "--no-report",
    )
    run = tmp_path / "runs" / "k"
    wait_for(process, lambda: len(ledger.endings(events(run))) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    if storage.startswith("postgresql"):
        running = request.getfixturevalue("server")
        running.stop(signal.SIGQUIT)
        running.start()
    before = ledger.endings(events(run))
    process = start(tmp_path, "search", "--resume", "k", "--no-confirm", "--no-report")
    wait_for(process, lambda: len(ledger.endings(events(run))) > len(before))
    if storage.startswith("postgresql"):  # and once more while it runs
        running.stop()
        time.sleep(4)
        running.start()
    elif storage == LITE:
        hold(LOCK_SQLITE, str(run / "o.db"), "6").wait()
    else:
        hold(LOCK_JOURNAL, str(run / "optuna.log"), "6").wait()
    code, out, err = finish(process)
    assert code == 0, out + err
    assert "Traceback" not in out + err
    agree(run)
    (trials,) = content(run).values()
    assert [t[1] for t in trials] == ["COMPLETE"] * 5
    ended = [e["trial"] for e in events(run) if e["event"] in log.ENDINGS]
    assert sorted(ended) == [f"c0-t{i:04d}" for i in range(5)]
    ends = ledger.endings(events(run))
    assert all(ends[trial] == before[trial] for trial in before)
    assert [t[3][0] for t in trials] == [ends[trial]["value"] for trial in sorted(ended)]


@pytest.mark.slow
def test_a_storage_that_stays_away_ends_the_run_in_one_line(tmp_path, server, monkeypatch):
    new_database(server, monkeypatch)
    process = start(
        tmp_path,
        "search",
        write_study(tmp_path, REAL),
        "--name",
        "g",
        "--no-confirm",
        "--no-report",
    )
    run = tmp_path / "runs" / "g"
    wait_for(process, lambda: len(ledger.endings(events(run))) >= 1)
    server.stop()
    try:
        code, out, err = finish(process)
    finally:
        server.start()
    assert code == 1, out + err
    assert out.count("the Optuna storage does not answer: ") == 1 and "; waiting" in out
    last = err.splitlines()[-1]
    assert last.startswith("the Optuna storage does not answer: connection failed: ")
    assert last.endswith("what is finished is kept. Go on with: tune-ssl search --resume g")
    assert "Traceback" not in err and postgres.QUOTED not in out + err
    code, out, err = finish(
        start(tmp_path, "search", "--resume", "g", "--no-confirm", "--no-report")
    )
    assert code == 0, out + err
    agree(run)


def test_a_real_search_and_confirmation_in_a_database(tmp_path):
    body = REAL.replace("steps: 400", "steps: 20").replace("num_trials: 5", "num_trials: 2")
    run = run_here(tmp_path, body.replace("study: {", f'study: {{optuna_storage: "{LITE}", '))
    agree(run)
    assert not (run / "optuna.log").exists()


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"event": "finished"}, "has a record of c0-t0000 (finished) without 'value'"),
        ({"event": "started", "number": 0}, "has a record of c0-t0000 (started) without 'config'"),
        (
            {
                "event": "finished",
                "condition": "d",
                "value": 1,
                "step": 1,
                "metrics": {},
                "time": 1,
            },
            "has a record of condition 'd', which the run's study lacks",
        ),
    ],
)
def test_records_that_lack_what_a_study_needs_are_refused(tmp_path, change, expected):
    about = {"phase": "search", "condition": "c", "trial": "c0-t0000", **change}
    log.append(tmp_path / log.TRIALS, about)
    with pytest.raises(UserError, match=re.escape(f"{log.TRIALS} {expected}")):
        refuse_changed(tmp_path, {"c"})


def test_a_time_that_is_no_date_counts_as_none():
    assert moment({"time": 1e30}) is None and moment({}) is None
    assert moment({"time": 0.0}) is not None


def test_a_config_of_values_that_do_not_fit_together_fails_alone(tmp_path):
    body = STUDY.replace("optim.lr: {log_uniform: [1e-4, 1e-1]}", "optim.lr: {choice: [0.1]}")
    body = body.replace("model.feature_dim: {int: [8, 64]}", "data.batch_size: {choice: [10, 8]}")
    body = body.replace(
        "method.labeled_view: {choice: [weak, strong, none]}",
        "compute.accumulate: {choice: [1, 4]}",
    )
    body = body.replace("num_trials: 8", "num_trials: 9, searcher: grid, scheduler: none")
    run = begun(tmp_path, body=body)
    search(run, reports=20)
    search(run)
    agree(run)
    for name in ("c0", "c1"):
        ended = {t: e for t, e in ledger.endings(events(run)).items() if t.startswith(name)}
        assert sorted(e["event"] for e in ended.values()) == ["failed", *["finished"] * 3]
        [failed] = [e for e in ended.values() if e["event"] == log.FAILED]
        assert failed["reason"] == "compute.accumulate is 4, but must divide data.batch_size, 10"
