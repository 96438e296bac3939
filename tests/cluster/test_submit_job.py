"""Jobs: what is uploaded, what the cluster's shell is given, what a person is told; and a real job server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray  # here, for its log keeps the stderr of its first import  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.runs import called, descendants, endings, events, finish, start
from tune_ssl.base.errors import UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.cluster import submit_job
from tune_ssl.records import log

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 50, batch_size: 8}
  method: {name: supervised}
  budget: {steps: 20, eval_every: 10}
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
study: {num_trials: 2, scheduler: none, finalists: 1, seeds: [0]}
"""
PLUGIN = Path(__file__).parents[2].parent / "docs" / "examples" / "entropy_min.py"
NASTY = 'it\'s; touch $(echo pwned) & "x" `y`.yaml'


# ---- what is uploaded ----------------------------------------------------------------------------


def test_the_staged_folder_has_our_source_the_study_and_the_plugins_and_nothing_else(tmp_path):
    study = tmp_path / NASTY
    study.write_text(STUDY)
    (tmp_path / "secret.txt").write_text("not for the cluster")
    folder = tmp_path / "staged"
    folder.mkdir()
    staged = submit_job.stage(folder, study, [PLUGIN, PLUGIN])
    assert staged == (f"study/{NASTY}", ("plugins/0/entropy_min.py", "plugins/1/entropy_min.py"))
    assert sorted(p.name for p in folder.iterdir()) == ["analysis", "plugins", "study", "tune_ssl"]
    assert (folder / staged.study).read_text() == STUDY
    assert (folder / staged.plugins[1]).read_bytes() == PLUGIN.read_bytes()
    root = Path(submit_job.__file__).parent.parent
    for package in ("tune_ssl", "analysis"):
        here = {p for p in (root / package).rglob("*") if p.is_file() and p.suffix != ".pyc"}
        there = {p for p in (folder / package).rglob("*") if p.is_file()}
        assert {p.relative_to(folder) for p in there} == {p.relative_to(root) for p in here}
    assert not list(folder.rglob("__pycache__"))


def test_what_was_staged_runs_without_what_is_installed(tmp_path):
    submit_job.stage(tmp_path, None, [])
    code = "import tune_ssl.cli.main, analysis.report.report; print(tune_ssl.__file__, analysis.report.report.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        str(tmp_path / "tune_ssl" / "__init__.py"),
        str(tmp_path / "analysis" / "report.py"),
    ]


# ---- what the shell is given ---------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
def test_a_shell_hands_on_every_argument_as_it_was_typed(tmp_path_factory, texts):
    python = tmp_path_factory.getbasetemp() / "my python"
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    command = submit_job.entrypoint(str(python), "search", [("--name", t) for t in texts], texts)
    words = subprocess.run(command, shell=True, capture_output=True, check=True).stdout
    expected = ["-m", "tune_ssl.cli.main", "search", *(f"--name={t}" for t in texts), "--", *texts]
    assert words.decode().split("\0") == [*expected, ""]


# ---- what a person is told -----------------------------------------------------------------------


