"""Pretrained networks are kept: whoever takes one reports what it would have reported on its own."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import threading
import time
from contextlib import closing
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from tests.support.helpers import full_disk, small_spec
from tune_ssl.base.files import make_room
from tune_ssl.base.spec import digest
from tune_ssl.data.loading import load_data
from tune_ssl.study.shared_pretraining import shared_pretraining_key
from tune_ssl.study.trial import TrialSpec, build_trial, override
from tune_ssl.training import encoder_cache
from tune_ssl.training.encoder_cache import Shelf, shelf_key
from tune_ssl.training.loop import Collapsed, train
from tune_ssl.tuning.job import Job


def spec_of(method="simclr", **values) -> TrialSpec:
    return small_spec(method, **{"compute.cache": True, **values})


def run(spec, **options):
    return list(train(spec, **options))


def numbers(reports) -> str:
    """All that reports say, but the time; as text, for NaN is equal to NaN here."""
    return json.dumps(
        [
            [r.stage, r.step, r.evaluation, r.images_seen, r.metrics, r.result, r.stand_in]
            for r in reports
        ]
    )


def alone(spec: TrialSpec) -> str:
    """The numbers of the same trial, trained without the cache."""
    return _alone(spec.model_dump_json())


@cache
def _alone(raw: str) -> str:
    return numbers(run(override(build_trial(json.loads(raw)), {"compute.cache": False})))


def taken(reports) -> list[bool]:
    return [report.snapshot is None for report in reports]


def weights(report) -> list[torch.Tensor]:
    return list(report.trained.network.state_dict().values())


def key_of(spec: TrialSpec) -> str:
    """The shelf of the first stage."""
    data = load_data(spec.data, spec.split_seed, torch.device("cpu"))
    return shelf_key(spec, spec.stages()[0], data, "")


@pytest.fixture(autouse=True)
def shelves(tmp_path, monkeypatch) -> Path:
    """Where the shelves lie: for each test anew."""
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path))
    return tmp_path / "pretrained"


def folders(shelves: Path) -> list[Path]:
    return sorted(path for path in shelves.iterdir() if path.is_dir())


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, values",
    [
        ("simclr", {"optim.ema_decay": 0.0, "budget.checkpoint": "best", "model.freeze": 1}),
        ("simsiam", {"method.transfer": "linear_probe", "budget.steps": 10}),
        ("moco", {}),
        ("fixmatch_cvae", {"method.threshold": 0.1}),
    ],
)
def test_who_takes_a_network_reports_what_its_trainer_and_a_trial_alone_report(
    shelves, method, values
):
    spec = spec_of(method, **values)
    trainer, taker = run(spec), run(spec)
    assert numbers(taker) == numbers(trainer) == alone(spec)
    assert taken(trainer) == [False] * 6
    assert taken(taker) == [True] * 3 + [False] * 3
    for ours, theirs in zip(weights(taker[-1]), weights(trainer[-1]), strict=True):
        assert torch.equal(ours, theirs)
    assert len(folders(shelves)) == 1  # the second stage sees labels


def test_another_label_budget_takes_it_and_reports_what_it_would_have_alone():
    run(spec_of())
    other = spec_of(**{"data.num_labels": 20, "optim.finetune.lr": 0.01, "model.freeze": "all"})
    reports = run(other)
    assert taken(reports) == [True] * 3 + [False] * 3
    assert numbers(reports) == alone(other)


# ---- what shares a shelf -------------------------------------------------------------------------

SHARED = {
    "data.num_labels": 20,
    "method.transfer": "linear_probe",
    "model.freeze": "all",
    "method.labeled_view": "strong",
    "optim.finetune.lr": 0.5,
    "optim.linear_probe.name": "sgd",
    "losses.supervised.weight": 3.0,
    "budget.checkpoint": "best",
    "budget.steps": {"pretrain": 12, "finetune": 5},
}
OWN = {
    "seed": 1,
    "data.val_ratio": 0.3,
    "data.split": "random",
    "data.split_seed": 5,
    "data.image_size": 12,
    "data.batch_size": 9,
    "data.mu": 2,
    "data.validation": "within_budget",
    "model.encoder": "resnet18",
    "method.temperature": 0.4,
    "method.view": "weak",
    "method.projector_dim": 8,
    "method.collapse_below": 0.2,
    "losses.contrastive.weight": 2.0,
    "optim.lr": 0.01,
    "optim.ema_decay": 0.5,
    "optim.grad_clip": 1.0,
    "budget.steps": {"pretrain": 13, "finetune": 12},
    "budget.eval_every": 3,
    "compute.channels_last": False,
}


def keys_of(spec: TrialSpec) -> tuple[str, str | None]:
    """The shelf of the first stage, and what the driver says of it without the data."""
    return key_of(spec), shared_pretraining_key(spec)


def assert_shared(one: TrialSpec, other: TrialSpec, shared: bool = True) -> None:
    ours, theirs = keys_of(one), keys_of(other)
    assert None not in (*ours, *theirs)
    assert (ours[0] == theirs[0]) is (ours[1] == theirs[1]) is shared


@pytest.mark.parametrize("key, value", SHARED.items())
def test_what_only_later_stages_read_shares_a_shelf_and_the_driver_knows(key, value):
    assert_shared(spec_of(**{key: value}), spec_of())


@pytest.mark.parametrize("key, value", OWN.items())
def test_whatever_shapes_the_pretraining_has_a_shelf_of_its_own(key, value):
    assert_shared(spec_of(**{key: value}), spec_of(), shared=False)


def test_validation_within_the_budget_shares_only_where_the_unlabeled_pool_is_the_same():
    within = {"data.validation": "within_budget", "data.num_labels": 40}
    first = spec_of(**within)
    assert_shared(spec_of(**within, **{"optim.finetune.lr": 0.5}), first)
    assert_shared(spec_of(**{**within, "data.num_labels": 100}), first, shared=False)
    assert_shared(spec_of(**{**within, "data.val_ratio": 0.4}), first, shared=False)


def test_only_the_settings_count_that_a_stage_is_trained_by():
    own = {"optim.perturbation.lr": 0.002, "optim.perturbation.weight_decay": 0.0}
    first = spec_of("fixmatch_cvae", **own)
    for key, value in {"optim.lr": 0.5, "method.threshold": 0.5, "data.num_labels": 20}.items():
        assert_shared(spec_of("fixmatch_cvae", **own, **{key: value}), first)
    assert_shared(spec_of("fixmatch_cvae", **own, **{"method.width": 5}), first, shared=False)
    other = spec_of("simsiam", **{"optim.predictor.lr": 0.5})
    assert_shared(other, spec_of("simsiam"), shared=False)


@pytest.mark.parametrize(
    "method, values",
    [
        ("simclr", {"compute.cache": False}),
        ("simclr", {"method.init": "random"}),
        ("simclr_joint", {}),
        ("supervised", {}),
    ],
)
def test_a_first_stage_that_sees_labels_or_is_not_kept_is_shared_with_nobody(method, values):
    assert shared_pretraining_key(spec_of(method, **values)) is None


def test_other_code_and_another_number_of_threads_do_not_share(monkeypatch):
    first = key_of(spec_of())
    with monkeypatch.context() as patch:
        patch.setattr(encoder_cache, "_source_digest", lambda stage: "edited")
        assert key_of(spec_of()) != first
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert key_of(spec_of()) != first
    finally:
        torch.set_num_threads(threads)


# ---- several processes ---------------------------------------------------------------------------


def trial(cache: str, raw: dict[str, Any], pipe: Connection) -> None:
    """In a process of its own: trains, and tells of its first evaluation, after which it waits, and of its end."""
    os.environ["TUNE_SSL_CACHE"] = cache
    torch.set_num_threads(1)
    reports = []
    pipe.send("ready")
    pipe.recv()
    for report in train(build_trial(raw)):
        reports.append(report)
        if len(reports) == 1:
            pipe.send("reported")
            pipe.recv()
    pipe.send((numbers(reports), taken(reports)))


class Process:
    """A `trial` that has loaded what it needs."""

    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.training.test_encoder_cache"])

    def __init__(self, spec: TrialSpec) -> None:
        self.pipe, theirs = self.server.Pipe()
        arguments = (os.environ["TUNE_SSL_CACHE"], spec.model_dump(mode="json"), theirs)
        self.process = self.server.Process(target=trial, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        assert self.hears() == "ready"

    def go(self) -> None:
        self.pipe.send("go")

    def hears(self, timeout: float = 60) -> Any:
        assert self.pipe.poll(timeout), "the process says nothing"
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def test_of_three_processes_one_trains_and_all_report_the_same(shelves):
    spec = spec_of()
    processes = [Process(spec) for _ in range(3)]
    for process in processes:
        process.go()  # to the first evaluation
        process.go()  # and beyond it
    told = []
    for process in processes:
        assert process.hears() == "reported"
        told.append(process.hears())
    assert {values for values, _ in told} == {alone(spec)}
    assert sorted(got[0] for _, got in told) == [False, True, True]
    assert len(folders(shelves)) == 1


def test_when_the_trainer_is_killed_the_next_one_trains_anew_and_nothing_is_left(shelves):
    spec = spec_of()
    trainer, waiting = Process(spec), Process(spec)
    trainer.go()
    assert trainer.hears() == "reported"  # one file is there, and the lock is held
    waiting.go()
    assert not waiting.pipe.poll(0.5)
    (folder,) = folders(shelves)
    (folder / ".tmpOfThatProcess").write_bytes(b"half")
    trainer.kill()
    assert waiting.hears() == "reported"
    waiting.go()
    values, got = waiting.hears()
    assert values == alone(spec) and not any(got)
    assert [p.name for p in sorted(folder.iterdir())] == [
        f"{step:06d}.safetensors" for step in (4, 8, 12)
    ]
    assert taken(run(spec))[0]


def test_a_report_says_how_long_the_trial_waited_for_anothers_pretraining(shelves, monkeypatch):
    busy = threading.Event()

    class Watched(FileLock):
        def acquire(self, *arguments, **options):
            try:
                return super().acquire(*arguments, **options)
            except Timeout:
                busy.set()
                raise

    spec = spec_of()
    assert {report.waited for report in run(spec)} == {0.0}
    (folder,) = folders(shelves)
    shutil.rmtree(folder)
    monkeypatch.setattr(encoder_cache, "FileLock", Watched)
    reports = []
    thread = threading.Thread(target=lambda: reports.extend(run(spec)))
    with FileLock(f"{folder}.lock", is_singleton=False):  # as another process holds it
        thread.start()
        assert busy.wait(60)
    thread.join()
    (waited,) = {report.waited for report in reports}
    assert 0 < waited < reports[0].seconds
    with closing(train(spec)) as stream:
        state = [next(stream) for _ in range(5)][-1].snapshot() | {"waited": 123.0}
    assert {report.waited for report in run(spec, resume=state)} == {123.0}


def is_locked(folder: Path, patience: float = 0) -> bool:
    """Whether somebody holds the shelf's lock, and does not free it within `patience` seconds."""
    lock = FileLock(f"{folder}.lock", timeout=patience, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def test_a_trial_that_is_stopped_frees_the_lock_also_from_another_thread(shelves):
    spec = spec_of()
    streams = []

    def begin() -> None:
        stream = train(spec)
        next(stream)
        streams.append(stream)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    (folder,) = folders(shelves)
    assert is_locked(folder)
    streams.pop().close()
    assert not is_locked(folder)


def worker_config(spec: TrialSpec) -> dict[str, str]:
    """The job of a search trial, as Ray gives it to a worker."""
    job = Job(
        trial="t",
        phase="search",
        condition="all",
        number=0,
        config={},
        seed=spec.seed,
        spec=spec.model_dump(mode="json"),
        digest=digest(spec),
        split="",
        metric="val/mean_class_accuracy",
        mode="max",
        cpus=1,
        checkpoint_seconds=100,
    )
    return job.to_config()


@pytest.mark.parametrize("end", ["stop", "reset"])
def test_a_ray_worker_frees_the_lock_when_its_trial_is_stopped(shelves, monkeypatch, end):
    """It runs trials in a thread, parked at the last report; it ends, or is reused for another one."""
    from ray.train._internal import storage as ray_storage
    from ray.tune.trainable.function_trainable import wrap_function

    from tune_ssl.tuning.worker import train_job

    monkeypatch.chdir(shelves.parent)  # Ray changes it, too
    spec = spec_of()
    place = str(shelves.parent / "ray")
    monkeypatch.setattr(ray_storage, "_get_ray_train_session_dir", lambda: place)
    storage = ray_storage.StorageContext(place, "search", trial_dir_name="t")
    worker = wrap_function(train_job)(config=worker_config(spec), storage=storage)
    assert json.loads(worker.train()["report"])["step"] == 4
    (folder,) = folders(shelves)
    assert is_locked(folder)
    if end == "reset":
        assert worker.reset(worker_config(spec_of(seed=1)), storage)
        assert json.loads(worker.train()["report"])["step"] == 4
    else:
        worker.stop()
    assert not is_locked(folder, patience=60)
    if end == "reset":
        worker.stop()


def test_a_collapsed_pretraining_keeps_nothing_and_frees_the_lock(shelves):
    spec = spec_of("simsiam", **{"method.collapse_below": 0.99})
    for _ in range(2):
        with pytest.raises(Collapsed, match="over steps 1 to 4, under its floor 0.99"):
            run(spec)
    assert not list(shelves.rglob("*.safetensors"))


# ---- damage --------------------------------------------------------------------------------------


def test_a_shelf_with_a_torn_file_is_not_taken_but_made_anew(shelves):
    spec = spec_of(**{"budget.steps": 4, "budget.eval_every": 2})
    whole = numbers(run(spec))
    (folder,) = folders(shelves)
    file = folder / "000004.safetensors"
    content = file.read_bytes()
    assert Shelf(folder.name, [2, 4]).open()
    assert not Shelf(folder.name, [2, 3, 4]).open()
    for torn in (b"", b"x" * 5000, content[:100], content[:-1], content[:8] + b"\0" * 5000):
        file.write_bytes(torn)
        assert not Shelf(folder.name, [2, 4]).open()
    reports = run(spec)
    assert numbers(reports) == whole and not any(taken(reports))
    assert taken(run(spec))[0]


def test_a_shelf_that_is_deleted_while_it_is_taken_is_read_to_its_end(shelves):
    spec = spec_of()
    whole = numbers(run(spec))
    with closing(train(spec)) as stream:
        reports = [next(stream)]
        shutil.rmtree(shelves)
        reports += stream
    assert numbers(reports) == whole and taken(reports)[:3] == [True] * 3


def test_a_shelf_that_is_deleted_while_it_is_made_costs_a_warning_alone(shelves):
    spec = spec_of()
    with closing(train(spec)) as stream:
        reports = [next(stream)]
        shutil.rmtree(folders(shelves)[0])
        with pytest.warns(UserWarning, match="does not keep this pretrained network"):
            reports += stream
    assert numbers(reports) == alone(spec)
    assert not any(taken(run(spec)))


def test_a_cache_that_cannot_be_written_costs_a_warning_alone(shelves):
    shelves.write_text("a file where a folder should be")
    spec = spec_of()
    with pytest.warns(UserWarning, match="does not keep this pretrained network") as warned:
        reports = run(spec)
    assert numbers(reports) == alone(spec) and not any(taken(reports))
    assert len([w for w in warned if "does not keep" in str(w.message)]) == 1


def test_a_disk_that_fills_up_midway_leaves_no_half_of_a_shelf(shelves):
    spec = spec_of()
    with closing(train(spec)) as stream:
        reports = [next(stream)]
        assert list(shelves.rglob("*.safetensors"))
        with full_disk(1000), pytest.warns(UserWarning, match="does not keep .*: File too large"):
            reports += stream
    assert numbers(reports) == alone(spec) and not any(taken(reports))
    assert folders(shelves) == []


# ---- room ----------------------------------------------------------------------------------------


def put(shelves: Path, name: str, size: int, used: float) -> Path:
    folder = shelves / name
    folder.mkdir(parents=True)
    (folder / "000004.safetensors").write_bytes(b"x" * size)
    os.utime(folder, (used, used))
    return folder


def test_the_shelves_used_longest_ago_make_room_but_never_the_one_just_written(
    shelves,
):
    put(shelves, "b-old", 100, used=100)
    put(shelves, "a-older", 100, used=50)
    put(shelves, "c-new", 100, used=200)
    just = put(shelves, "just-written", 100, used=10)
    (shelves / "a-older.lock").touch()
    make_room(shelves, just, 250)
    assert [f.name for f in folders(shelves)] == ["c-new", "just-written"]
    make_room(shelves, just, 0)
    assert folders(shelves) == [just]


def test_what_was_used_within_the_kept_seconds_makes_no_room(shelves):
    put(shelves, "old", 100, used=100)
    put(shelves, "now", 100, used=time.time())
    just = put(shelves, "just-written", 100, used=time.time())
    make_room(shelves, just, 0, kept_seconds=3600)
    assert [f.name for f in folders(shelves)] == ["just-written", "now"]


def test_to_take_a_shelf_is_to_use_it(shelves, monkeypatch):
    short = {"budget.steps": 2, "budget.eval_every": 2}
    specs = [spec_of(**short, seed=seed) for seed in range(3)]
    keys = [key_of(spec) for spec in specs]
    for index in (0, 1):
        run(specs[index])
        os.utime(shelves / keys[index], (100 + index, 100 + index))
    assert taken(run(specs[0]))[0]
    size = sum(file.stat().st_size for file in (shelves / keys[0]).iterdir())
    monkeypatch.setattr(encoder_cache, "MOST_BYTES", 2 * size + size // 2)
    run(specs[2])
    assert {folder.name for folder in folders(shelves)} == {keys[0], keys[2]}


# ---- interruptions -------------------------------------------------------------------------------


def test_a_resumed_trial_gives_the_same_numbers_with_and_without_the_shelf(shelves, monkeypatch):
    spec = spec_of(**{"budget.checkpoint": "best"})
    whole, states = [], []
    for report in train(spec):
        whole.append(report)
        states.append(io.BytesIO())
        torch.save(report.snapshot(), states[-1])

    for at, state in [*enumerate(states)][:5:2]:  # in each stage and between them
        for place in (shelves.parent, shelves.parent / f"empty-{at}"):
            monkeypatch.setenv("TUNE_SSL_CACHE", str(place))
            state.seek(0)
            torch.manual_seed(at)
            rest = run(spec, resume=torch.load(state, weights_only=True))
            assert numbers(rest) == numbers(whole[at + 1 :]), at
            expected = at < 2 and place == shelves.parent
            assert taken(rest) == [expected and r.stage == "pretrain" for r in rest], at


def test_a_report_says_how_many_steps_another_trial_trained(shelves):
    """Those that this one trained before an interruption are its own."""
    spec = spec_of()
    with closing(train(spec)) as stream:
        first = next(stream)
        state = first.snapshot()
    trained = run(spec)  # meanwhile another trial trains all of it
    pretrained = max(r.step for r in trained if r.stage == "pretrain")
    assert {report.reused for report in [first, *trained]} == {0}
    assert run(spec)[-1].reused == pretrained
    rest = run(spec, resume=state)
    assert taken(rest)[:2] == [True, True] and rest[-1].reused == pretrained - first.step > 0


def test_who_trained_the_rest_of_a_shelf_lets_others_take_the_whole(shelves):
    spec = spec_of()
    with closing(train(spec)) as stream:
        state = next(stream).snapshot()
    run(spec, resume=state)
    reports = run(spec)
    assert taken(reports)[:3] == [True] * 3 and numbers(reports) == alone(spec)


def test_a_resume_after_the_pretraining_waits_for_nobody(shelves):
    spec = spec_of()
    with closing(train(spec)) as stream:
        for _ in range(3):
            state = next(stream).snapshot()
    for file in shelves.rglob("*.safetensors"):
        file.unlink()
    with FileLock(f"{folders(shelves)[0]}.lock"):
        rest = run(spec, resume=state)
    assert json.loads(numbers(rest)) == json.loads(alone(spec))[3:]
