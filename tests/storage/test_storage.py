"""Runs on storage by path or URL: refused in one line, or kept there, through outages and kills."""

from __future__ import annotations

import os
import pickle
import time
from types import SimpleNamespace

import pytest

from tune_ssl.base.errors import Stopped, UserError
from tune_ssl.storage import places
from tune_ssl.storage.checkpoints import Checkpoints


def refused(url, where=""):
    with pytest.raises(UserError) as caught:
        places.home_of(url, places.Path("runs"), where)
    [problem] = caught.value.problems
    assert "\n" not in str(problem)
    return str(problem)


@pytest.mark.parametrize(
    "url, expected",
    [
        (
            "s4://bucket/runs",
            "is 's4://bucket/runs', whose scheme is unknown (known: s3, gs, gcs, abfs, abfss, hdfs, ",
        ),
        ("s3://", "study.storage is 's3://', but must have a path"),
        ("s3:/x", "study.storage is 's3:/x', which cannot be read: Missing bucket name in S3 URI"),
        ("s3://b/x?bogus=1", "which cannot be read: Unexpected query parameter in S3 URI: 'bogus'"),
        ("s3://b/../x?region=us-east-1", "but must have no '..' in its path"),
        ("file://elsewhere/x", "which cannot be read: Unsupported hostname"),
        ("abffs://b@c/x", "whose scheme is unknown; did you mean 'abfs'? (known: s3, "),
        ("memory://x/y", "study.storage is 'memory://x/y', whose scheme is unknown"),
        ("mock://x/y", "study.storage is 'mock://x/y', whose scheme is unknown"),
        ("sftp://box/x", "which needs a package: "),
        ("http://127.0.0.1:1/x", "which "),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line(url, expected):
    message = refused(url, "study.yaml:7")
    assert message.startswith("study.yaml:7: study.storage is '")
    assert expected in message


def test_a_bucket_that_is_not_there_and_a_server_that_is_not_are_refused(server):
    message = refused(server.url("nowhere/x"))
    assert message.startswith("study.storage is 's3://nowhere/x?")
    assert "which cannot be used: " in message and "NO_SUCH_BUCKET" in message
    server.stop()
    began = time.monotonic()
    try:
        message = refused(server.url("runs/x"))
    finally:
        server.start()
    assert "NETWORK_CONNECTION" in message
    assert time.monotonic() - began < places.ANSWER + 15


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "which cannot be used: " in refused(f"file://{tmp_path}/file/x")


def test_a_storage_that_never_answers_is_refused_after_a_while(monkeypatch):
    monkeypatch.setattr(places, "ANSWER", 0.5)
    with storage_socket() as port:
        message = refused(
            f"s3://b/x?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
        )
    assert message.endswith("which cannot be used: no answer within 0 s")


def storage_socket():
    """A port that takes connections and says nothing."""
    import contextlib
    import socket

    @contextlib.contextmanager
    def opened():
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            yield listening.getsockname()[1]

    return opened()


def test_a_folder_is_where_the_runs_are_kept_and_the_environment_wins(tmp_path, monkeypatch):
    assert places.home_of(None, tmp_path) == (tmp_path, None, None)
    assert places.home_of("/somewhere", tmp_path).runs == places.Path("/somewhere")
    monkeypatch.setenv("TUNE_SSL_STORAGE", str(tmp_path / "other"))
    assert places.home_of("/somewhere", tmp_path).runs == tmp_path / "other"


def urls(tmp_path, server):
    yield None
    yield f"file://{tmp_path}/kept here".replace(" ", "%20")
    yield f"local://{tmp_path}/by-fsspec"  # fsspec's name for files, which pyarrow does not know
    yield server.url("runs/some/where")


@pytest.mark.parametrize("kind", range(4))
def test_checkpoints_are_listed_swept_taken_and_cleared_wherever_they_are(tmp_path, server, kind):
    url = list(urls(tmp_path, server))[kind]
    run = tmp_path / "runs" / "a.b-1_c"
    run.mkdir(parents=True)
    if url:
        places.check_usable(places.place_of(url))
    checkpoints = Checkpoints(run, url)
    assert checkpoints.next_session() == "session-001" and checkpoints.of_earlier("t1") == ()
    for number in range(4):
        files = {"state.pt": b"state %d" % number, "extra": b""}
        if number == 3:
            files = {"model.safetensors": b"weights", "model.json": b"{}"}
        for name, content in files.items():
            folder = checkpoints.place.at("session-001", "t1", f"checkpoint_{number:06d}")
            folder.write(name, iter([content]))
    assert Checkpoints(run, url).next_session() == "session-002"
    assert checkpoints.of_earlier("t1") == (), "it is new since the first look"
    again = Checkpoints(run, url)
    found = again.of_earlier("t1")
    assert [places.read_checkpoint(path) for path in found] == [b"state 2", b"state 1", b"state 0"]
    assert again.of("t2") == () and again.of_earlier("t2") == ()
    assert all("not-a-real-secret" not in path for path in found)

    again.copy_newest("t1", ("model.safetensors", "model.json"), tmp_path / "taken")
    assert (tmp_path / "taken" / "model.safetensors").read_bytes() == b"weights"
    assert sorted(p.name for p in (tmp_path / "taken").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]
    with pytest.raises(FileNotFoundError):
        again.copy_newest("t2", ("model.json",), tmp_path / "taken")

    again.sweep("session-001", "t1", keep=2)
    end = time.monotonic() + 30
    while len(again.of("t1")) != 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert places.read_checkpoint(again.of("t1")[0]) == b"state 2"
    with pytest.raises(FileNotFoundError):
        places.read_checkpoint(found[-1])
    again.sweep("session-001", "t9", keep=0)
    again.clear()
    assert Checkpoints(run, url).of("t1") == ()
    again.clear()


def test_what_a_failed_write_left_is_dropped_from_a_local_disk_only(tmp_path):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run)
    for number in range(3):
        checkpoints.place.at("s", "t", f"checkpoint_00000{number}").write("state.pt", iter([b""]))
    checkpoints.drop_partial("s", "t", {"checkpoint_000001"})
    assert [os.path.basename(os.path.dirname(path)) for path in checkpoints.of("t")] == [
        "checkpoint_000001"
    ]


def test_a_sweep_of_a_storage_that_is_away_is_no_error(tmp_path, server):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, server.url("runs/away"))
    checkpoints.place.at("session-001", "t", "checkpoint_000000").write("state.pt", iter([b"x"]))
    server.stop()
    try:
        began = time.monotonic()
        checkpoints.sweep("session-001", "t", keep=0)
        assert time.monotonic() - began < 1, "the driver's loop waits for no storage"
        checkpoints.clear()
    finally:
        server.start()
    assert len(Checkpoints(run, server.url("runs/away")).of("t")) == 1


