"""Random folders of images, as people have them and as nobody should: no traceback, and no image lost without a word.

    python -m tests.image_folders 500 [SEED]

Each folder is drawn by a seed of its own: layout, formats, modes, depths, sizes, names, other files, and the keys of
`data` it is read with. Reading it either works, and every image that was made is stored, or counted where the store
says what it left out; or it is refused in lines that name a key or a file.
"""

from __future__ import annotations

import csv
import io
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from pydantic import ValidationError

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import list_images
from tune_ssl.data.store import open_test, prepare

NAMES = (
    *(
        "a",
        "photo 1",
        "Ünïcode",
        "e\u0301t\u00e9",
        "名前",
        "😀",
        "-dash",
        "x" * 150,
        "tab\there",
        "line\nbreak",
    ),
    *(
        "caf\udce9",
        "#hash",
        "100%",
        "a.b.c",
        "CON",
        "'quoted'",
        '"double"',
        "semi;colon",
        "com,ma",
        " lead",
    ),
)
CLASSES = ("cat", "dog", "été", "e\u0301te\u0301", "Klasse 3", "#7", "ship\udcff", "7", "null")
JUNK = {
    "notes.txt": b"hello",
    "Thumbs.db": b"\xd0\xcf\x11\xe0" * 9,
    ".hidden.png": b"x",
    "data.csv": b"a,b\n1,2\n",
    "video.mp4": b"\0\0\0\x18ftypmp42" + bytes(40),
    "page.html": b"<html></html>",
    "doc.pdf": b"%PDF-1.4\n",
    "empty": b"",
    "archive.zip": b"PK\3\4" + bytes(30),
    "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


class Folder:
    """One drawn folder: `images` are those that can be read, `broken` those that cannot."""

    def __init__(self, seed: int, root: Path) -> None:
        self.draw, self.root = random.Random(seed), root
        self.rng = np.random.default_rng(seed)
        self.images, self.broken = 0, 0
        self.rows: list[dict[str, str]] = []

    def make(self) -> dict[str, Any]:
        """Fill the folder; the values of `data` to read it with."""
        draw = self.draw
        layout = draw.choice(("flat", "train", "train", "parts", "table", "nested", "one class"))
        classes = draw.sample(CLASSES, 1 if layout == "one class" else draw.randint(2, 4))
        self.size = draw.choice(((8, 8), (12, 12), (16, 12), (33, 20)))
        self.same_size, self.kinds = (
            draw.random() < 0.6,
            draw.choice((FORMATS, ("png", "jpg"), ("png16",), ("npy",), ("tiff5",))),
        )
        top = self.root / "train" if layout in ("train", "parts", "nested") else self.root
        for name in classes:
            inner = top / "animals" / name if layout == "nested" else top / name
            self.fill(
                inner,
                draw.choice((0, 1, 3, 6, 9)) if draw.random() < 0.3 else draw.randint(4, 9),
                name,
                "train",
            )
        if layout == "nested":
            self.fill(top / "plants" / "fern", 5, "fern", "train")
        if layout == "parts":
            for part in draw.sample(("val", "test", "unlabeled"), draw.randint(1, 3)):
                for name in classes if part != "unlabeled" else ("", "deep/down"):
                    self.fill(self.root / part / name, draw.randint(0, 4), name, part)
        for _ in range(draw.randint(0, 4)):
            self.junk(draw.choice([p for p in self.root.rglob("*") if p.is_dir()] or [self.root]))
        values: dict[str, Any] = {"dataset": "folder", "root": str(self.root)}
        if layout == "table":
            values["labels"] = str(self.table())
        if layout == "nested" and draw.random() < 0.7:
            values["class_depth"] = 2
        if draw.random() < 0.8:
            values["image_size"] = draw.choice((8, 16, 24))
            if draw.random() < 0.2:
                values["store_size"] = 32
        options: dict[str, tuple[Any, ...]] = {
            "on_bad_image": ("refuse", "skip", "skip"),
            "resize": ("crop", "pad", "squash"),
            "background": ("white", "black", "#336699"),
            "duplicates": ("warn", "drop", "refuse"),
            "store": ("auto", "pixels", "encoded"),
            "range": ("auto", "auto", [0, 1000], [0.0, 1.0]),
            "max_pixels": (178_956_970, 178_956_970, 300),
        }
        for key, of in options.items():
            if draw.random() < 0.4:
                values[key] = draw.choice(of)
        return values

    def fill(self, folder: Path, count: int, label: str, part: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            kind = self.draw.choice(self.kinds)
            stem = f"{self.draw.choice(NAMES)}{i}"
            suffix = (
                kind
                if self.draw.random() < 0.8
                else self.draw.choice(("txt", "jpg", "", "JPEG", "bak"))
            )
            path = folder / f"{stem}.{suffix}".rstrip(".")
            if path.exists():
                continue
            content = self.content(kind)
            if self.draw.random() < 0.03:
                content, broken = content[: len(content) // 3], True
            else:
                broken = False
            try:
                path.write_bytes(content)
            except OSError:  # a name that this file system does not take
                continue
            self.images += not broken
            self.broken += broken
            self.rows.append(
                {"path": str(path.relative_to(self.root)), "label": label, "part": part}
            )
        if self.draw.random() < 0.1 and count:
            link = folder / "link.png"
            target = next((p for p in folder.iterdir() if p.is_file()), None)
            if target is not None and not link.exists():
                link.symlink_to(target if self.draw.random() < 0.5 else folder / "nowhere.png")
                self.broken += 1  # or one more: it is counted as either
        if self.draw.random() < 0.05:
            (folder / "loop").symlink_to(folder, target_is_directory=True)

    def junk(self, folder: Path) -> None:
        if self.draw.random() < 0.3:
            folder = folder / self.draw.choice(("@eaDir", "__MACOSX", ".thumbnails", "#recycle"))
            folder.mkdir(exist_ok=True)
        name = self.draw.choice(list(JUNK))
        path = folder / name
        if not path.exists():
            path.write_bytes(JUNK[name])

    def table(self) -> Path:
        path = self.root / "labels.csv"
        columns = ["path", "label", *(["part"] if self.draw.random() < 0.5 else [])]
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(
                file, columns, extrasaction="ignore", delimiter=self.draw.choice(",;\t")
            )
            writer.writeheader()
            writer.writerows(self.rows)
        return path

    def content(self, kind: str) -> bytes:
        """An image of that kind, of random pixels."""
        width, height = (
            self.size if self.same_size else (self.draw.randint(1, 60), self.draw.randint(1, 60))
        )
        out, rng = io.BytesIO(), self.rng
        exif = Image.Exif()
        if self.draw.random() < 0.2 and not self.same_size:
            exif[274] = self.draw.randint(1, 8)
        if kind in ("png16", "tiff16"):
            Image.fromarray(rng.integers(7000, 8000, (height, width), np.uint16)).save(
                out, "PNG" if kind == "png16" else "TIFF"
            )
        elif kind == "npy":
            shape = self.draw.choice(((height, width), (height, width, 3)))
            made = rng.random(shape).astype(
                self.draw.choice((np.float32, np.float64, np.uint8, np.int32, bool))
            )
            np.save(out, made)
        elif kind == "tiff5":
            tifffile.imwrite(
                out,
                rng.integers(0, 256, (height, width, 5), np.uint8),
                photometric="minisblack",
                planarconfig="contig",
            )
        elif kind == "tifff":
            tifffile.imwrite(out, rng.random((height, width)).astype(np.float32))
        else:
            mode = self.draw.choice(
                {"jpg": ("RGB", "L", "CMYK"), "gif": ("P", "L"), "bmp": ("RGB", "L", "1")}.get(
                    kind, ("RGB", "L", "RGBA", "LA", "P", "1")
                )
            )
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(
                mode
            )
            name = {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper())
            if name in ("WEBP", "AVIF", "PPM") and mode not in ("RGB", "RGBA"):
                image = image.convert("RGB")
            if name == "PPM":
                image = image.convert("RGB")
            image.save(
                out,
                name,
                **({"exif": exif} if len(exif) and name in ("JPEG", "PNG", "WEBP") else {}),
            )
        return out.getvalue()


FORMATS = (
    "png",
    "jpg",
    "gif",
    "bmp",
    "webp",
    "tif",
    "ppm",
    "png16",
    "tiff16",
    "npy",
    "tifff",
    "avif",
)


def try_one(seed: int) -> tuple[str, str]:
    """What became of one folder ("read", "refused", "lost" or "broken"), and the words."""
    with tempfile.TemporaryDirectory() as place:
        root, cache = Path(place) / "images", Path(place) / "cache"
        root.mkdir()
        folder = Folder(seed, root)
        values = folder.make()
        try:
            spec = DataSpec.model_validate(values)
            store = prepare(spec, cache=cache)
            test = open_test(store)
            for part in (store.train, store.val, store.unlabeled, test):
                if part is not None:
                    assert part.images[np.arange(len(part.labels))].shape[0] == len(part.labels)
            assert prepare(spec, cache=cache).path == store.path
        except (UserError, ValidationError) as error:
            return "refused", str(error)
        except Exception as error:
            return "broken", f"{type(error).__name__}: {error}; {values}"
        meta = store.meta
        known = sum(meta["counts"].values()) + len(meta["skipped"])
        known += sum(kind["count"] for kind in meta["left_out"].values())
        known += sum(len(paths) for paths in list_images(spec).left_out.values())
        equal = meta["duplicates"]["equal"]
        if spec.duplicates == "drop":
            known += sum(
                n for name, n in equal.items() if name.split()[0] in ("train", "unlabeled")
            )
        if known < folder.images:
            return "lost", f"{folder.images} made, {known} known of: {values}"
        if any("\n" in line for line in store.remarks()):
            return "broken", f"a remark of two lines: {store.remarks()}"
        return "read", "; ".join(store.remarks())


def main(count: int, seed: int) -> Counter[str]:
    tally: Counter[str] = Counter()
    for number in range(seed, seed + count):
        what, words = try_one(number)
        tally[what] += 1
        if os.environ.get("SHOWN"):
            print(what, seed, words[:400])
        if what in ("broken", "lost"):
            print(f"{what}, seed {number}: {words}", flush=True)
        if what == "refused" and any(
            len(line) > 1500 or not line.strip() for line in words.splitlines()
        ):
            print(f"long or empty line, seed {number}: {words[:300]}")
    return tally


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(dict(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
