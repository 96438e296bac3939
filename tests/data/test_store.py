"""A store is built once, whole or not at all, and opened without the libraries that built it."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.support.helpers import full_disk
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.sets import Images, LabeledSet, Piece, build_sets
from tune_ssl.data.splits import make_split
from tune_ssl.data.store import find_store, open_store, open_test, prepare

DIGITS = DataSpec(dataset="digits")


def run(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    prepare(DIGITS, cache=folder)
    return folder


def test_digits_are_uint8_maps_with_the_train_parts_own_mean_and_std(cache):
    store = prepare(DIGITS, cache=cache)
    images = store.train.images
    assert isinstance(images, np.memmap) and not images.flags.writeable
    assert images.shape == (1438, 1, 8, 8) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert store.train.labels.dtype == np.int64 and len(store.train.labels) == 1438
    assert store.shape == (1, 8, 8) and store.flip is False
    assert store.class_names == tuple("0123456789")
    assert store.mean == pytest.approx([images[:].mean() / 255])
    assert store.std == pytest.approx([images[:].std() / 255])
    assert store.info()["counts"] == {"train": 1438, "test": 359}


def test_the_test_part_is_reached_by_open_test_only(cache):
    store = prepare(DIGITS, cache=cache)
    assert not hasattr(store, "test")
    test = open_test(store)
    assert test.images.shape == (359, 1, 8, 8) and len(test.labels) == 359


def test_the_environment_names_the_cache(cache, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(cache))
    assert prepare(DIGITS).path.parent.parent == cache


def test_a_pickled_store_carries_its_path_and_not_its_pixels(cache):
    store = prepare(DIGITS, cache=cache)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    assert again.digest == store.digest and isinstance(again.train.images, np.memmap)


def test_a_built_store_opens_with_numpy_alone(cache):
    code = """
        import sys
        from pathlib import Path
        from tune_ssl.data.splits import make_split
        from tune_ssl.data.store import prepare
        from tune_ssl.base.spec import DataSpec
        store = prepare(DataSpec(dataset="digits"), cache=Path(sys.argv[1]))
        print(store.digest, {"torch", "torchvision", "sklearn", "PIL"} & set(sys.modules))
    """
    assert finish(run(code, cache)).split() == [prepare(DIGITS, cache=cache).digest, "set()"]


def test_three_processes_at_once_build_one_store(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from tune_ssl.data.datasets import Source, SourcePart, dataset
        from tune_ssl.data.store import prepare
        from tune_ssl.base.spec import DataSpec

        @dataset("digits", flip=False)
        def counted(spec):
            with open(sys.argv[2], "a") as file:
                file.write("built\\n")
            part = SourcePart(np.arange(2), np.zeros((2, 1, 8, 8), np.uint8))
            return Source(("a", "b"), (1, 8, 8), {"train": part, "test": part})

        print(prepare(DataSpec(dataset="digits"), cache=Path(sys.argv[1])).digest)
    """
    racing = [run(code, tmp_path / "cache", tmp_path / "builds") for _ in range(3)]
    assert len({finish(process) for process in racing}) == 1
    assert (tmp_path / "builds").read_text() == "built\n"


def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_finished(tmp_path):
    code = """
        import os, sys
        from pathlib import Path
        import numpy as np
        from tune_ssl.data.datasets import SourcePart, Source, dataset
        from tune_ssl.data.store import prepare
        from tune_ssl.base.spec import DataSpec

        def images():
            for row in range(2000):
                yield np.zeros((3, 64, 64), np.uint8)
            os._exit(0)  # as if the power went, after some blocks were written

        @dataset("digits", flip=False)
        def dies(spec):
            return Source(("a",), (3, 64, 64), {"train": SourcePart(np.zeros(3000, np.int64), images())})

        prepare(DataSpec(dataset="digits"), cache=Path(sys.argv[1]))
    """
    finish(run(code, tmp_path))
    assert any(tmp_path.rglob("train.images.bin")), "the build had begun to write"
    assert find_store(DIGITS, cache=tmp_path) is None
    assert len(prepare(DIGITS, cache=tmp_path).train.labels) == 1438
    assert len(list(tmp_path.rglob("train.images.bin"))) == 1, "what was left is cleared away"


