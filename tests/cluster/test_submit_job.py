"""Jobs: what is uploaded, what the cluster's shell is given, what a person is told; and a real job server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import ray  # here, for its log keeps the stderr of its first import  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cluster import local_cluster
from tests.support.runs import called, endings, events, finish, start, wait_until
from tune_ssl.base.errors import UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.cluster import submit_job
from tune_ssl.records import log

ROOT = Path(__file__).parents[2]
STUDY = """
fixed:
  data: {dataset: digits, num_labels: 50, batch_size: 8}
  method: {name: supervised}
  budget: {steps: 20, eval_every: 10}
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
study: {num_trials: 2, scheduler: none, finalists: 1, seeds: [0]}
"""
PLUGIN = ROOT / "docs" / "examples" / "entropy_min.py"
NASTY = 'it\'s; touch $(echo pwned) & "x" `y`.yaml'


# ---- what is uploaded ----------------------------------------------------------------------------


def test_the_staged_folder_has_our_source_and_the_named_files_and_runs_by_itself(tmp_path):
    study = tmp_path / NASTY
    study.write_text(STUDY)
    (tmp_path / "secret.txt").write_text("not for the cluster")
    folder = tmp_path / "staged"
    folder.mkdir()
    staged = submit_job.stage(folder, [study, PLUGIN])
    assert staged == {study: f"files/0/{NASTY}", PLUGIN: "files/1/entropy_min.py"}
    assert sorted(p.name for p in folder.iterdir()) == ["analysis", "files", "tune_ssl"]
    for file, name in staged.items():
        assert (folder / name).read_bytes() == file.read_bytes()
    for package in ("tune_ssl", "analysis"):
        here = {p for p in (ROOT / package).rglob("*") if p.is_file() and p.suffix != ".pyc"}
        there = {p for p in (folder / package).rglob("*") if p.is_file()}
        assert {p.relative_to(folder) for p in there} == {p.relative_to(ROOT) for p in here}

    code = "import tune_ssl.cli.main, analysis; print(tune_ssl.__file__, analysis.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    expected = [folder / package / "__init__.py" for package in ("tune_ssl", "analysis")]
    assert done.stdout.split() == list(map(str, expected))


# ---- what the shell is given ---------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
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
            "--storage has a secret (s3://me:***@b/x), which the job server would show: give it "
            "to the job in an environment variable, by --env NAME of `tune-ssl submit`",
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
    "command",
    [
        ("search", "s.yaml"),
        ("ablate", "s.yaml", "--auto", "method.name=kmeans"),
        ("submit", "search", "s.yaml", *KEPT),
    ],
)
def test_ray_client_is_refused_with_what_to_use_instead(submit, monkeypatch, capsys, command):
    code, out, err = called(monkeypatch, capsys, *command, "--address", "ray://head:10001")
    assert (code, out) == (2, "") and not Path("runs").exists()
    assert err == (
        "--address is 'ray://head:10001', but Ray Client is not supported: start the command as a job of "
        "the cluster, tune-ssl submit --address http://HEAD:8265\n"
    )


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
    assert (code, out) == (2, "")
    assert err == "pipe.yaml: is a pipe, which cannot be uploaded\n"


def test_without_rays_job_api_the_extra_is_named(submit, monkeypatch):
    found = submit_job.find_spec
    monkeypatch.setattr(submit_job, "find_spec", lambda n: None if n == "aiohttp" else found(n))
    code, _, err = submit("search", "s.yaml", *SERVER, *KEPT)
    assert code == 2
    assert err == "Ray's job API is not installed; pip install 'tune-ssl[cluster]'\n"


def test_something_else_that_answers_is_no_job_server(submit, tmp_path):
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        code, _, err = submit("search", "s.yaml", "--address", address, *KEPT)
        server.shutdown()
    assert code == 2
    [line] = [line for line in err.splitlines() if " - - [" not in line]  # the server's own log
    assert line.startswith(f"{address}: no job server of Ray answers there as one should: ")


# ---- a real job server ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_is_followed_interrupted_stopped_and_resumed_on_a_real_job_server(
    tmp_path, monkeypatch
):
    (tmp_path / NASTY).write_text(STUDY.replace("supervised", "entropy_min"))
    (tmp_path / "my methods").mkdir()
    plugin = Path(shutil.copy(PLUGIN, tmp_path / "my methods" / "ent'ropy.py"))
    run = tmp_path / "ru ns" / "one"
    with local_cluster(tmp_path / "cluster", cpus=2, jobs=True) as cluster:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, cluster.environment[name])
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        where = ("--address", cluster.job_server)
        kept = (*where, "--python", sys.executable, "--runs", run.parent)

        def submitted(*arguments):
            return finish(start(tmp_path, "submit", *arguments), timeout=400)

        # Not followed, then followed; Ctrl-C leaves it running; another one stops it.
        long = ("budget.steps=2000", "budget.eval_every=50", "study.checkpoint_seconds=0")
        long += ("study.num_trials=1",)
        asked = ("search", NASTY, "--plugin", plugin, *long, *kept, "--name", "one")
        code, out, err = submitted(*asked, "--no-follow")
        assert code == 0, err
        job = re.search(r"raysubmit_\w+", out)[0]
        hint = f"follow it: tune-ssl submit --follow {job} --address {cluster.job_server}; stop it:"
        first, second = out.splitlines()
        assert (
            first == f"submitted {job} to {cluster.job_server}; its runs are kept in {run.parent}"
        )
        assert second.startswith(hint)
        wait_until(lambda: len(log.read(run / log.HISTORY)) > 1)
        following = start(tmp_path, "submit", "--follow", job, *where)
        assert following.stdout.readline()
        following.send_signal(signal.SIGINT)
        code, _, err = finish(following)
        assert code == 130 and err.startswith(f"{job} goes on; {hint}")
        assert submitted("--stop", job, *where) == (0, f"{job} is asked to stop\n", "")
        code, _, err = submitted("--follow", job, *where)
        assert (code, err) == (130, f"{job} was stopped\n")
        assert submitted("--stop", job, *where)[1] == f"{job} had ended already\n"
        assert endings(run) == {}

        # One that fails there: its message and its exit code. The uploaded plugin went with its job.
        uploaded = Path(read_yaml(run / log.STUDY).data["plugins"][0]["path"])
        assert "runtime_resources" in uploaded.parts
        uploaded.unlink()  # Ray does so sooner or later
        again = ("search", "--resume", "one", *kept)
        code, out, _ = submitted(*again)
        assert code == 2 and "put it back, name it with --plugin, or start a new run" in out

        # Given the file again, it goes on to its end; a variable reaches it, its value no log.
        monkeypatch.setenv("MY_SECRET", "geheim")
        code, out, err = submitted(*again, "--plugin", plugin, "--no-confirm", "--env", "MY_SECRET")
        assert code == 0, out + err
        assert "geheim" not in out + err
        assert out.rstrip().endswith(f"report: {run / 'report' / 'index.html'}")
        assert set(endings(run).values()) == {log.FINISHED}
        assert log.RESUMED in {event["event"] for event in events(run)}

        # What a person is told who asks for another job, has a wrong token, or none.
        code, _, err = submitted("--follow", "nojob", *where)
        assert (code, err) == (2, "JOB is 'nojob', but the cluster has no job of that name\n")
        (tmp_path / "wrong").write_text("w" * 40)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "wrong"))
        code, _, err = submitted("--follow", job, *where)
        assert code == 2 and "the cluster refuses the token in the file RAY_AUTH_TOKEN_PATH=" in err
        monkeypatch.delenv("RAY_AUTH_MODE")
        code, _, err = submitted("--follow", job, *where)
        assert code == 2 and "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE" in err
