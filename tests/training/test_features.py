"""A frozen encoder's features are computed once: the same numbers with less work, whoever computed them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.helpers import full_disk, small_spec
from tune_ssl.base.files import make_room
from tune_ssl.base.spec import digest
from tune_ssl.data import store
from tune_ssl.data.augment import view
from tune_ssl.data.loading import load_data, stream
from tune_ssl.methods.supervised import SupervisedStage
from tune_ssl.models.encoders import build_encoder
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.training import features
from tune_ssl.training.features import FrozenFeatures
from tune_ssl.training.loop import Report, train
from tune_ssl.tuning.test_data import measure_test

VALIDATION = 288  # of digits' 1438 training images
FEW = 144  # of them left in the pool, for what sees every augmented version of each
SMALL_POOL = {"data.val_ratio": 0.9, "model.frozen_views": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of weights for small_cnn, the same in every test."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.save(build_encoder("small_cnn", 1, "small", (8, 8)).state_dict(), path)
    return str(path)


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where features are kept: for each test anew."""
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def spec_of(weights) -> Any:
    """`spec_of(method, **values)`: on the frozen encoder, un-augmented, with the cache on."""

    def build(method: str = "supervised", **values: Any) -> TrialSpec:
        own = {"model.weights": weights, "model.freeze": "all", "compute.cache": True}
        return small_spec(method, **{**own, "method.labeled_view": "none", **values})

    return build


def run(spec: TrialSpec) -> list[Report]:
    return list(train(spec))


def numbers(reports: list[Report]) -> str:
    """All that reports say, but the time; as text, for NaN is equal to NaN here."""
    return json.dumps([[r.stage, r.step, r.images_seen, r.metrics, r.result] for r in reports])


def features_of(reports: list[Report]) -> FrozenFeatures:
    found = reports[-1].trained.data.features
    assert isinstance(found, FrozenFeatures)
    return found


def state(reports: list[Report]) -> dict[str, Tensor]:
    return reports[-1].trained.network.state_dict()


def rows_of(kept: Path) -> dict[str, int]:
    """file -> how many rows it has, over all folders."""
    return {
        path.stem: int(np.fromfile(path, np.uint8).sum()) for path in sorted(kept.rglob("*.done"))
    }


def table_of(name: str, versions: int) -> str:
    """The name of the table of a view of digits, at the published strength."""
    ops = repr(view(name, image_size=8, channels=1, flip=False))
    return f"train.{name}.{versions}.{digest({'view': ops})[:6]}"


def folders(kept: Path) -> set[str]:
    return {path.name for path in kept.iterdir() if path.is_dir()} if kept.exists() else set()


# ---- the same numbers ----------------------------------------------------------------------------