def test_a_damaged_store_is_not_opened_and_is_built_again(tmp_path):
    store = prepare(DIGITS, cache=tmp_path)
    os.truncate(store.path / "test.images.bin", 1000)
    with pytest.raises(
        UserError, match="is no complete data store; `tune-ssl data prepare` builds"
    ):
        open_store(store.path)
    assert prepare(DIGITS, cache=tmp_path).digest == store.digest
    assert open_test(open_store(store.path)).images.shape == (359, 1, 8, 8)


def test_another_image_size_is_another_store_and_the_same_spec_the_same_bytes(cache, tmp_path):
    large = prepare(DataSpec(dataset="digits", image_size=32), cache=cache)
    assert large.shape == (1, 32, 32)
    small = prepare(DIGITS, cache=cache)
    assert small.path != large.path and small.digest != large.digest
    assert prepare(DIGITS, cache=tmp_path).digest == small.digest
    assert prepare(DataSpec(num_labels=40, batch_size=8), cache=cache).path == small.path


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as caught:
        prepare(DIGITS, cache=tmp_path / "file")
    assert str(caught.value) == (
        f"the data cache '{tmp_path / 'file' / 'stores'}' cannot be written: Not a directory; "
        "TUNE_SSL_CACHE names another folder"
    )


def test_a_disk_that_fills_up_is_one_clear_line_and_leaves_no_store(tmp_path):
    with full_disk(50_000), pytest.raises(UserError) as caught:
        prepare(DIGITS, cache=tmp_path)
    start = f"the data cache '{tmp_path / 'stores'}' cannot be written: File too large"
    assert str(caught.value).startswith(start)
    assert find_store(DIGITS, cache=tmp_path) is None
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


def test_meta_is_plain_json_with_what_info_shows(cache):
    store = prepare(DIGITS, cache=cache)
    saved = json.loads((store.path / "meta.json").read_text())
    assert {**saved, "path": str(store.path)} == store.info()
    assert saved["skipped"] == {} and saved["build_seconds"] > 0


def test_sets_are_views_of_the_store_with_labels_only_where_they_may_be_seen(cache):
    store = prepare(DIGITS, cache=cache)
    split = make_split(
        store.train.labels, store.class_names, DataSpec(num_labels=40), seed=0, has_val=False
    )
    sets = build_sets(store, split)
    assert (len(sets.labeled), len(sets.unlabeled), len(sets.validation)) == (40, 1150, 288)
    assert sets.unlabeled.images.pieces[0].images is store.train.images
    positions = np.array([39, 0, 7])
    np.testing.assert_array_equal(
        sets.labeled.images.gather(positions), store.train.images[split.labeled[positions]]
    )
    np.testing.assert_array_equal(sets.labeled.labels, store.train.labels[split.labeled])
    assert not hasattr(sets.unlabeled, "labels")


def test_a_label_below_zero_never_enters_a_labeled_set():
    rows = Images((Piece(np.zeros((2, 1, 8, 8), np.uint8), np.arange(2)),))
    with pytest.raises(ValueError, match="a labeled set has label -1, but all must be >= 0"):
        LabeledSet(rows, np.array([0, -1]))
    with pytest.raises(ValueError, match="there are 2 images, but 1 labels"):
        LabeledSet(rows, np.array([0]))


def test_gather_runs_over_all_pieces_in_the_asked_order():
    first = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    images = Images((Piece(first, np.array([3, 1])), Piece(first + 10, np.array([0]))))
    assert images.gather(np.array([2, 0, 1, 2])).ravel().tolist() == [10, 3, 1, 10]
    with pytest.raises(IndexError, match=r"positions must be in 0\.\.2"):
        images.gather(np.array([3]))
