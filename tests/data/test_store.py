"""A store is built once, whole or not at all, and opened without the libraries that built it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.helpers import full_disk
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.loading import Loader, load_data
from tune_ssl.data.rows import EncodedImages
from tune_ssl.data.sets import Images, LabeledSet, Piece, build_sets
from tune_ssl.data.splits import make_split
from tune_ssl.data.store import (
    Store,
    changes_since,
    find_store,
    open_store,
    open_test,
    pinned_store,
    prepare,
)

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


def test_some_classes_of_a_store_are_a_task_of_their_own_on_the_same_rows(cache):
    whole = prepare(DIGITS, cache=cache)
    spec = DataSpec(dataset="digits", classes=["7", "0", "3"])
    for store in (
        prepare(spec, cache=cache),
        pickle.loads(pickle.dumps(prepare(spec, cache=cache))),
    ):
        assert store.class_names == ("7", "0", "3") and store.task(spec).num_classes == 3
        assert (store.path, store.digest) == (whole.path, whole.digest)
        for own, every in ((store.train, whole.train), (open_test(store), open_test(whole))):
            assert own.images.shape == every.images.shape
            for new, old in ((0, 7), (1, 0), (2, 3)):
                np.testing.assert_array_equal(own.labels == new, every.labels == old)
            others = ~np.isin(every.labels, [7, 0, 3])
            np.testing.assert_array_equal(own.labels == -1, others)
            np.testing.assert_array_equal(own.rows, np.flatnonzero(~others))
        test = np.bincount(open_test(whole).labels)
        assert store.counts["test"] == test[7] + test[0] + test[3]
        assert store.counts["train"] == len(store.train.rows)


def test_a_class_that_the_store_does_not_have_is_one_line(cache):
    with pytest.raises(UserError) as caught:
        prepare(DataSpec(dataset="digits", classes=["7", "70"]), cache=cache)
    assert str(caught.value) == (
        "data.classes has '70', which is no class of digits; did you mean '7'? (known: 0, 1, 2, 3, 4 and 5 more)"
    )


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


# ---- a folder of files ---------------------------------------------------------------------------


def photo(path: Path, seed: int, size: tuple[int, int] = (24, 16)) -> Path:
    """A picture with smooth, large shapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """cat/ and dog/, of ten different PNG files each; the cache lies beside them."""
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    for seed in range(20):
        photo(tmp_path / "data" / ("cat" if seed < 10 else "dog") / f"{seed:02d}.png", seed)
    return tmp_path / "data"


def spec_of(root: Path, **data: object) -> DataSpec:
    return DataSpec(dataset="folder", root=str(root), image_size=16, **data)


def test_an_own_validation_part_has_the_tasks_classes_alone(root):
    for seed in range(30, 36):
        photo(root / "train" / ("cow", "cat", "dog")[seed % 3] / f"{seed}.png", seed)
    for seed in range(40, 46):
        photo(root / "val" / ("cow", "cat", "dog")[seed % 3] / f"{seed}.png", seed)
        photo(root / "test" / ("cow", "cat", "dog")[seed % 3] / f"{seed + 50}.png", seed + 50)
    for name in ("cat", "dog"):
        shutil.rmtree(root / name)
    spec = spec_of(root, classes=["dog", "cow"])
    sets = load_data(spec, 0, torch.device("cpu")).sets
    assert sorted(sets.validation.labels.tolist()) == [0, 0, 1, 1]
    assert sorted(sets.labeled.labels.tolist()) == [0, 0, 1, 1]
    mixed = spec_of(root, classes=["dog", "cow"], unlabeled_mismatch=0.5)
    assert sorted(load_data(mixed, 0, torch.device("cpu")).sets.unlabeled.hidden_labels)[0] == -1


def test_where_nobody_knows_the_classes_of_unlabeled_images_no_share_of_them_is_asked_for(root):
    photo(root / "unlabeled" / "x.png", 99)
    for name in ("cat", "dog"):
        (root / name).rename(root / f"{name}s")
        (root / "train").mkdir(exist_ok=True)
        (root / f"{name}s").rename(root / "train" / name)
    photo(root / "train" / "cow" / "y.png", 98)
    photo(root / "train" / "cow" / "z.png", 97)
    with pytest.raises(UserError) as caught:
        load_data(
            spec_of(root, classes=["cat", "dog"], unlabeled_mismatch=0.5), 0, torch.device("cpu")
        )
    assert str(caught.value) == (
        "data.unlabeled_mismatch is 0.5, but the dataset has 1 unlabeled images of its own, whose classes are not known"
    )


