"""The images of a run's store: each row has its own file's name and pixels, whatever was left out of the folder."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tune_ssl.artifacts.thumbnails import MOST_OF_ONE, images_of
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.store import open_test, prepare


def level_of(png):
    """The grey level of a picture's middle."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("L")
    return picture.getpixel((picture.width // 2, picture.height // 2))


@pytest.fixture
def folder(tmp_path):
    """Images of one grey level each, which their names have; one is broken, one no image, one a copy."""
    level = iter(range(5, 250, 3))
    for part, count in (("a", 20), ("b", 15), ("unlabeled", 9)):
        home = tmp_path / "images" / ("train" if part != "unlabeled" else "") / part
        home.mkdir(parents=True)
        for _ in range(count):
            grey = next(level)
            Image.new("L", (16, 16), grey).save(home / f"{grey:03d} é.png")
    train = tmp_path / "images" / "train"
    (train / "a" / "000 broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (train / "a" / "001 text.png").write_text("no image")
    (train / "b" / "zz copy.png").write_bytes((train / "b" / "080 é.png").read_bytes())
    return tmp_path / "images"


@pytest.mark.parametrize("store", ["pixels", "encoded"])
@pytest.mark.parametrize("duplicates", ["warn", "drop"])
def test_every_row_has_the_name_and_the_pixels_of_its_own_file(
    folder, tmp_path, monkeypatch, store, duplicates
):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    spec = DataSpec(
        dataset="folder",
        root=str(folder),
        image_size=16,
        on_bad_image="skip",
        duplicates=duplicates,
        store=store,
    )
    built = prepare(spec)
    assert open_test(
        built
    ).labels.size  # held out of train, so that rows are not those of the listing
    found = images_of(built.digest, str(built.path))
    seen = set()
    for part in ("train", "unlabeled"):
        count = len(getattr(built, part).labels)
        for row, name in enumerate(found.names(part, range(count))):
            seen.add(name)
            if "copy" in name:
                continue
            png, width = found.picture(part, row)
            assert abs(level_of(png) - int(name.split("/")[-1][:3])) <= 1
            assert width == 50 and len(png) < MOST_OF_ONE * 4 / 3 + 4
    assert len(seen) == built.meta["counts"]["train"] + 9
    assert not any("broken" in name or "text" in name for name in seen)


def test_there_is_no_test_image_and_no_row_beyond_the_part(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    store = prepare(DataSpec(dataset="digits"))
    found = images_of(store.digest, str(store.path))
    assert found.picture("test", 0) is None and found.picture("val", 0) is None
    assert found.picture("train", len(store.train.labels)) is None
    assert found.picture("train", -1) is None
    assert found.names("train", [0, 1]) == ["", ""]  # arrays have no files
    assert found.picture("train", 0)[1] == 50


def test_the_store_is_found_by_its_digest_where_its_path_is_another_machines(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    assert images_of("0" * 12, "/nowhere") is None
    store = prepare(DataSpec(dataset="digits"))
    for path in ("", "/nowhere", str(tmp_path)):
        assert images_of(store.digest, path).store.path == store.path
    assert images_of("0" * 12, str(store.path)) is None


def test_a_store_that_names_no_files_is_shown_without_names(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    store = prepare(
        DataSpec(dataset="folder", root=str(folder), image_size=16, on_bad_image="skip")
    )
    path = store.path / "files.npz"
    with np.load(path) as table:
        older = {key: value for key, value in table.items() if not key.endswith(".files")}
    np.savez(path, **older)
    found = images_of(store.digest, str(store.path))
    assert found.names("train", [0]) == [""] and found.picture("train", 0)


def test_thumbnails_need_no_torch():
    code = "import sys, tune_ssl.artifacts.thumbnails; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False", done.stderr
