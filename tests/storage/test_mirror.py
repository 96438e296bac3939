"""A run that is kept under a URL: killed with its machine, it goes on from the copy alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest

from tests.support.runs import (
    COMMAND,
    descendants,
    endings,
    events,
    finish,
    kill_all,
    start,
    wait_for,
    write_study,
)
from tune_ssl.base import retry
from tune_ssl.base.errors import Stopped, UserError
from tune_ssl.records import log
from tune_ssl.storage import mirror
from tune_ssl.storage.fetch import update_from_copy
from tune_ssl.storage.mirror import DRIVER, MANIFEST, Mirror, driver, mirrored
from tune_ssl.storage.places import place_of

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 16}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: soft_kmeans}
  budget: {steps: 1600, eval_every: 40}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 3, searcher: random, scheduler: none, finalists: 1, seeds: [0, 1], checkpoint_seconds: 0}
"""


@pytest.fixture
def copy(server):
    return place_of(server.url("runs/kept/one"))


def run_folder(folder):
    """A run folder with two records, as far as a copy goes."""
    run = folder / "runs" / "one"
    run.mkdir(parents=True)
    (run / log.STUDY).write_text("name: one\n")
    for event in ("started", "finished"):
        about = {"phase": "search", "condition": "c", "trial": "a", "event": event}
        log.append(run / log.TRIALS, about)
    return run


def test_a_copy_never_has_a_record_that_is_not_whole(tmp_path, copy, server):
    run = run_folder(tmp_path)
    told = []
    copier = Mirror(run, place_of(server.url("runs/kept")), told.append)
    copier.acquire()
    copier.start()
    whole = (run / log.TRIALS).stat().st_size
    with (run / log.TRIALS).open("a") as file:
        file.write('{"event": "fini')
    assert copier.push()
    assert json.loads(copy.read(MANIFEST))["sizes"] == {log.TRIALS: whole}
    copier.close()
    assert driver(copy) is None and told == []


def test_a_copy_never_has_an_ending_without_the_model_before_it(tmp_path, copy):
    run, told = run_folder(tmp_path), []
    copier = Mirror(run, copy, told.append)
    copier.acquire()
    copier.mark()
    looked = copier._if_changed

    def meanwhile(name, size):
        """While the copy looks what is there, the driver writes a model, then the ending, and marks it."""
        if name == log.STUDY and not (run / log.MODELS).exists():
            (run / log.MODELS / "0").mkdir(parents=True)
            (run / log.MODELS / "0" / "model.json").write_text("{}")
            ending = {"phase": "confirm", "condition": "c", "trial": "b", "event": "finished"}
            log.append(run / log.TRIALS, ending)
            copier.marked_at = float("-inf")
            copier.mark()
        yield from looked(name, size)

    copier._if_changed = meanwhile
    assert copier.push()
    assert b'"confirm"' not in copier.place.read(log.TRIALS)
    assert copier.push()
    assert b'"confirm"' in copier.place.read(log.TRIALS)
    assert copier.place.read(f"{log.MODELS}/0/model.json") == b"{}"


def test_an_outage_is_told_once_and_what_happened_meanwhile_is_pushed(tmp_path, copy, server):
    run = run_folder(tmp_path)
    told = []
    copier = Mirror(run, place_of(server.url("runs/kept")), told.append)
    copier.acquire()
    copier.start()
    server.stop()
    log.append(run / log.HISTORY, {"phase": "search", "condition": "c", "trial": "a"})
    copier.marked_at = float("-inf")
    copier.mark()
    assert not copier.push() and not copier.push()
    server.start()
    assert copier.push()
    copier.close()
    assert len(told) == 2 and all(line.startswith("s3://runs/kept/one?region=") for line in told)
    assert " cannot be written: " in told[0] and told[0].endswith("; trying again")
    assert told[1].endswith(" answers again")
    assert copy.read(log.HISTORY) == (run / log.HISTORY).read_bytes()


def test_two_drivers_of_one_copy_are_refused_and_a_dead_one_is_not_waited_for(
    tmp_path, copy, server
):
    run = run_folder(tmp_path)
    place = place_of(server.url("runs/kept"))
    first = Mirror(run, place, print)
    first.acquire()
    with pytest.raises(UserError, match="is driven by process [0-9]+ on .*, last heard of 0 s ago"):
        Mirror(run, place, print).acquire()
    about = json.loads(copy.read(DRIVER))
    copy.write(DRIVER, iter([json.dumps({**about, "pid": 2**22 + 1}).encode()]))  # no such process
    Mirror(run, place, print).acquire()
    elsewhere = {**about, "space": "another machine", "time": time.time() - 3600}
    copy.write(DRIVER, iter([json.dumps(elsewhere).encode()]))
    Mirror(run, place, print).acquire()


