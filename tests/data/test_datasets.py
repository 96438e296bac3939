"""Every dataset gives the images it promises, and says in one line what is wrong with the files."""

import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from tests.image_folders import try_one
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.sets import build_sets
from tune_ssl.data.splits import make_split
from tune_ssl.data.store import open_test, prepare

CUT = "image file is truncated"


def picture(path, value=(200, 100, 50), *, size=(12, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes of ten 12x12 colour images each."""
    for index in range(10):
        picture(tmp_path / "data" / "train" / "cat" / f"{index}.png", (index, 0, 0))
        picture(tmp_path / "data" / "train" / "dog" / f"{index}.png", (0, index, 255))
    return tmp_path / "data"


def built(root, **data):
    spec = DataSpec(dataset="folder", root=str(root), **data)
    return prepare(spec, cache=root.parent / "cache")


def message(root, **data):
    with pytest.raises(UserError) as caught:
        built(root, **data)
    return str(caught.value)


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(
        UserError, match=r"data.dataset is 'cifar', but .* did you mean 'cifar10'\?"
    ):
        prepare(DataSpec(dataset="cifar"))


def test_a_folder_without_a_test_part_keeps_a_fixed_stratified_fifth_for_it(root):
    store = built(root)
    assert store.class_names == ("cat", "dog") and store.flip and store.shape == (3, 12, 12)
    test = open_test(store)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert store.train.labels.tolist() == [0] * 8 + [1] * 8
    reds = [*store.train.images[:8, 0, 0, 0].tolist(), *test.images[:2, 0, 0, 0].tolist()]
    assert sorted(reds) == list(range(10))


def test_own_val_test_and_unlabeled_parts_are_used(root):
    for part in ("val", "test"):
        for name in ("cat", "dog"):
            picture(root / part / name / "a.PNG")
    picture(root / "unlabeled" / "deep" / "down" / "x.jpg")
    picture(root / "unlabeled" / "y.png")
    store = built(root)
    assert store.meta["counts"] == {"train": 20, "val": 2, "test": 2, "unlabeled": 2}
    assert store.unlabeled.labels.tolist() == [-1, -1]
    split = make_split(
        store.train.labels, store.class_names, DataSpec(num_labels=4), seed=0, has_val=True
    )
    sets = build_sets(store, split)
    assert len(sets.unlabeled) == 22 and sets.unlabeled.hidden_labels[-2:].tolist() == [-1, -1]
    assert sets.validation.labels.tolist() == [0, 1]


def test_pixels_keep_their_place_and_channels_come_first(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 10, 14, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = tmp_path / "data" / "train" / "ab"[index // 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        picture(tmp_path / "data" / "test" / "ab"[index // 2] / "t.png", size=(14, 10))
    np.testing.assert_array_equal(
        built(tmp_path / "data").train.images, pixels.transpose(0, 3, 1, 2)
    )


def test_all_grey_gives_one_channel_and_one_colour_image_makes_it_rgb(tmp_path):
    root = tmp_path / "data"
    for name in ("a", "b"):
        for index in range(5):
            picture(root / "train" / name / f"{index}.png", 77, mode="L")
    assert built(root).shape == (1, 12, 12)
    picture(root / "train" / "a" / "colour.bmp")
    store = built(root)
    assert store.shape == (3, 12, 12)
    assert store.train.images[-1, :, 0, 0].tolist() == [77, 77, 77]


def test_sixteen_bit_files_are_scaled_by_the_range_of_the_train_part_which_is_said(tmp_path):
    for name, value in (("a", 7200), ("b", 7600)):
        folder = tmp_path / "data" / "train" / name
        folder.mkdir(parents=True)
        for index in range(5):
            Image.fromarray(np.full((8, 8), value, np.uint16)).save(folder / f"{index}.png")
    store = built(tmp_path / "data")
    assert store.train.images[[0, -1], 0, 0, 0].tolist() == [0, 255]
    assert store.remarks()[:1] == [
        "10 images have more than 8 bits a channel: 7200 to 7600 become 0 to 255 (data.range)"
    ]
    assert store.decoding.ranges == ((7200.0, 7600.0),)


def test_mixed_sizes_need_image_size_and_are_then_scaled_and_cut_at_the_centre(root):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # white exactly where the centre is cut out
    Image.fromarray(wide).save(root / "train" / "cat" / "a-wide.png")
    assert message(root) == (
        "data.image_size is not set, but must be: the images have 2 sizes: "
        "12x12 (20 images), 60x20 (1 images); data.image_size=32 scales them"
    )
    store = built(root, image_size=8)
    assert store.shape == (3, 8, 8)
    every = np.concatenate([store.train.images, open_test(store).images])
    assert (every[:, :, 1:-1, 1:-1] == 255).all(axis=(1, 2, 3)).sum() == 1


def test_unreadable_images_are_refused_with_names_and_count_or_skipped_and_counted(root):
    (root / "train" / "cat" / "empty.jpg").write_bytes(b"")
    (root / "train" / "dog" / "text.jpeg").write_text("no image")
    whole = (root / "train" / "dog" / "3.png").read_bytes()
    (root / "train" / "dog" / "cut.png").write_bytes(whole[: len(whole) - 25])
    assert message(root) == (
        "data.on_bad_image is 'refuse', but 3 of 23 images cannot be read: train/cat/empty.jpg (is empty), "
        f"train/dog/cut.png ({CUT}), train/dog/text.jpeg (is no image by its content); "
        "'skip' leaves them out"
    )
    store = built(root, on_bad_image="skip")
    assert sum(store.meta["counts"].values()) == 20
    skipped = store.info()["skipped"]
    assert list(skipped) == ["train/cat/empty.jpg", "train/dog/cut.png", "train/dog/text.jpeg"]
    assert skipped["train/cat/empty.jpg"] == "is empty"
    assert store.remarks() == [
        "skipped: 3 images that cannot be read: train/cat/empty.jpg (is empty), "
        f"train/dog/cut.png ({CUT}), train/dog/text.jpeg (is no image by its content)"
    ]
    colours = store.train.images[:, 2, 0, 0]
    np.testing.assert_array_equal(colours == 255, store.train.labels == 1)  # rows still match


def test_of_many_unreadable_images_five_are_named(root):
    for index in range(7):
        (root / "train" / "cat" / f"bad{index}.jpg").write_bytes(b"")
    assert "7 of 27 images" in message(root) and "and 2 more" in message(root)


def test_other_and_hidden_files_are_left_out_by_reason_and_named(root):
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "._0.png").write_text("x")
    picture(root / "train" / ".ipynb_checkpoints" / "0.png")
    picture(root / "train" / "stray.png")
    store = built(root)
    assert store.class_names == ("cat", "dog") and sum(store.meta["counts"].values()) == 20
    assert sorted(store.remarks()) == [
        "left out: 1 file, in no class folder (train/stray.png)",
        "left out: 1 file, no image by its content (train/cat/notes.txt)",
        "left out: 2 files, hidden (train/.ipynb_checkpoints, train/cat/._0.png)",
    ]


def test_what_a_folder_leaves_out_is_said_though_another_one_built_the_store(root, tmp_path):
    first = built(root)
    picture(root / "train" / "stray.png")
    picture(root / "valid" / "cat" / "0.png")
    again = built(root)
    assert again.path == first.path and first.remarks() == []
    assert again.remarks() == [
        "left out: 1 file, in no class folder (train/stray.png)",
        "left out: 1 file, beside train/ and in no part (valid)",
        f"valid/ is no part: data.val_root={root / 'valid'} makes it the val part",
    ]


def test_a_changed_folder_is_another_store_and_an_unchanged_one_the_same(root):
    first = built(root)
    assert built(root).path == first.path
    picture(root / "train" / "cat" / "new.png")
    assert built(root).path != first.path


def test_a_folder_that_cannot_be_a_dataset_says_why(root, tmp_path):
    with pytest.raises(UserError, match="data.root is not set, but dataset 'folder' needs"):
        prepare(DataSpec(dataset="folder"), cache=tmp_path)
    assert message(tmp_path / "none") == (
        f"data.root is '{tmp_path / 'none'}', but there is no such folder"
    )
    assert message(tmp_path / "date").endswith("there is no such folder; did you mean 'data'?")
    (root / "train" / "emu").mkdir()
    assert message(root) == (
        f"data.root is '{root}', which has no image of emu to train on: add some, or remove the class"
    )
    picture(root / "val" / "cow" / "a.png")
    assert message(root) == (
        f"data.root is '{root}', which has cow in val/, which are no classes to train on "
        "(classes: cat, dog, emu)"
    )


def test_a_class_that_val_or_test_lack_is_allowed_and_said(root):
    for part in ("val", "test"):
        picture(root / part / "cat" / "a.png")
    store = built(root, duplicates="warn")
    assert store.meta["counts"] == {"train": 20, "val": 1, "test": 1}
    assert store.meta["class_counts"]["val"] == [1, 0]
    assert store.remarks()[:2] == ["val has no image of dog", "test has no image of dog"]


def test_a_channel_that_is_the_same_everywhere_is_said_and_gives_no_infinite_value(root):
    rng = np.random.default_rng(0)
    for file in root.rglob("*.png"):
        values = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        values[..., 2] = 0
        Image.fromarray(values).save(file)
    store = built(root)
    assert store.remarks() == [
        "channel 2 is the same in nearly all training images, and not scaled"
    ]
    assert store.std[2] == 1 and 0 < store.std[0] < 0.5


def test_that_a_folder_uses_few_of_the_256_levels_is_said_and_the_range_it_names_spreads_them(root):
    rng = np.random.default_rng(0)
    for file in root.rglob("*.png"):
        Image.fromarray(rng.integers(20, 51, (12, 12), dtype=np.uint8)).save(file)
    assert built(root).remarks() == [
        "nearly all pixels lie within 31 of 256 levels, 20 to 50: data.range=[20,50] spreads them"
    ]
    store = built(root, range=[20.0, 50.0])
    assert store.remarks() == []
    assert (store.train.images.min(), store.train.images.max()) == (0, 255)


def test_a_given_range_is_that_of_deep_files_too(tmp_path):
    for name, value in (("a", 100), ("b", 300)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for index in range(5):
            Image.fromarray(np.full((8, 8), value, np.uint16)).save(folder / f"{index}.png")
    store = built(tmp_path / "data", range=[0.0, 400.0])
    assert store.train.images[[0, -1], 0, 0, 0].tolist() == [64, 191]
    assert not any("more than 8 bits" in line for line in store.remarks())


@pytest.mark.parametrize("resize, red", [("crop", 0), ("pad", 1), ("squash", 1)])
def test_an_object_at_the_edge_of_long_images_is_in_the_store_unless_it_is_cut_out(
    resize, red, tmp_path
):
    for name in ("red", "blue"):
        for index in range(5):
            rng = np.random.default_rng([index, name == "red"])
            values = rng.integers(60, 90, (24, 96, 3), dtype=np.uint8)
            values[4:20, 2:14] = (220, 40, 40) if name == "red" else (40, 60, 220)
            path = tmp_path / "data" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    store = built(tmp_path / "data", image_size=24, resize=resize, background="black")
    reds = store.train.images[:, 0].astype(int) - store.train.images[:, 1] > 100
    found = reds.any(axis=(1, 2))
    assert found[store.train.labels == 1].all() == red and not found[store.train.labels == 0].any()
    said = [line for line in store.remarks() if "long images" in line]
    assert len(said) == (resize == "crop")


def test_pictures_of_another_format_in_one_class_are_read_like_the_others(tmp_path):
    for name in ("a", "b"):
        for index in range(5):
            picture(tmp_path / "data" / "train" / name / f"{index}.png", (index, ord(name), 200))
    for index in range(20):
        picture(tmp_path / "data" / "train" / "b" / f"{index}.gif", (index, 200, 0))
    assert sum(built(tmp_path / "data").meta["counts"].values()) == 30


def test_photographs_that_lie_sideways_in_their_files_are_stored_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    for name in ("up", "side"):
        for index in range(10):
            rng = np.random.default_rng([index, name == "up"])
            values = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            values[(slice(None), slice(9, 15)) if name == "up" else slice(9, 15)] = 230
            path = tmp_path / "data" / "train" / name / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(values)
            if index % 2:
                image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
            else:
                image.save(path)
    store = built(tmp_path / "data")
    stripes = store.train.images[:, 0, :, 12].astype(int).min(axis=1) > 150
    np.testing.assert_array_equal(stripes, store.train.labels == 1)


@pytest.mark.parametrize(
    "name, folder",
    [
        ("mnist", "MNIST"),
        ("cifar10", "cifar-10-batches-py"),
        ("stl10", "stl10_binary"),
        ("imagenette", "imagenette2-160"),
    ],
)
def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(name, folder, tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(DataSpec(dataset=name, root=str(tmp_path)), cache=tmp_path / "cache")
    assert str(caught.value) == (
        f"data.dataset is '{name}', but there is no folder {folder}/ in '{tmp_path}'; "
        "data.download=true fetches it"
    )


def test_damaged_cifar10_is_told_apart_from_missing(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(
        UserError, match="cifar-10-batches-py' are incomplete or damaged; data.down"
    ):
        prepare(DataSpec(dataset="cifar10", root=str(tmp_path)), cache=tmp_path / "cache")


def test_mnist_files_are_read(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        head = struct.pack(">iiii", 2051, 20, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">ii", 2049, 20)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    store = prepare(DataSpec(dataset="mnist", root=str(tmp_path)), cache=tmp_path / "cache")
    np.testing.assert_array_equal(store.train.images, pixels[:, None])
    np.testing.assert_array_equal(store.train.labels, labels)
    assert store.flip is False


def test_cifar10_files_are_read(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    # Only torchvision's list of checksums is set aside, for ten images cannot have the real ones.
    monkeypatch.setattr(CIFAR10, "train_list", [("data_batch_1", None)])
    monkeypatch.setattr(CIFAR10, "test_list", [("test_batch", None)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    batch = pickle.dumps({"data": pixels.reshape(10, -1), "labels": list(range(10))})
    (base / "data_batch_1").write_bytes(batch)
    (base / "test_batch").write_bytes(batch)
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    store = prepare(DataSpec(dataset="cifar10", root=str(tmp_path)), cache=tmp_path / "cache")
    np.testing.assert_array_equal(store.train.images, pixels)
    assert store.class_names == tuple("abcdefghij") and store.flip


def test_stl10_has_its_unlabeled_images_upright(tmp_path, monkeypatch):
    from torchvision.datasets import STL10

    monkeypatch.setattr(STL10, "train_list", [[n, None] for n, _ in STL10.train_list])
    monkeypatch.setattr(STL10, "test_list", [[n, None] for n, _ in STL10.test_list])
    base = tmp_path / "stl10_binary"
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 96, 96), dtype=np.uint8)
    columns_first = pixels.transpose(0, 1, 3, 2).tobytes()
    for part in ("train", "test", "unlabeled"):
        (base / f"{part}_X.bin").write_bytes(columns_first)
        (base / f"{part}_y.bin").write_bytes(bytes(range(1, 11)))
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))
    store = prepare(DataSpec(dataset="stl10", root=str(tmp_path)), cache=tmp_path / "cache")
    np.testing.assert_array_equal(store.train.images, pixels)
    np.testing.assert_array_equal(store.unlabeled.images, pixels)
    assert store.train.labels.tolist() == list(range(10))
    assert store.unlabeled.labels.tolist() == [-1] * 10


def test_imagenette_is_scaled_to_160_and_its_val_folder_is_the_test_part(tmp_path):
    for part, count in (("train", 3), ("val", 1)):
        for name in ("n01440764", "n03888257"):
            for index in range(count):
                path = tmp_path / "imagenette2-320" / part / name / f"{index}.JPEG"
                picture(path, size=(400, 320))
    spec = DataSpec(dataset="imagenette", root=str(tmp_path))
    store = prepare(spec, cache=tmp_path / "cache")
    assert store.train.images.shape == (6, 3, 160, 160)
    assert store.class_names == ("tench", "parachute")
    assert open_test(store).labels.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(30))
def test_a_folder_of_any_kind_is_read_or_refused_and_no_image_is_lost_without_a_word(seed):
    what, words = try_one(seed)
    assert what in ("read", "refused") and words is not None, words
    assert "Traceback" not in words