def stores(root: Path) -> list[Path]:
    return sorted(p for p in (root.parent / "cache" / "stores").iterdir() if p.is_dir())


def loader_of(store: Store) -> Loader:
    spec = DataSpec(num_labels=4, batch_size=4)
    data = load_data(spec, 0, torch.device("cpu"), store=store)
    return Loader(data, spec, ("weak",), ("weak", "strong"), seed=5)


def same_batches(first: Loader, second: Loader, steps: int) -> None:
    for _ in range(steps):
        a, b = first.next(), second.next()
        assert torch.equal(a.labels_N, b.labels_N)
        for mine, theirs in zip(
            (*a.labeled, *a.unlabeled), (*b.labeled, *b.unlabeled), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_kept_files_give_the_same_images_digest_and_batches_as_kept_pixels(root):
    pixels, files = (prepare(spec_of(root, store=kind)) for kind in ("pixels", "encoded"))
    assert isinstance(files.train.images, EncodedImages) and files.path != pixels.path
    assert (files.digest, files.mean, files.std) == (pixels.digest, pixels.mean, pixels.std)
    np.testing.assert_array_equal(files.train.images, pixels.train.images)
    np.testing.assert_array_equal(open_test(files).images[1:3], open_test(pixels).images[1:3])
    rows = np.array([3, 0, 3])
    np.testing.assert_array_equal(files.train.images[rows], pixels.train.images[rows])
    same_batches(loader_of(files), loader_of(pixels), 12)


def test_a_store_of_files_holds_their_own_bytes_one_after_another(root):
    store = prepare(spec_of(root, store="encoded"))
    assert not list(store.path.glob("*.images.bin"))
    size = sum(path.stat().st_size for path in store.path.glob("*.files.bin"))
    assert size == sum(path.stat().st_size for path in root.rglob("*.png")) == store.meta["bytes"]


def test_rows_of_kept_files_count_from_the_end_and_come_to_an_end_as_an_arrays_do(root):
    store = prepare(spec_of(root, store="encoded"))
    images = store.train.images
    np.testing.assert_array_equal(images[-1], images[len(images) - 1])
    assert len(list(images)) == len(images)


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_a_resumed_loader_of_kept_files_goes_on_with_the_same_batches(taken, root, monkeypatch):
    monkeypatch.setattr("tune_ssl.data.loading.BLOCK_PIXELS", 4 * 12 * 256)  # four steps a block
    store = prepare(spec_of(root, store="encoded"))
    first = loader_of(store)
    for _ in range(taken):
        first.next()
    state = pickle.loads(pickle.dumps(first.state()))
    second = loader_of(store)
    second.next()
    second.load(state)
    same_batches(first, second, 9)


def test_by_itself_the_kind_follows_from_the_size_of_the_pixels_and_kept_files_are_said(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    for index in range(10):  # 700 bytes, and 30,000 of pixels
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100), (25 * index, 9 * index, 99)).save(path)
    spec = DataSpec(dataset="folder", root=str(tmp_path / "data"))
    assert prepare(spec).meta["kind"] == "pixels"
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr("tune_ssl.data.build.PIXELS_UP_TO", 299_999)
    store = prepare(spec)
    assert store.meta["kind"] == "encoded"
    assert (
        "the files' own bytes are kept, and decoded for each batch: their pixels would take 0 MB "
        "(data.store)"
    ) in store.remarks()
    monkeypatch.setattr("tune_ssl.data.build.PIXELS_UP_TO", 300_000)
    shutil.rmtree(tmp_path / "cache")
    assert prepare(spec).meta["kind"] == "pixels"


def test_only_files_can_be_kept_as_they_are():
    with pytest.raises(UserError) as caught:
        prepare(DataSpec(dataset="digits", store="encoded", image_size=9))
    assert str(caught.value) == (
        "data.store is 'encoded', but only image files can be kept as they are: dataset folder"
    )


def test_files_that_were_touched_and_not_changed_have_the_same_store(root):
    first = prepare(spec_of(root))
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert prepare(spec_of(root)).path == first.path and stores(root) == [first.path]


def test_a_text_among_the_images_that_was_touched_makes_no_new_store(root):
    (root / "cat" / "notes.txt").write_text("no image")
    first = prepare(spec_of(root))
    os.utime(root / "cat" / "notes.txt", (1, 1))
    assert prepare(spec_of(root)).path == first.path