def test_a_driver_whose_run_was_taken_stops_writing(tmp_path, copy, server):
    run = run_folder(tmp_path)
    copier = Mirror(run, place_of(server.url("runs/kept")), print)
    copier.acquire()
    copier.start()
    other = {"driver": "another", "host": "elsewhere", "pid": 1, "space": None, "time": time.time()}
    copy.write(DRIVER, iter([json.dumps(other).encode()]))
    copier.last_beat = float("-inf")
    assert not copier.push() and "is driven by process 1 on elsewhere now" in str(copier.taken_over)
    copier.close()
    assert driver(copy)["driver"] == "another"


def test_the_end_of_a_run_that_the_copy_does_not_get_is_told_by_an_error(
    tmp_path, server, monkeypatch
):
    monkeypatch.setattr(retry, "LONGEST", 0.5)
    monkeypatch.setattr(mirror, "PAUSE", 0.1)
    run = run_folder(tmp_path)
    copied = mirrored(run, place_of(server.url("runs/kept")), print)
    about = {"phase": "search", "condition": "c", "trial": "a"}
    with pytest.raises(Stopped, match="lacks the end of the run, which is whole in "), copied:
        log.append(run / log.HISTORY, about)
        server.stop()


def test_what_is_broken_off_is_no_file_and_a_short_one_is_not_taken(tmp_path, copy):
    def chunks():
        yield b"half"
        raise OSError("the disk")

    copy.write("x", iter([b"whole"]))
    with pytest.raises(OSError, match="the disk"):
        copy.write("x", chunks())
    with pytest.raises(FileNotFoundError):
        copy.read("x")
    copy.write(log.STUDY, iter([b"name: one\n"]))
    copy.write(log.TRIALS, iter([b"12345"]))
    copy.write(MANIFEST, iter([b'{"sizes": {"trials.jsonl": 9}}']))
    with pytest.raises(UserError, match="has less of trials.jsonl than mirror.json says"):
        update_from_copy(copy, tmp_path / "runs" / "one")
    assert not (tmp_path / "runs" / "one").exists()


@pytest.mark.parametrize("size", ["1e400", "-3", "null"])
def test_a_copy_whose_sizes_are_none_is_refused(tmp_path, copy, size):
    copy.write(log.STUDY, iter([b"name: one\n"]))
    copy.write(MANIFEST, iter([f'{{"sizes": {{"trials.jsonl": {size}}}}}'.encode()]))
    with pytest.raises(UserError, match="mirror.json cannot be understood"):
        update_from_copy(copy, tmp_path / "runs" / "one")


@pytest.mark.parametrize("last", ["9" * 400, '"x"', "-1"])
def test_a_driver_whose_time_is_none_counts_as_none(copy, last):
    copy.write(DRIVER, iter([f'{{"driver": "a", "space": "b", "time": {last}}}'.encode()]))
    assert driver(copy) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_with_its_folder_goes_on_from_its_copy_through_an_outage(tmp_path, server):
    url = server.url("runs/kept")
    study = write_study(tmp_path, STUDY)
    process = start(tmp_path, "search", study, "--name", "one", "--storage", url, "--no-report")
    run = tmp_path / "runs" / "one"

    def a_trial_is_in_the_copy():
        sent = any(name.endswith("one/mirror.json") for name in server.names("runs"))
        return sent and b'"finished"' in place_of(url).at("one").read(log.TRIALS)

    wait_for(process, a_trial_is_in_the_copy)
    kill_all([process.pid, *descendants(process.pid)])
    finish(process)
    shutil.rmtree(run)  # the machine is gone
    reported = place_of(url).at("one").read(log.HISTORY).count(b"\n")

    again = ("search", "--resume", "one", "--storage", url, "--no-report")
    server.stop()
    code, _, err = finish(start(tmp_path, *again))
    assert code == 2 and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    server.start()
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [*COMMAND, *again], cwd=tmp_path, stdout=file, stderr=file, text=True
        )
    wait_for(process, lambda: len(log.read(run / log.HISTORY)) > reported)
    server.stop()
    wait_for(process, lambda: " cannot be written: " in said.read_text())
    server.start()
    assert process.wait(300) == 0, said.read_text()
    assert " answers again" in said.read_text()
    ended = [e["trial"] for e in events(run) if e["event"] in log.ENDINGS]
    assert set(endings(run).values()) == {log.FINISHED}
    assert len(ended) == len(set(ended)) == 3 + 2, (
        "each trial of the search, each seed of the winner"
    )

    fetched = start(tmp_path, "fetch", f"{place_of(url).at('one').url}", "--runs", "elsewhere")
    assert finish(fetched)[0] == 0
    for name in (log.STUDY, log.TRIALS, log.HISTORY):
        assert (tmp_path / "elsewhere" / "one" / name).read_bytes() == (run / name).read_bytes()
    assert not [name for name in server.names("runs") if "/ray/" in name], "no checkpoint is left"
    server.empty_into("runs", tmp_path)
    secret = [p for p in tmp_path.rglob("*") if p.is_file() and b"not-a-real" in p.read_bytes()]
    assert secret == []
