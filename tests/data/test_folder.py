"""Which files are the images of which class: in any layout, under any name, or by a table."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import Listing, list_images
from tune_ssl.data.store import Store, open_test, prepare

made = iter(range(10**6))


def picture(path: Path) -> Path:
    """A picture that no other file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(made)
    Image.new("RGB", (12, 12), (number % 256, number // 256, 99)).save(path, "PNG")
    return path


def pictures(*folders: Path, count: int = 5) -> None:
    for folder in folders:
        for index in range(count):
            picture(folder / f"{index}.png")


def listed(**data: object) -> Listing:
    return list_images(DataSpec(dataset="folder", **{k: _plain(v) for k, v in data.items()}))


def built(cache: Path, **data: object) -> Store:
    spec = DataSpec(dataset="folder", **{k: _plain(v) for k, v in data.items()})
    return prepare(spec, cache=cache)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def paths(listing: Listing) -> dict[str, list[str]]:
    return {part: [file.path for file in files] for part, files in listing.files.items()}


def refused(**data: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        listed(**data)
    return str(caught.value).splitlines()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """cat/ and dog/, of five images each, and no train/."""
    pictures(tmp_path / "data" / "cat", tmp_path / "data" / "dog")
    return tmp_path / "data"


# ---- folders -------------------------------------------------------------------------------------


def test_folders_of_classes_without_train_are_the_train_part(root, tmp_path):
    store = built(tmp_path / "cache", root=root)
    assert store.class_names == ("cat", "dog") and store.meta["counts"] == {"train": 8, "test": 2}


def test_beside_classes_without_train_the_folders_of_the_other_parts_are_no_classes(root):
    picture(root / "val" / "cat" / "a.png")
    picture(root / "test" / "dog" / "a.png")
    picture(root / "unlabeled" / "x" / "a.png")
    found = listed(root=root)
    assert found.class_names == ("cat", "dog")
    assert {part: len(files) for part, files in found.files.items()} == {
        "train": 10,
        "val": 1,
        "test": 1,
        "unlabeled": 1,
    }
    assert found.labels["val"].tolist() == [0] and found.labels["test"].tolist() == [1]


def test_with_train_what_lies_beside_it_is_no_class(root, tmp_path):
    pictures(root / "train" / "a", root / "train" / "b")
    assert listed(root=root).class_names == ("a", "b")


@pytest.mark.parametrize("train, val", [("Train", "Val"), ("training", "validation")])
def test_parts_of_other_names_are_no_classes_and_the_refusal_names_keys_that_work(
    tmp_path, train, val
):
    root = tmp_path / "data"
    pictures(*(root / part / name for part in (train, val) for name in ("cat", "dog")))
    [text] = refused(root=root)
    assert text == (
        f"data.root is '{root}', whose folders are no classes: rename {train}/ train/, {val}/ val/, or give "
        f"data.root={root / train} data.val_root={root / val}"
    )
    found = listed(root=root / train, val_root=root / val)
    assert found.class_names == ("cat", "dog") and len(found.files["val"]) == 10


def test_a_class_may_be_called_train_beside_other_classes(tmp_path):
    pictures(*(tmp_path / "data" / name for name in ("Car", "Plane", "Train")))
    assert listed(root=tmp_path / "data").class_names == ("Car", "Plane", "Train")


def test_a_class_too_small_for_the_fixed_test_part_is_said(root, tmp_path):
    picture(root / "emu" / "0.png")
    store = built(tmp_path / "cache", root=root)
    assert "test has no image of emu" in store.remarks()


def test_a_class_keeps_its_only_image_and_without_a_spare_one_a_test_part_is_asked_for(tmp_path):
    pictures(*(tmp_path / "data" / name for name in "abc"), count=1)
    with pytest.raises(UserError) as caught:
        built(tmp_path / "cache", root=tmp_path / "data")
    assert str(caught.value) == (
        f"data.root is '{tmp_path / 'data'}', which has no image to spare for a test part: data.test_root gives one"
    )


@pytest.mark.parametrize(
    "content", [b"path,label\ncat/0.png,\xe9t\xe9\n", b"path,label,label\ncat/0.png,a,b\n"]
)
def test_a_table_that_would_be_misread_is_refused(root, tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    [text] = refused(root=root, labels=tmp_path / "t.csv")
    assert (
        "which is not UTF-8: save the table as UTF-8" in text
        or "has the column label twice" in text
    )


def test_whole_numbers_with_gaps_in_a_parquet_file_are_classes_without_a_point(root, tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    labels = [0, 1, 0, 1, None, *[1] * (len(names) - 5)]
    parquet.write_table(
        pyarrow.table({"path": names, "label": [None if x is None else float(x) for x in labels]}),
        tmp_path / "t.parquet",
    )
    found = listed(root=root, labels=tmp_path / "t.parquet")
    assert found.class_names == ("0", "1") and len(found.files["unlabeled"]) == 1


def test_the_other_parts_may_lie_elsewhere(root, tmp_path):
    for part in ("val", "test"):
        picture(tmp_path / part / "cat" / "a.png")
        picture(tmp_path / part / "dog" / "a.png")
    picture(tmp_path / "more" / "deep" / "a.png")
    own = {"val_root": tmp_path / "val", "test_root": tmp_path / "test"}
    store = built(tmp_path / "cache", root=root, unlabeled_root=tmp_path / "more", **own)
    assert store.meta["counts"] == {"train": 10, "val": 2, "test": 2, "unlabeled": 1}
    assert open_test(store).labels.tolist() == [0, 1]


@pytest.mark.parametrize("key", ["val_root", "test_root", "unlabeled_root"])
def test_a_folder_of_a_part_that_is_not_there_is_named_with_its_key(key, root, tmp_path):
    (tmp_path / "holdout").mkdir()
    assert refused(root=root, **{key: tmp_path / "hold_out"}) == [
        f"data.{key} is '{tmp_path / 'hold_out'}', but there is no such folder; did you mean 'holdout'?"
    ]


def test_a_part_s_own_folder_within_the_root_is_no_class(root):
    picture(root / "holdout" / "cat" / "a.png")
    picture(root / "holdout" / "dog" / "a.png")
    found = listed(root=root, test_root=root / "holdout")
    assert found.class_names == ("cat", "dog") and len(found.files["train"]) == 10


def test_classes_may_be_named_by_two_levels_of_folders(tmp_path):
    pictures(*(tmp_path / a / b for a in ("wild", "tame") for b in ("cat", "dog")), count=2)
    picture(tmp_path / "wild" / "stray.png")
    found = listed(root=tmp_path, class_depth=2)
    assert found.class_names == ("tame/cat", "tame/dog", "wild/cat", "wild/dog")
    assert np.bincount(found.labels["train"]).tolist() == [2, 2, 2, 2]
    assert found.left_out == {"in no class folder": ["wild/stray.png"]} and found.notes == ()


def test_folders_within_a_class_count_as_it_and_it_is_said_how_to_make_classes_of_them(tmp_path):
    pictures(*(tmp_path / a / b for a in ("wild", "tame") for b in ("cat", "dog")), count=2)
    found = listed(root=tmp_path)
    assert found.class_names == ("tame", "wild") and len(found.files["train"]) == 8
    assert found.notes == tuple(
        f"train: class {name} has its images in 2 folders (cat, dog), which count as one class; "
        "data.class_depth=2 makes each of them one"
        for name in ("tame", "wild")
    )


def test_folders_of_systems_and_what_is_hidden_are_no_images(root, tmp_path):
    for name in ("@eaDir", "__MACOSX", "#recycle", ".git"):
        picture(root / name / "a.png")
        picture(root / "cat" / name / "b.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "dog" / name).write_bytes(b"x")
    store = built(tmp_path / "cache", root=root)
    assert store.class_names == ("cat", "dog") and sum(store.meta["counts"].values()) == 10
    left_out = {reason: len(paths) for reason, paths in listed(root=root).left_out.items()}
    assert left_out == {"thumbnails and system files": 8, "hidden": 3}
    assert sum(line.startswith("left out") for line in store.remarks()) == 2


def test_a_pipe_is_left_out_and_not_waited_for(root):
    os.mkfifo(root / "cat" / "pipe.png")
    found = listed(root=root)
    assert (
        found.left_out == {"no regular file": ["cat/pipe.png"]} and len(found.files["train"]) == 10
    )


def test_a_link_to_the_folder_that_it_lies_in_is_followed_once(root):
    os.symlink(root / "cat", root / "cat" / "again")
    assert len(listed(root=root).files["train"]) == 10


def test_links_to_images_and_to_folders_are_followed(root, tmp_path):
    pictures(tmp_path / "elsewhere", count=3)
    os.symlink(tmp_path / "elsewhere", root / "emu")
    os.symlink(tmp_path / "elsewhere" / "0.png", root / "cat" / "linked.png")
    found = listed(root=root)
    assert np.bincount(found.labels["train"]).tolist() == [6, 5, 3]


def test_a_link_to_itself_is_a_bad_image_and_no_crash(root, tmp_path):
    os.symlink("loop.png", root / "cat" / "loop.png")
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read: cat/loop.png \("):
        built(tmp_path / "cache", root=root)


def test_a_link_to_nothing_is_a_bad_image(root, tmp_path):
    os.symlink("gone.png", root / "cat" / "link.png")
    with pytest.raises(
        UserError, match=r"1 of 11 images cannot be read: cat/link.png \(No such file or dir"
    ):
        built(tmp_path / "cache", root=root)


# ---- names ---------------------------------------------------------------------------------------


def test_class_folders_whose_names_unicode_holds_equal_are_one_class(root):
    for form in ("NFC", "NFD"):
        pictures(root / unicodedata.normalize(form, "Bär"), count=3)
    pictures(root / "val" / unicodedata.normalize("NFD", "Bär"), count=2)
    found = listed(root=root)
    assert found.class_names == ("Bär", "cat", "dog")
    assert (found.labels["train"] == 0).sum() == 6 and found.labels["val"].tolist() == [0, 0]


STRANGE = {
    "bytes": os.fsdecode(b"caf\xe9"),
    "newline": "two\nlines",
    "emoji": "\N{CAT FACE}",
    "long": "x" * 200,
    "quote": "a'b\"c,d;e",
    "space": " a b ",
    "escape": "\x1b[31mred",
    "dash": "-rf",
}


@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE)
def test_images_and_classes_of_any_name_are_read(name, root, tmp_path):
    for index in range(5):
        picture(root / name / f"{name[:100]}{index}.png")
    store = built(tmp_path / "cache", root=root)
    assert sum(store.meta["counts"].values()) == 15 and len(store.class_names) == 3
    assert built(tmp_path / "cache", root=root).path == store.path
    for text in (*store.class_names, *store.remarks()):
        assert text.encode() and text.isprintable()


def test_bytes_that_are_no_text_are_written_as_such_in_names_and_messages(root, tmp_path):
    name = os.fsdecode(b"\xff")
    pictures(root / name)
    (root / "cat" / f"{name}.jpg").write_bytes(b"")
    store = built(tmp_path / "cache", root=root, on_bad_image="skip")
    assert store.class_names == (r"\xff", "cat", "dog")
    assert store.meta["skipped"] == {r"cat/\xff.jpg": "is empty"}


# ---- what cannot be a data set -------------------------------------------------------------------


def test_the_folder_above_the_data_set_names_the_right_one(tmp_path):
    pictures(tmp_path / "pets" / "train" / "cat", tmp_path / "pets" / "train" / "dog")
    assert refused(root=tmp_path) == [
        f"data.root is '{tmp_path}', which has no classes, but '{tmp_path / 'pets'}' has: give that "
        "as data.root"
    ]


def test_a_folder_with_one_class_names_the_one_below_it_that_has_several(root):
    assert refused(root=root.parent) == [
        f"data.root is '{root.parent}', which has one class, data; its own folders are classes with "
        f"data.root={root}"
    ]


def test_a_folder_without_classes_says_what_is_needed(tmp_path):
    picture(tmp_path / "a.png")
    assert refused(root=tmp_path) == [
        f"data.root is '{tmp_path}', which needs 2 or more class folders, <class>/ or train/<class>/, "
        "but it has 0; or data.labels=FILE, a table of path and label"
    ]
    (tmp_path / "train").mkdir()
    assert "but train/ has 0; or data.labels=FILE" in refused(root=tmp_path)[0]


def test_a_class_that_train_lacks_is_named_with_the_nearest_one(root):
    picture(root / "val" / "cats" / "a.png")
    assert refused(root=root) == [
        f"data.root is '{root}', which has cats in val/, which are no classes to train on; did you "
        "mean 'cat'? (classes: cat, dog)"
    ]


# ---- a table of paths and labels -----------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/0.png to photos/9.png"""
    pictures(tmp_path / "photos", count=10)
    return tmp_path / "photos"


def table(path: Path, lines: list[str], **options: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), **options)
    return path


ROWS = [f"photos/{index}.png,{'cat' if index < 5 else 'dog'}" for index in range(10)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_of_paths_and_labels_is_a_data_set(delimiter, encoding, photos, tmp_path):
    lines = [line.replace(",", delimiter) for line in ["path,label", *ROWS]]
    labels = table(tmp_path / "labels.csv", lines, encoding=encoding)
    found = listed(labels=labels)
    assert found.class_names == ("cat", "dog")
    assert paths(found) == {"train": [f"photos/{index}.png" for index in range(10)]}
    assert found.labels["train"].tolist() == [0] * 5 + [1] * 5
    assert built(tmp_path / "cache", labels=labels).meta["counts"] == {"train": 8, "test": 2}


def test_paths_in_a_table_are_relative_to_the_root_where_one_is_given(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    lines = ["path,label", *(row.removeprefix("photos/") for row in ROWS)]
    labels = table(tmp_path / "elsewhere" / "labels.csv", lines)
    assert len(listed(labels=labels, root=photos).files["train"]) == 10


def test_a_table_may_say_the_part_of_each_image(photos, tmp_path):
    parts = ["train"] * 3 + ["val", "test"] + ["train"] * 2 + ["test", "unlabeled", ""]
    lines = [f"{row},{part}" for row, part in zip(ROWS, parts, strict=True)]
    lines[9] = "photos/9.png,,"  # without a label
    found = listed(labels=table(tmp_path / "labels.csv", ["path,label,part", *lines]))
    assert {part: labels.tolist() for part, labels in found.labels.items()} == {
        "train": [0, 0, 0, 1, 1],
        "val": [0],
        "test": [0, 1],
        "unlabeled": [-1, -1],
    }


@pytest.mark.parametrize("with_part", [False, True])
def test_a_parquet_file_is_a_table_too_and_its_labels_may_be_numbers(with_part, photos, tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {
        "path": [f"{k}.png" for k in range(10)],
        "label": [k // 5 for k in range(9)] + [None],
    }
    if with_part:
        columns["part"] = ["train", "test"] * 4 + ["train", None]
    parquet.write_table(pyarrow.table(columns), photos / "labels.parquet")
    found = listed(labels=photos / "labels.parquet")
    counts = {part: len(files) for part, files in found.files.items()}
    assert found.class_names == ("0", "1")
    assert counts == ({"train": 5, "test": 4} if with_part else {"train": 9}) | {"unlabeled": 1}


def test_all_wrong_rows_of_a_table_are_named_by_their_lines(photos, tmp_path):
    lines = [
        "path,label,part",
        *(f"{row},train" for row in ROWS),
        ",cat,train",
        "photos/none.png,cat,train",
        "photos/0.png,,val",
        "photos/0.png,cat,tset",
        "photos/0.png,cat,train",
        "photos,cat,train",
    ]
    labels = table(tmp_path / "labels.csv", lines)
    photo = tmp_path / "photos"
    assert refused(labels=labels) == [
        f"{labels}:12: path is missing",
        f"{labels}:13: path is 'photos/none.png', but '{photo / 'none.png'}': No such file or directory",
        f"{labels}:14: label is missing, but part val needs one",
        f"{labels}:15: part is 'tset', but must be one of: train, val, test, unlabeled; did you mean 'test'?",
        f"{labels}:16: path 'photos/0.png' stands in {labels}:2 too",
        f"{labels}:17: path is 'photos', but '{photo}' is no file",
    ]


def test_the_line_of_a_wrong_row_is_right_after_empty_lines(photos, tmp_path):
    labels = table(tmp_path / "labels.csv", ["path,label", "", "", *ROWS, ",cat"])
    assert refused(labels=labels) == [f"{labels}:14: path is missing"]


def test_of_many_wrong_rows_twenty_are_named(photos, tmp_path):
    labels = table(tmp_path / "labels.csv", ["path,label", *[",cat"] * 25])
    found = refused(labels=labels)
    assert len(found) == 21 and found[-1] == f"{labels}: 5 more rows are wrong"


def test_a_column_that_is_missing_is_named_with_the_nearest_one(photos, tmp_path):
    labels = table(tmp_path / "labels.csv", ["path,lable", *ROWS])
    assert refused(labels=labels) == [
        f"data.labels is '{labels}', but has no column label; did you mean 'lable'? (columns: path, lable)"
    ]


def test_a_table_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 no table")
    (found,) = refused(labels=tmp_path / "labels.parquet")
    assert found.startswith(
        f"data.labels is '{tmp_path / 'labels.parquet'}', which cannot be read: "
    )
    assert refused(labels=tmp_path / "none.csv") == [
        f"data.labels is '{tmp_path / 'none.csv'}', which cannot be read: No such file or directory"
    ]


def test_a_table_needs_two_labels_to_train_on_and_each_of_the_others_among_them(photos, tmp_path):
    labels = table(tmp_path / "labels.csv", ["path,label", *ROWS[:5]])
    assert refused(labels=labels) == [
        f"data.labels is '{labels}', but must have 2 or more labels in part train, and has 1"
    ]
    lines = [*(f"{row},train" for row in ROWS[:9]), "photos/9.png,emu,test"]
    labels = table(tmp_path / "labels.csv", ["path,label,part", *lines])
    assert refused(labels=labels) == [
        f"data.labels is '{labels}', but no row of part train has the label emu"
    ]


def test_other_parts_of_a_table_may_lie_in_folders(photos, tmp_path):
    labels = table(tmp_path / "labels.csv", ["path,label", *ROWS])
    picture(tmp_path / "holdout" / "dog" / "a.png")
    picture(tmp_path / "more" / "a.png")
    own = {"test_root": tmp_path / "holdout", "unlabeled_root": tmp_path / "more"}
    found = listed(labels=labels, **own)
    assert found.labels["test"].tolist() == [1] and found.labels["unlabeled"].tolist() == [-1]
    picture(tmp_path / "holdout" / "emu" / "a.png")
    assert refused(labels=labels, **own) == [
        f"data.test_root is '{tmp_path / 'holdout'}', which has emu, but the table has no such label"
    ]


def test_rows_of_a_part_are_not_lost_where_a_folder_is_given_for_it_too(photos, tmp_path):
    lines = [*(f"{row},train" for row in ROWS[:9]), "photos/9.png,dog,val"]
    labels = table(tmp_path / "labels.csv", ["path,label,part", *lines])
    picture(tmp_path / "holdout" / "dog" / "a.png")
    try:
        found = listed(labels=labels, val_root=tmp_path / "holdout")
    except UserError:
        return  # to refuse both is as good
    assert len(found.files["val"]) == 2


def test_a_path_that_stands_twice_in_other_words_is_refused(photos, tmp_path):
    labels = table(tmp_path / "labels.csv", ["path,label", *ROWS, "photos/../photos/0.png,dog"])
    assert refused(labels=labels) == [
        f"{labels}:12: path 'photos/../photos/0.png' stands in {labels}:2 too"
    ]


def test_neither_root_nor_labels_says_what_is_needed():
    assert refused() == [
        "data.root is not set, but dataset 'folder' needs the folder of the images, or data.labels"
    ]