@pytest.fixture
def submit(tmp_path, monkeypatch, capsys):
    """`submit("search", "s.yaml")` in a folder with that file -> (exit code, stdout, stderr)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # and put back, whatever connect() sets
    monkeypatch.setenv("TUNE_SSL_STORAGE", "there")
    for name in ("s.yaml", "s t.yaml"):
        (tmp_path / name).write_text(STUDY)
    return lambda *arguments: called(monkeypatch, capsys, "submit", *arguments)


SERVER = ("--address", "http://127.0.0.1:1")
KEPT = ("--runs", "/kept")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give a command to submit (search or ablate), or --follow JOB or --stop JOB"),
        (("search", "s.yaml"), "give --address http://HOST:8265, the cluster's job server"),
        (
            ("search", "s.yaml", *SERVER),
            "--runs is 'runs', but must be an absolute folder that every node of the cluster has, or a "
            "URL: Ray deletes the folder in which a job runs",
        ),
        (
            ("search", "s.yaml", *SERVER, *KEPT, "--data-root", "photos", "data.dataset=folder"),
            "data.root is 'photos', but must be an absolute folder that each node of the cluster has",
        ),
        (
            ("search", "s.yaml", *SERVER, *KEPT, "optim.lrr=1"),
            "override optim.lrr=1: optim.lrr is not a known key; did you mean 'lr'?",
        ),
        (
            ("search", "s.yaml", *SERVER, *KEPT, "--env", "TOKEN=abc"),
            "--env must be the name of an environment variable, without a value: --env NAME",
        ),
        (
            ("search", "s.yaml", *SERVER, *KEPT, "--env", "NOT_SET_HERE"),
            "--env names NOT_SET_HERE, but it is not set here",
        ),
        (("search", *SERVER, *KEPT), "give either a study's YAML file or --resume RUN"),
        (
            ("search", "s.yaml", "--storage", "here", *SERVER, *KEPT),
            "--storage is 'here', but must be an absolute folder that every node",
        ),
        (
            ("search", "s.yaml", "--env", "TUNE_SSL_STORAGE", *SERVER, *KEPT),
            "--env TUNE_SSL_STORAGE is 'there', but must be an absolute folder that every node",
        ),
        (
            ("search", "--resume", "x", "--storage", "s3://me:hidden@b/x", *SERVER),
            "storage has a secret (s3://me:***@b/x), which the job server would show: give it as "
            "TUNE_SSL_STORAGE or TUNE_SSL_OPTUNA_STORAGE, by --env",
        ),
        (
            (
                "search",
                "s.yaml",
                "study.optuna_storage=postgresql://me:hidden@h/db",
                *SERVER,
                *KEPT,
            ),
            "study.optuna_storage has a secret (postgresql://me:***@h/db), which the job server",
        ),
        (
            ("search", "--resume", "x", "--plugin", "gone.py", *SERVER, *KEPT),
            "gone.py",
        ),
        (("search", "s t.yaml", *SERVER, *KEPT), "--name is 's t', but must be up to 100 letters"),
        (
            ("search", "gone.yaml", *SERVER, *KEPT),
            "gone.yaml does not exist (in . there are: s t.yaml, s.yaml)",
        ),
        (
            ("search", "s.yaml", "--address", "10.0.0.1:8265", *KEPT),
            "--address must be http://HOST:PORT of the cluster's job server, such as "
            "http://10.0.0.1:8265",
        ),
        (
            ("search", "s.yaml", *SERVER, *KEPT),
            "http://127.0.0.1:1: nothing answers at 127.0.0.1:1 (Connection refused); the job server is "
            "the head's dashboard, which needs ray[default] and, from outside, --dashboard-host",
        ),
    ],
)
def test_what_can_be_known_here_to_fail_is_one_line_and_nothing_is_sent(submit, arguments, message):
    code, out, err = submit(*arguments)
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "address, message",
    [
        ("ray://u:secret@h:1", "--address must be ray://HOST:PORT of a head, such as ray://10."),
        ("ray://h", "--address must be ray://HOST:PORT of a head"),
        ("ray://h:0", "--address must be ray://HOST:PORT of a head"),
        ("ray://a..b:10001", "ray://a..b:10001: nothing answers there: "),
        ("http://a..b:8265", "nothing answers at a..b:8265"),
        ("ray://127.0.0.1:1", "ray://127.0.0.1:1: nothing answers there: Connection refused"),
    ],
)
def test_a_head_that_ray_client_cannot_reach_is_one_line(submit, monkeypatch, address, message):
    code, out, err = submit("search", "s.yaml", "--address", address, *KEPT)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert message in err and "secret" not in err


@pytest.mark.parametrize(
    "address", ["http://u:secret@h:1", "http://h:x", "http://", "http://h:1/a?b", "h"]
)
def test_a_malformed_address_is_refused(address):
    with pytest.raises(UserError, match="--address must be http://HOST:PORT") as refused:
        submit_job.connect(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("job", ["", ".", "..", "../version", "a/b", "a?b"])
def test_what_is_no_name_of_a_job_is_asked_of_no_server(job):
    with pytest.raises(UserError, match="^JOB is '.*', but the cluster has no job of that name"):
        submit_job.job_info(None, job)


def test_a_pipe_is_refused_before_anything_is_sent(submit, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    code, out, err = submit("search", "pipe.yaml", *SERVER, *KEPT)
    assert (code, out) == (
        2,
        "",
    ) and err == "pipe.yaml: is no regular file, which could be uploaded\n"


def test_without_rays_job_api_the_extra_is_named(submit, monkeypatch):
    found = submit_job.find_spec
    monkeypatch.setattr(submit_job, "find_spec", lambda n: None if n == "aiohttp" else found(n))
    code, _, err = submit("search", "s.yaml", *SERVER, *KEPT)
    assert code == 2
    assert err == "Ray's job API is not installed; pip install 'tune-ssl[cluster]'\n"


def test_something_else_that_answers_is_no_job_server(submit, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(server, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as other:
        try:
            wait_until(lambda: answers(port))
            code, _, err = submit(
                "search", "s.yaml", "--address", f"http://127.0.0.1:{port}", *KEPT
            )
        finally:
            other.kill()
    assert code == 2 and len(err.splitlines()) == 1
    assert f"http://127.0.0.1:{port}: no job server of Ray answers there as one should: " in err


# ---- a real job server ---------------------------------------------------------------------------

HOST = "127.0.0.2"


def free_ports(count):
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def answers(port, host="127.0.0.1"):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def wait_until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited state did not come"
        time.sleep(0.2)


@pytest.fixture
def head(tmp_path, monkeypatch):
    """The ports of a cluster of our own with a token, whose Python is this one."""
    token = tmp_path / "token"
    token.write_text("t" * 40)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = tempfile.mkdtemp(prefix="r")  # short: the paths of sockets may have 107 characters
    head = subprocess.Popen(
        [
            *(Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=2"),
            *(f"--node-ip-address={HOST}", f"--temp-dir={folder}", f"--dashboard-host={HOST}"),
            *("--include-dashboard=true", "--disable-usage-stats"),
            *(f"--{name}={port}" for name, port in ports.items()),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: answers(ports["dashboard-port"], HOST))
        yield ports
    finally:
        started = [head.pid, *descendants(head.pid)]
        head.terminate()
        head.wait(30)
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_jobs_are_run_followed_stopped_and_resumed_on_a_real_job_server(
    tmp_path, head, monkeypatch
):
    job_server = f"http://{HOST}:{head['dashboard-port']}"
    (tmp_path / NASTY).write_text(STUDY.replace("supervised", "entropy_min"))
    (tmp_path / "my methods").mkdir()
    plugin = Path(shutil.copy(PLUGIN, tmp_path / "my methods" / "ent'ropy.py"))
    runs = tmp_path / "ru ns"
    where = ("--address", job_server, "--python", sys.executable)
    kept = (*where, "--runs", runs)

    def submitted(*arguments):
        return finish(start(tmp_path, "submit", *arguments), timeout=600)

    # A search with a plugin and a report, followed to its end; its variable reaches it, its value no log.
    monkeypatch.setenv("MY_SECRET", "geheim")
    code, out, err = submitted(
        "search", NASTY, "--plugin", plugin, *kept, "--name", "one", "--env", "MY_SECRET"
    )
    assert code == 0, out + err
    assert re.match(rf"submitted raysubmit_\w+ to {job_server}; its runs are kept in {runs}\n", out)
    assert out.rstrip().endswith(f"report: {runs / 'one' / 'report' / 'index.html'}")
    assert len(re.findall(r"search one: c0-t000\d \(all, 2/2\) finished", out)) == 1
    assert "geheim" not in out + err
    assert set(endings(runs / "one").values()) == {log.FINISHED}
    assert "runtime_resources" in (runs / "one" / "study.yaml").read_text()  # the uploaded plugin

    # The uploaded plugin goes with its job: a resume is given the file again.
    [uploaded] = {entry["path"] for entry in read_yaml(runs / "one" / log.STUDY).data["plugins"]}
    Path(uploaded).unlink()
    again = ("search", "--resume", "one", *kept, "--no-report")
    code, out, _ = submitted(*again)
    assert code == 2 and "put it back, name it with --plugin, or start a new run" in out
    code, out, err = submitted(*again, "--plugin", plugin)
    assert code == 0, out + err

    # One that fails there: its message and its exit code.
    code, out, _ = submitted(
        *("search", NASTY, "--name", "gone", *kept),
        *("method.name=supervised", "data.dataset=folder", "data.root=/gone"),
    )
    assert code == 2
    assert "data.root is '/gone', but has no folder train/" in out

    # Not followed, then followed; Ctrl-C leaves it running; another one stops it.
    long = ("method.name=supervised", "budget.steps=4000", "study.checkpoint_seconds=0")
    code, out, _ = submitted("search", NASTY, *long, *kept, "--name", "two", "--no-follow")
    job = re.search(r"raysubmit_\w+", out)[0]
    hint = f"follow it: tune-ssl submit --follow {job} --address {job_server}; stop it: "
    assert code == 0 and hint in out
    wait_until(lambda: len(log.read(runs / "two" / log.HISTORY)) > 3)
    following = start(tmp_path, "submit", "--follow", job, *where[:2])
    assert following.stdout.readline()
    following.send_signal(signal.SIGINT)
    code, _, err = finish(following)
    assert code == 130 and err.startswith(f"{job} goes on; {hint}")
    following = start(tmp_path, "submit", "--follow", job, *where[:2])
    assert following.stdout.readline()
    assert submitted("--stop", job, *where[:2]) == (0, f"{job} is asked to stop\n", "")
    code, _, err = finish(following)
    assert (code, err) == (130, f"{job} was stopped\n")
    assert submitted("--stop", job, *where[:2])[1] == f"{job} had ended already\n"
    assert endings(runs / "two") == {}

    # What was stopped goes on.
    code, out, err = submitted("search", "--resume", "two", *kept, "--no-confirm", "--no-report")
    assert code == 0, out + err
    assert {e["event"] for e in events(runs / "two")} >= {log.RESUMED, log.FINISHED}

    # What a person is told who has no token, a wrong one, or asks for another job.
    code, _, err = submitted("--follow", "nojob", *where[:2])
    assert (code, err) == (2, "JOB is 'nojob', but the cluster has no job of that name\n")
    (tmp_path / "wrong").write_text("w" * 40)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "wrong"))
    code, _, err = submitted("--follow", job, *where[:2])
    assert code == 2 and "the cluster refuses the token in the file RAY_AUTH_TOKEN_PATH=" in err
    monkeypatch.delenv("RAY_AUTH_MODE")
    code, _, err = submitted("--follow", job, *where[:2])
    assert code == 2 and "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE" in err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_address_of_ray_client_runs_the_search_as_a_job_and_follows_it(
    tmp_path, head, monkeypatch
):
    port = head["ray-client-server-port"]
    wait_until(lambda: answers(port, HOST))
    (tmp_path / NASTY).write_text(STUDY.replace("supervised", "entropy_min"))
    runs = tmp_path / "ru ns"
    where = ("--address", f"ray://{HOST}:{port}")

    def asked(*arguments):
        return finish(start(tmp_path, *arguments), timeout=600)

    # As on this machine, but for the first lines: a plugin, an override, a report.
    kept = (*where, "--runs", runs)
    given = ("study.num_trials=3", "--name", "one", "--plugin", PLUGIN)
    code, out, err = asked("search", NASTY, *given, *kept)
    assert code == 0, out + err
    assert re.match(rf"submitted raysubmit_\w+ to {where[1]}; its runs are kept in {runs}\n", out)
    assert out.rstrip().endswith(f"report: {runs / 'one' / 'report' / 'index.html'}")
    assert set(endings(runs / "one").values()) == {log.FINISHED}
    assert len(endings(runs / "one")) == 3 + 1
    code, out, _ = asked("search", "--resume", "none", *kept)
    assert code == 2 and f"{runs / 'none'} is not a run folder; did you mean 'one'?" in out

    # Ctrl-C, twice, leaves the job running; its address is enough to follow and to stop it.
    long = ("method.name=supervised", "budget.steps=4000", "study.checkpoint_seconds=0")
    following = start(tmp_path, "search", NASTY, *long, *kept, "--name", "two")
    job = re.search(r"raysubmit_\w+", following.stdout.readline())[0]
    wait_until(lambda: len(log.read(runs / "two" / log.HISTORY)) > 3)
    following.send_signal(signal.SIGINT)
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        following.send_signal(signal.SIGINT)
    code, _, err = finish(following)
    assert code == 130 and err.startswith(
        f"{job} goes on; follow it: tune-ssl submit --follow {job}"
    )
    assert len(err.splitlines()) == 1
    following = start(tmp_path, "submit", "--follow", job, *where)
    assert following.stdout.readline()
    assert asked("submit", "--stop", job, *where) == (0, f"{job} is asked to stop\n", "")
    code, _, err = finish(following)
    assert (code, err) == (130, f"{job} was stopped\n")

    # Another command of the same kind goes on with it.
    code, out, err = asked("search", "--resume", "two", *kept, "--no-confirm", "--no-report")
    assert code == 0, out + err
    assert {e["event"] for e in events(runs / "two")} >= {log.RESUMED, log.FINISHED}

    # Ray Client does not tell a server that refuses the token from one that is silent.
    monkeypatch.delenv("RAY_AUTH_MODE")
    code, _, err = asked("submit", "--follow", job, *where)
    assert code == 2 and len(err.splitlines()) == 1
    assert "Ray Client gets no answer there" in err and "set RAY_AUTH_MODE=token and" in err