def changed(path: Path) -> None:
    """One byte of the pixels of a BMP file is another one; its size is the same."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))


def as_bmp(root: Path) -> None:
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.crop((0, 0, 16, 16)).save(path.with_suffix(".bmp"))
        path.unlink()


def test_a_file_of_other_content_and_the_same_size_is_another_store(root):
    as_bmp(root)
    first = prepare(spec_of(root))
    changed(root / "cat" / "03.bmp")
    second = prepare(spec_of(root))
    assert second.path != first.path and second.digest != first.digest
    assert stores(root) == sorted([first.path, second.path])
    assert prepare(spec_of(root)).path == second.path
    changed(root / "cat" / "03.bmp")  # as it was
    assert prepare(spec_of(root)).path == first.path and len(stores(root)) == 2


def test_another_folder_with_files_of_the_same_names_sizes_and_times_is_another_store(root):
    as_bmp(root)
    shutil.copytree(root, root.parent / "other")
    changed(root.parent / "other" / "cat" / "03.bmp")
    for path in root.parent.rglob("*.bmp"):
        os.utime(path, (1, 1))  # as archives do that are made alike each time
    first, second = prepare(spec_of(root)), prepare(spec_of(root.parent / "other"))
    assert second.digest != first.digest


def test_a_moved_folder_has_the_same_store(root):
    first = prepare(spec_of(root))
    root.rename(root.parent / "moved")
    assert prepare(spec_of(root.parent / "moved")).path == first.path


def test_a_run_goes_on_with_the_store_that_it_began_with_though_the_folder_changed(root):
    first = prepare(spec_of(root))
    photo(root / "cat" / "more.png", 99)
    assert prepare(spec_of(root)).digest != first.digest
    assert pinned_store(spec_of(root), str(first.path), first.digest).path == first.path


def test_a_store_that_is_gone_is_built_again_from_files_that_are_what_they_were(root):
    first = prepare(spec_of(root))
    shutil.rmtree(first.path)
    assert pinned_store(spec_of(root), str(first.path), first.digest).digest == first.digest


def test_changed_files_without_the_store_that_a_run_began_with_are_one_line_with_both_digests(root):
    first = prepare(spec_of(root))
    photo(root / "cat" / "more.png", 99)
    shutil.rmtree(first.path)
    with pytest.raises(UserError) as caught:
        pinned_store(spec_of(root), str(first.path), first.digest)
    assert str(caught.value) == (
        f"folder has digest {prepare(spec_of(root)).digest} on this machine, but the run began with "
        f"{first.digest}: the data changed, and the store {first.path} is gone; bring "
        "the images back as they were, or start a new run"
    )


def test_how_the_files_differ_from_those_of_a_store_is_counted(root):
    store = prepare(spec_of(root))
    assert changes_since(store, spec_of(root)) == ""
    photo(root / "cat" / "more.png", 99)
    (root / "dog" / "10.png").unlink()
    for name in ("00", "01"):
        photo(root / "cat" / f"{name}.png", 98)
    assert changes_since(store, spec_of(root)) == "1 more, 1 fewer, 2 changed"
    assert changes_since(prepare(DIGITS), DIGITS) == ""


def test_the_stores_used_longest_ago_make_room_but_never_the_one_just_built(root, monkeypatch):
    old, recent = prepare(spec_of(root)), prepare(spec_of(root, resize="pad"))
    os.utime(old.path, (1, 1))
    monkeypatch.setattr("tune_ssl.data.store.MOST_BYTES", 0)
    now = prepare(spec_of(root, resize="squash"))
    assert stores(root) == sorted([recent.path, now.path]), "a run may be at work on the recent one"
    monkeypatch.setattr("tune_ssl.data.store.KEPT_SECONDS", 0)
    last = prepare(spec_of(root, resize="squash", background="black"))
    assert stores(root) == [last.path]


def test_to_open_a_store_is_to_use_it(root, monkeypatch):
    first, second = prepare(spec_of(root)), prepare(spec_of(root, resize="pad"))
    for store in (first, second):
        os.utime(store.path, (1, 1))
    prepare(spec_of(root))
    monkeypatch.setattr("tune_ssl.data.store.MOST_BYTES", 0)
    now = prepare(spec_of(root, resize="squash"))
    assert stores(root) == sorted([first.path, now.path])


# ---- images that are there more than once --------------------------------------------------------


def as_other(path: Path, suffix: str, to: Path, **options: object) -> None:
    """The same picture as a file of another kind."""
    to.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
        image.save(to / f"{path.parent.name}-{path.stem}.{suffix}", **options)


def own_test_images(root: Path) -> None:
    for name in ("cat", "dog"):
        photo(root / "test" / name / "own.png", 50 + ord(name[0]))


@pytest.fixture
def copied(root) -> Path:
    """Two images of train are in test too, one in unlabeled, and one twice in train: as other files."""
    own_test_images(root)
    as_other(root / "cat" / "00.png", "bmp", root / "test" / "cat")
    as_other(root / "dog" / "10.png", "bmp", root / "test" / "dog")
    as_other(root / "cat" / "01.png", "bmp", root / "unlabeled")
    as_other(root / "cat" / "02.png", "bmp", root / "cat")
    photo(root / "unlabeled" / "own.png", 70)
    return root


def test_equal_images_in_other_files_are_counted_and_named_with_what_it_means(copied):
    store = prepare(spec_of(copied))
    assert store.meta["counts"] == {"train": 21, "test": 4, "unlabeled": 2}
    assert store.meta["duplicates"]["equal"] == {
        "train in test": 2,
        "train in train": 1,
        "unlabeled in train": 1,
    }
    assert store.remarks() == [
        "2 images of train are in test too (cat/00.png = test/cat/cat-00.bmp, dog/10.png = "
        "test/dog/dog-10.bmp): what is measured on test is too good; data.duplicates: drop takes them "
        "out of train",
        "1 image of train is there more than once (cat/cat-02.bmp = cat/02.png); data.duplicates: "
        "drop keeps one of each",
        "1 image of unlabeled is in train too (unlabeled/cat-01.bmp = cat/01.png); "
        "data.duplicates: drop keeps one of each",
    ]


def test_of_many_copies_two_are_named_and_the_others_counted(root):
    own_test_images(root)
    for path in sorted((root / "cat").glob("*.png"))[:7]:
        as_other(path, "bmp", root / "test" / "cat")
    assert (
        prepare(spec_of(root))
        .remarks()[0]
        .startswith(
            "7 images of train are in test too (cat/00.png = test/cat/cat-00.bmp, cat/01.png = "
            "test/cat/cat-01.bmp and 5 more): "
        )
    )


@pytest.mark.parametrize("kind", ["pixels", "encoded"])
def test_dropped_copies_are_taken_from_train_and_unlabeled_only(kind, copied):
    store = prepare(spec_of(copied, duplicates="drop", store=kind))
    assert store.meta["counts"] == {"train": 18, "test": 4, "unlabeled": 1}
    assert len(store.train.images) == len(store.train.labels) == 18
    every = [store.train.images, open_test(store).images, store.unlabeled.images]
    whole = np.concatenate([np.asarray(images) for images in every])
    assert len(np.unique(whole.reshape(23, -1), axis=0)) == 23
    assert (
        "2 images of train are in test too (cat/00.png = test/cat/cat-00.bmp, dog/10.png = "
        "test/dog/dog-10.bmp): taken out of it"
    ) in store.remarks()
    assert prepare(spec_of(copied, duplicates="drop", store=kind)).path == store.path


def test_refused_copies_are_one_line_for_each_kind_and_leave_no_store(copied):
    with pytest.raises(UserError) as caught:
        prepare(spec_of(copied, duplicates="refuse"))
    lines = str(caught.value).splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "data.duplicates is 'refuse', but 2 images of train are in test too",
        "data.duplicates is 'refuse', but 1 image of train is there more than once",
        "data.duplicates is 'refuse', but 1 image of unlabeled is in train too",
    ]
    assert stores(copied) == []


def test_without_copies_nothing_is_refused_or_said(root):
    store = prepare(spec_of(root, duplicates="refuse"))
    assert store.meta["duplicates"]["equal"] == {} and store.remarks() == []


def test_equal_images_with_different_labels_are_said(root):
    own_test_images(root)
    shutil.copy(root / "cat" / "00.png", root / "dog" / "copy.png")
    assert prepare(spec_of(root)).remarks() == [
        "1 image of train is there more than once (dog/copy.png = cat/00.png); data.duplicates: "
        "drop keeps one of each",
        "1 of the equal images have different labels",
    ]


def test_images_saved_again_with_loss_are_nearly_equal_which_is_said(root):
    for seed, name in ((0, "cat"), (10, "dog")):
        path = photo(root / name / f"{seed:02d}.png", seed, size=(192, 128))
        as_other(path, "jpg", root / "test" / name, quality=80)
    own_test_images(root)
    store = prepare(spec_of(root))
    assert store.meta["duplicates"]["equal"] == {} and store.meta["duplicates"]["near"] == 2
    assert store.remarks() == [
        "2 images of test and val look nearly like one that is trained on (not equal, and kept)"
    ]