def test_training_on_features_gives_the_numbers_of_training_through_the_frozen_encoder(
    spec_of, monkeypatch
):
    spec = spec_of(**{"optim.ema_decay": 0.0, "budget.eval_images": "all"})
    ours = run(spec)
    assert ours[-1].trained.data.features is not None
    monkeypatch.setattr(SupervisedStage, "on_features", False)
    through = run(spec)
    assert through[-1].trained.data.features is None
    for mine, theirs in zip(ours, through, strict=True):
        assert mine.metrics.keys() == theirs.metrics.keys()
        for name, value in theirs.metrics.items():
            assert mine.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert mine.metrics["val/accuracy"] == theirs.metrics["val/accuracy"]
    for name, value in state(through).items():
        torch.testing.assert_close(state(ours)[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_a_second_trial_computes_nothing_and_gives_the_very_same_numbers(
    spec_of, kept, monkeypatch
):
    first = run(spec_of())
    assert features_of(first).spent > 0
    before = rows_of(kept)
    monkeypatch.setattr(FrozenFeatures, "_encoded", None)  # would fail
    second = run(spec_of())
    assert features_of(second).spent == features_of(second).waited == 0
    assert numbers(second) == numbers(first)
    assert all(torch.equal(value, state(first)[name]) for name, value in state(second).items())
    assert rows_of(kept) == before


def test_only_the_rows_that_a_trial_looks_at_are_computed(spec_of, kept):
    run(spec_of(**{"budget.eval_images": "all"}))
    assert rows_of(kept) == {"train.none.1": 40 + VALIDATION}


def test_each_version_of_a_view_is_the_image_augmented_by_a_stream_of_its_own(spec_of):
    """A slow second implementation: image by image, straight from the store."""
    reports = run(spec_of(**{"method.labeled_view": "strong", "model.frozen_views": 3}))
    found, data = features_of(reports), load_data(spec_of().data, 0, torch.device("cpu"))
    data.mean, data.std = found.data.mean, found.data.std
    table = found.tables[table_of("strong", 3)]
    assert sorted(np.flatnonzero(table.done)) == sorted(data.split.labeled)
    encoder, view = found.encoder.eval(), data.view("strong")
    seed = zlib.crc32(b"strong")
    for row in data.split.labeled[:5].tolist():
        image = torch.from_numpy(np.array(data.store.train.images[row]))[None]
        seen = []
        for version in range(3):
            augmented = view(image, stream(seed, row * 1000 + version))
            with torch.no_grad():
                expected = encoder(found.data.normalize(augmented))[0]
            torch.testing.assert_close(
                torch.from_numpy(table.values[version, row].copy()), expected, atol=1e-5, rtol=1e-4
            )
            seen.append(expected)
        assert not torch.equal(seen[0], seen[1])


def test_a_step_draws_each_of_the_versions_and_no_other(spec_of):
    reports = run(spec_of(**{"method.labeled_view": "strong", "model.frozen_views": 3}))
    found = features_of(reports)
    labeled = reports[-1].trained.data.sets.labeled.images
    positions = torch.arange(40)
    drawn = {
        found.draw(labeled, "strong", positions, stream(0, n))[7].numpy().tobytes()
        for n in range(40)
    }
    row = labeled.pieces[0].indices[7]
    assert drawn == {found.tables[table_of("strong", 3)].values[v, row].tobytes() for v in range(3)}


def test_fixmatch_on_features_sees_weak_and_strong_versions_of_the_same_images(spec_of, kept):
    spec = spec_of("fixmatch", **SMALL_POOL, **{"method.threshold": 0.0})
    reports = run(spec)
    assert rows_of(kept) == {
        "train.none.1": 40 + 1438 - FEW,
        table_of("randaugment", 2): FEW,
        table_of("weak", 2): FEW,
    }
    assert numbers(run(spec)) == numbers(reports)


@pytest.mark.parametrize("method", ["soft_kmeans", "kmeans", "supervised", "simclr"])
def test_every_method_that_trains_on_features_says_the_same_the_second_time(
    method, spec_of, monkeypatch
):
    own = {"method.init": "random"} if method == "simclr" else {}
    spec = spec_of(method, **SMALL_POOL, **own)
    first = run(spec)
    assert features_of(first).spent > 0
    assert numbers(run(spec)) == numbers(first)


# ---- who finds what another left -----------------------------------------------------------------


def test_another_budget_method_and_learning_rate_take_the_rows_that_are_there(spec_of, kept):
    run(spec_of("fixmatch", **SMALL_POOL))
    (folder,) = folders(kept)
    assert rows_of(kept)[table_of("weak", 2)] == FEW
    other = {"data.num_labels": 20, "optim.lr": 0.01}
    for method in ("soft_kmeans", "kmeans"):
        reports = run(spec_of(method, **SMALL_POOL, **other))
        assert folders(kept) == {folder} and rows_of(kept)[table_of("weak", 2)] == FEW
    assert features_of(reports).spent == 0, "soft_kmeans left the strong view, fixmatch all else"


def test_a_larger_label_budget_adds_only_the_rows_that_are_missing(spec_of, kept, monkeypatch):
    run(spec_of(**{"data.num_labels": 20, "budget.eval_images": "all"}))
    computed: list[int] = []
    compute = FrozenFeatures._encoded

    def counted(self: FrozenFeatures, piece: Any, view: str, rows: Any, version: int) -> Any:
        computed.extend(rows)
        return compute(self, piece, view, rows, version)

    monkeypatch.setattr(FrozenFeatures, "_encoded", counted)
    run(spec_of(**{"data.num_labels": 50, "budget.eval_images": "all"}))
    assert len(computed) == 30 and rows_of(kept) == {"train.none.1": 50 + VALIDATION}


OTHERS = {
    "model.encoder": "keras_cnn",
    "data.image_size": 16,
    "model.stem": "large",
    "mean": None,
    "weights": None,
}


@pytest.mark.parametrize("key", OTHERS)
def test_other_weights_other_images_and_another_normalisation_lie_in_another_folder(
    key, spec_of, kept, tmp_path
):
    run(spec_of())
    values: dict[str, Any] = {key: OTHERS[key]}
    if key == "mean":
        values = {"model.mean": [0.4], "model.std": [0.2]}
    if key in ("weights", "model.encoder"):
        torch.manual_seed(4)
        state = build_encoder(values.get("model.encoder", "small_cnn"), 1, "small", (8, 8))
        torch.save(state.state_dict(), tmp_path / "other.pt")
        values = {"model.weights": str(tmp_path / "other.pt")} | (
            {} if key == "weights" else values
        )
    reports = run(spec_of(**values))
    assert len(folders(kept)) == 2 and features_of(reports).spent > 0


def test_random_weights_are_shared_only_where_they_are_the_same_ones(spec_of, kept):
    """The seed of a stage is its own: that of a finetuning without its pretraining is no supervised one."""
    random = {"model.weights": "none", "budget.eval_images": "all"}
    control = {**random, "method.init": "random"}
    run(spec_of(**random))
    assert len(folders(kept)) == 1
    run(spec_of(**random, **{"data.num_labels": 20, "data.split_seed": 0}))
    assert len(folders(kept)) == 1
    finetuned = run(spec_of("simclr", **control))
    assert len(folders(kept)) == 2
    assert features_of(finetuned).spent > 0
    probed = {"method.transfer": "linear_probe"}
    run(spec_of("simclr", **control, **probed))
    assert len(folders(kept)) == 3
    run(spec_of("simsiam", **control))
    assert len(folders(kept)) == 3, "simsiam's second stage begins as simclr's does"
    run(spec_of(**random, seed=1))
    assert len(folders(kept)) == 4


def test_a_pretrained_encoders_features_are_shared_by_the_trials_that_share_it(spec_of, kept):
    pretrained = {"model.weights": "none"}
    first = run(spec_of("simclr", **pretrained))
    assert features_of(first).spent > 0 and len(folders(kept)) == 1
    again = run(spec_of("simclr", **pretrained))
    assert features_of(again).spent == 0 and numbers(again) == numbers(first)
    run(spec_of("simclr", **pretrained, **{"method.temperature": 0.3}))
    assert len(folders(kept)) == 2


def test_an_encoder_that_a_trial_trained_with_labels_leaves_nothing_behind(spec_of, kept):
    probe = {"method.transfer": "finetune", "model.weights": "none"}
    reports = run(spec_of("simclr_joint", **probe))
    assert features_of(reports).folder is None and features_of(reports).spent > 0
    assert folders(kept) == set()


# ---- where nothing is kept -----------------------------------------------------------------------


def test_without_the_cache_nothing_is_on_the_disk_and_the_numbers_are_the_same(spec_of, kept):
    spec = spec_of("fixmatch", **SMALL_POOL, **{"method.labeled_view": "weak"})
    without = run(override(spec, {"compute.cache": False}))
    assert not kept.exists()
    assert numbers(run(spec)) == numbers(without)
    assert kept.exists()


def test_a_full_disk_is_a_warning_and_the_trial_goes_on_in_memory(spec_of, kept):
    spec = spec_of()
    store.prepare(spec.data)
    with (
        full_disk(10_000),
        pytest.warns(UserWarning, match="does not keep these features: File too large") as told,
    ):
        reports = run(spec)
    (folder,) = folders(kept)
    assert str(told[0].message) == f"'{kept / folder}' does not keep these features: File too large"
    assert len(told) == 1, "once"
    assert numbers(reports) == numbers(run(override(spec, {"compute.cache": False})))


@pytest.mark.parametrize("how", ["error", "part of a row"])
def test_a_disk_that_fills_up_on_the_way_is_a_warning_and_no_row_of_it_counts(
    how, spec_of, kept, monkeypatch
):
    spec, write, calls = spec_of(), os.pwrite, [0]

    def filling(file: int, content: bytes, at: int) -> int:
        calls[0] += 1
        if calls[0] < 100:
            return write(file, content, at)
        if how == "error":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[: len(content) // 2], at)

    monkeypatch.setattr(features.os, "pwrite", filling)
    with pytest.warns(UserWarning, match="does not keep these features: No space left on device"):
        reports = run(spec)
    monkeypatch.undo()
    (path,) = kept.rglob("*.done")
    rows = np.flatnonzero(np.fromfile(path, np.uint8))
    assert 0 < len(rows) < 100
    table = features_of(reports).tables["train.none.1"]
    rows = rows[table.done[rows] == 1]
    right = table.values[0, rows]
    np.testing.assert_allclose(np.load(path.with_suffix(".npy"))[0, rows], right, atol=1e-6)
    assert numbers(reports) == numbers(run(override(spec, {"compute.cache": False})))


@pytest.mark.parametrize("file", ["train.none.1.npy", "train.none.1.done"])
def test_damaged_files_are_a_warning_or_computed_again_and_never_wrong_numbers(file, spec_of, kept):
    expected = numbers(run(spec_of()))
    (path,) = kept.rglob(file)
    os.truncate(path, path.stat().st_size // 2)
    if file.endswith(".npy"):
        with pytest.warns(UserWarning, match="does not keep these features"):
            assert numbers(run(spec_of())) == expected
    else:  # computed again, in other batches
        again = run(spec_of())
        assert features_of(again).spent > 0
        for mine, theirs in zip(again, json.loads(expected), strict=True):
            assert mine.metrics == pytest.approx(theirs[3], rel=1e-4, abs=1e-6)


def test_a_folder_that_is_cleared_away_while_a_trial_runs_does_not_end_it(spec_of, kept):
    expected = numbers(run(spec_of()))
    for path in kept.rglob("*.*"):
        path.unlink()
    reports: Iterator[Report] = train(spec_of())
    got = [next(reports)]
    for path in [*kept.rglob("*.*")]:
        path.unlink()
    assert numbers([*got, *reports]) == expected


def test_the_features_that_were_used_longest_ago_make_room(spec_of, kept, monkeypatch):
    run(spec_of())
    (old,) = folders(kept)
    os.utime(kept / old, (1, 1))
    monkeypatch.setattr("tune_ssl.training.features.MOST_BYTES", 10)
    run(spec_of(**{"model.mean": [0.4], "model.std": [0.2]}))
    assert old not in folders(kept) and len(folders(kept)) == 1
    make_room(kept, kept, 10)
    assert folders(kept) == set()


# ---- several processes ---------------------------------------------------------------------------


def test_two_processes_at_once_share_the_work_and_agree(spec_of, kept, weights):
    code = """
        import sys, torch
        torch.set_num_threads(1)
        from tests.support.helpers import small_spec
        from tests.training.test_features import numbers
        from tune_ssl.training.loop import train
        values = {"model.weights": sys.argv[1], "model.freeze": "all", "compute.cache": True}
        values |= {"data.val_ratio": 0.9, "model.frozen_views": 2}
        print(numbers(list(train(small_spec("fixmatch", **values)))))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), weights]
    store.prepare(spec_of().data)
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (first, _), (second, _) = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert first == second and "val/accuracy" in first
    assert len(folders(kept)) == 1
    assert rows_of(kept)[table_of("weak", 2)] == FEW


def test_who_waits_for_another_process_takes_its_rows_and_says_how_long(spec_of, kept):
    spec = spec_of(**{"budget.eval_images": "all"})
    first = run(spec)
    table = features_of(first).tables["train.none.1"]
    rows = np.flatnonzero(table.done)
    done = np.memmap(table.path.with_suffix(".done"), np.uint8, "r+")
    block = int(rows[0]) // features.BLOCK
    mine = rows[rows // features.BLOCK == block]
    done[mine] = 0  # as if another process were at it
    with table.claim(block, wait=False) as held:
        assert held
        import threading

        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(run(spec)))
        thread.start()
        thread.join(3)
        assert thread.is_alive(), "it waits"
        done[mine] = 1
    thread.join(60)
    found = features_of(got[0])
    assert found.spent == 0 and found.waited > 0.5
    assert numbers(got[0]) == numbers(first)
    assert got[0][-1].waited == pytest.approx(found.waited)


# ---- the test part -------------------------------------------------------------------------------


def test_the_test_part_is_looked_at_only_when_a_confirmation_measures_it(
    spec_of, kept, monkeypatch
):
    def refuse(*_: Any) -> None:
        raise AssertionError("test data")

    with monkeypatch.context() as patched:
        patched.setattr(store, "open_test", refuse)
        reports = run(spec_of("fixmatch", **SMALL_POOL))
    assert not any(name.startswith("test") for name in rows_of(kept))
    values = measure_test(reports[-1].trained)["result"]
    assert rows_of(kept)["test.none.1"] == values["test/count"] == 359
    assert np.trace(values["test/confusion"]) / 359 == pytest.approx(values["test/accuracy"])