@pytest.mark.parametrize("url", ["s3://me:pw@box/x", "gs://box/x?token=pw", "s3://me:***@box/x"])
def test_a_password_in_a_url_is_refused_with_what_to_use_instead(url):
    message = refused(url, "study.yaml:7")
    assert message.startswith(f"study.yaml:7: study.storage is '{url.replace('pw', '***')}', but ")
    assert "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3)" in message
    assert message.endswith("the URL without it here or in TUNE_SSL_STORAGE")


def test_what_ray_gets_of_a_storage_has_no_credentials(server):
    place = places.place_of(server.url("runs/x"))
    assert b"not-a-real-secret" not in pickle.dumps((place.filesystem, place.path))


def test_the_checkpoints_of_a_trial_that_a_stopped_run_left_open_stay(tmp_path, monkeypatch):
    from tests.support.runs import CONFIRMED, run_here
    from tune_ssl.records.ledger import Ledger
    from tune_ssl.runs.folder import reopen
    from tune_ssl.runs.splits import check_data
    from tune_ssl.tuning.job import REPORT
    from tune_ssl.tuning.ray_adapters import Caretaker, StreamScheduler
    from tune_ssl.tuning.run import open_run, searching
    from tune_ssl.tuning.stream import JobStream

    run, study = reopen(run_here(tmp_path, CONFIRMED, dry=True).parent, "one")
    context = open_run(run, study, check_data(study), Ledger(), print)
    stream = JobStream(context, searching(context))
    job = stream.next()
    folder = context.checkpoints.place.at("session-001", job.trial, "checkpoint_000000")
    folder.write("state.pt", iter([b"state"]))
    caretaker = Caretaker(stream, context.checkpoints, "session-001", None)
    scheduler = StreamScheduler(stream, caretaker)
    no_worker = SimpleNamespace(ray_actor=None)
    about = {"last_result": {}, "local_path": None, "temporary_state": no_worker}
    trial = SimpleNamespace(config=job.to_config(), **about)

    def away(*_):
        raise Stopped("the disk is full")

    monkeypatch.setattr(stream, "report", away)
    result = {REPORT: '{"status": "running"}'}
    assert scheduler.on_trial_result(None, trial, result) == "STOP"
    scheduler.on_trial_complete(None, trial, result)  # for Ray the trial is complete
    caretaker.on_trial_complete(0, [], trial)
    assert job.trial in stream.running and len(context.checkpoints.of(job.trial)) == 1
    del stream.running[job.trial]
    caretaker.on_trial_complete(0, [], trial)
    assert context.checkpoints.of(job.trial) == ()


@pytest.mark.parametrize("content", [b"\0" * 1000, b"PK torn"])
def test_a_checkpoint_that_a_crash_left_torn_gives_way_to_an_older_one(
    tmp_path, monkeypatch, content
):
    import torch

    from tune_ssl.tuning import worker

    torn, older = tmp_path / "torn", tmp_path / "older"
    torn.write_bytes(content)
    torch.save({"spec": "d", "step": 3}, older)
    monkeypatch.setattr(worker.tune, "get_checkpoint", lambda: None)
    job = SimpleNamespace(resume_from=(str(torn), str(tmp_path / "gone"), str(older)))
    assert worker._newest_state(job, "d")["step"] == 3
    assert worker._newest_state(job, "another spec") is None
    blocked = SimpleNamespace(resume_from=(str(tmp_path),))  # a folder: it cannot be read now
    with pytest.raises(IsADirectoryError):
        worker._newest_state(blocked, "d")


def test_a_retry_whose_newest_checkpoint_is_torn_takes_the_one_before(tmp_path, monkeypatch):
    import torch
    from pyarrow.fs import LocalFileSystem

    from tune_ssl.tuning import worker

    for number in (2, 3, 4):
        folder = tmp_path / f"checkpoint_{number:06d}"
        folder.mkdir()
        torch.save({"spec": "d", "step": number}, folder / "state.pt")
    (folder / "state.pt").write_bytes(b"\0" * 100)
    newest = SimpleNamespace(path=str(folder), filesystem=LocalFileSystem())
    monkeypatch.setattr(worker.tune, "get_checkpoint", lambda: newest)
    assert worker._newest_state(SimpleNamespace(resume_from=()), "d")["step"] == 3


def test_a_run_that_begins_to_use_a_url_finds_its_older_checkpoints(tmp_path):
    folder = tmp_path / "one" / "ray" / "session-001" / "c0-t0000" / "checkpoint_000000"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"x")
    found = Checkpoints(tmp_path / "one", f"file://{tmp_path}/kept").of_earlier("c0-t0000")
    assert found == (str(folder / "state.pt"),)
