"""A data store is written: all parts in one pass, beside the place where it then appears whole.

meta.json                       what is in it, and what was left out
train.images.bin                pixels, uint8 (N, C, H, W); or
train.files.bin, .offsets.npy   the files' own bytes, one after another (data.store: encoded)
train.labels.npy                int64 (N,)
files.npz                       of a store of files: name, time and digest of each, in the listing's order, and
                                which of them each row of a part is (`train.files`)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.files import write_atomically
from tune_ssl.base.progress import progress
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.datasets import Dataset, Source, SourcePart
from tune_ssl.data.duplicates import Fingerprints, find_copies, sentences
from tune_ssl.data.folder import PARTS, Listing, first_names, shown_name
from tune_ssl.data.image_reader import FileImage

Uint8s = NDArray[np.uint8]

BLOCK_BYTES = 4 << 20
PIXELS_UP_TO = 8_000_000_000  # bytes of pixels, from which a smaller store of files is taken (data.store: auto)
NAMED = 20  # files of a kind that meta.json names
LEVELS = 64  # of 256, within which nearly all pixels lie of a folder that is said to use few
MASS = 0.998  # of the pixels: nearly all


@dataclass
class Written:
    """What is known after one pass over all parts."""

    digest: str
    counts: dict[str, int]
    labels: dict[str, NDArray[np.int64]]
    histogram: NDArray[np.int64]  # (C, 256) of the train part
    fingerprints: dict[str, Fingerprints] = field(default_factory=dict)
    hashes: dict[str, bytes] = field(default_factory=dict)  # of the files that were read, by path


def build(dataset: Dataset, spec: DataSpec, listing: Listing | None, target: Path) -> None:
    """Write the store beside `target`, then rename it. The caller holds the lock.

    Raises:
        UserError: unusable data, bad or equal images that are refused, or a cache that cannot be written.
    """
    started = time.monotonic()
    for left in target.parent.glob(f".{target.name}.*"):  # of builds that were killed
        shutil.rmtree(left, ignore_errors=True)
    source = dataset.read(spec) if listing is None else dataset.read(spec, listing)
    kind = _kind(source, spec)
    _refuse_if_full(source, kind, target)
    with writing(target):
        temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        written = _write(source, kind, temp, target)
        copies = find_copies(written.fingerprints, written.labels)
        record = copies.to_record()
        if copies.pairs and spec.duplicates == "refuse":
            raise _copied(record)
        if copies.rows and spec.duplicates == "drop":
            hashes = written.hashes
            source = source.without(_source_rows(source, copies.rows))
            written = _write(source, kind, temp, target)
            written.hashes = hashes | written.hashes
        meta = _meta(dataset, spec, source, kind, written, record, listing)
        if listing is not None:
            with writing(target):
                table = _table(listing, written.hashes) | _files_of_rows(listing, source)
                np.savez(temp / "files.npz", **table)  # type: ignore[arg-type]
        meta["build_seconds"] = round(time.monotonic() - started, 2)
        with writing(target):
            content = json.dumps(meta, indent=1).encode()
            write_atomically(temp / "meta.json", lambda file: file.write(content))
            temp.chmod(0o755)  # mkdtemp's 0700 would shut out others who share the cache
            shutil.rmtree(target, ignore_errors=True)  # damaged, else it had been opened
            temp.rename(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """UserError where the cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the data cache '{target.parent}' cannot be written: {first_line(error)}; "
            "TUNE_SSL_CACHE names another folder"
        ) from error


def _write(source: Source, kind: str, temp: Path, target: Path) -> Written:
    """Stream all parts into `temp`."""
    hasher = hashlib.sha256(str(source.shape).encode())
    written = Written("", {}, {}, np.zeros((source.shape[0], 256), np.int64))
    for name in PARTS:
        if name not in source.parts:
            continue
        part, kept = source.parts[name], list[int]()
        hasher.update(name.encode())
        if part.files:
            written.fingerprints[name] = Fingerprints()
        with _PartFile(temp / f"{name}.{_suffix(kind)}.bin", kind, target) as file:
            every = progress(_taken(part, file, written, name), f"reading {name}", len(part.labels))
            for rows, block in _blocks(every, source.shape):
                kept += rows
                hasher.update(block.data)
                if name == "train":
                    for channel, counts in enumerate(written.histogram):
                        counts += np.bincount(block[:, channel].ravel(), minlength=256)
                file.add_pixels(block)
        labels = part.labels[kept].astype("<i8")
        hasher.update(labels.tobytes())
        written.counts[name], written.labels[name] = len(labels), labels
        with writing(target):
            np.save(temp / f"{name}.labels.npy", labels)
            if kind == "encoded":
                np.save(temp / f"{name}.offsets.npy", np.cumsum([0, *file.sizes], dtype=np.int64))
    written.digest = hasher.hexdigest()[:12]
    return written


def _taken(
    part: SourcePart, file: _PartFile, written: Written, name: str
) -> Iterator[Uint8s | None]:
    """The pixels of each image of a part; files leave their bytes and their prints."""
    names = iter(part.files)
    for image in part.images:
        own = next(names, None)
        if not isinstance(image, FileImage):
            yield image
            continue
        assert own is not None
        written.hashes[own.path] = image.digest
        written.fingerprints[name].add(own.path, image.pixels)
        file.add_content(image.content)
        yield image.pixels


class _PartFile:
    """The file of a part: pixels as blocks come, or the contents of files with their sizes."""

    def __init__(self, path: Path, kind: str, target: Path) -> None:
        self.kind, self.target, self.sizes = kind, target, list[int]()
        with writing(target):
            self.file = path.open("wb", buffering=0)

    def __enter__(self) -> _PartFile:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            with writing(self.target):
                os.fsync(self.file.fileno())
        self.file.close()

    def add_pixels(self, block: Uint8s) -> None:
        if self.kind == "pixels":
            self._write(block.data.cast("B"))

    def add_content(self, content: bytes) -> None:
        if self.kind == "encoded":
            self._write(memoryview(content))
            self.sizes.append(len(content))

    def _write(self, rest: memoryview) -> None:
        """An unbuffered write may take only a part of the bytes, as on a disk that fills up."""
        with writing(self.target):
            while rest:
                rest = rest[self.file.write(rest) :]


def _suffix(kind: str) -> str:
    return "images" if kind == "pixels" else "files"


def _meta(
    dataset: Dataset,
    spec: DataSpec,
    source: Source,
    kind: str,
    written: Written,
    copies: dict[str, Any],
    listing: Listing | None,
) -> dict[str, Any]:
    """What meta.json says. UserError for bad images that are refused, or a class of which none is left."""
    if source.bad and spec.on_bad_image == "refuse":
        raise _bad_images(source.bad, sum(len(part.labels) for part in source.parts.values()))
    counts = written.counts
    sizes = np.bincount(written.labels["train"], minlength=len(source.class_names))
    lost = [source.class_names[k] for k in np.flatnonzero(sizes == 0).tolist()]
    lost += [f"the {name} part" for name in ("val", "test") if counts.get(name) == 0]
    if lost:
        why = "can be read, or none is left for it"
        if spec.duplicates == "drop" and copies["equal"]:
            why += "; data.duplicates: drop took copies of other images, perhaps of other classes"
        raise UserError(f"no image of {first_names(lost)} {why}")
    pixels = counts["train"] * source.shape[1] * source.shape[2]
    level = np.arange(256, dtype=np.int64)
    mean = written.histogram @ level / (255 * pixels)
    variance = written.histogram @ level**2 / (255**2 * pixels) - mean**2
    how = source.decoding
    notes = [*source.notes, *_levels(written.histogram)]
    if kind == "encoded":
        size = f"{_pixel_bytes(source) / 1e6:,.0f} MB"
        notes.append(
            f"the files' own bytes are kept, and decoded for each batch: their pixels would take {size} (data.store)"
        )
    return {
        "dataset": dataset.name,
        "flip": dataset.flip,
        "kind": kind,
        "class_names": source.class_names,
        "shape": source.shape,
        "counts": {name: count for name, count in counts.items() if count},
        "class_counts": {
            name: np.bincount(labels, minlength=len(source.class_names)).tolist()
            for name, labels in written.labels.items()
            if name != "unlabeled" and len(labels)
        },
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(variance, 0)).tolist(),
        "digest": written.digest,
        "root": spec.root or spec.labels,
        "files_root": None if listing is None else str(listing.root.absolute()),
        "decoding": None if how is None else how.to_record(),
        "skipped": {shown_name(path): why for path, why in sorted(source.bad.items())},
        "left_out": {
            reason: {"count": len(paths), "first": [shown_name(p) for p in sorted(paths)[:NAMED]]}
            for reason, paths in sorted(source.left_out.items())
        },
        "duplicates": copies,
        "notes": notes + sentences(copies, spec.duplicates == "drop"),
        "bytes": sum(counts.values()) * int(np.prod(source.shape))
        if kind == "pixels"
        else _file_bytes(source),
    }


def _levels(histogram_C256: NDArray[np.int64]) -> list[str]:
    """A sentence where nearly all pixels lie within few of the 256 levels."""
    total = histogram_C256.sum(axis=0)
    share = np.cumsum(total) / max(1, total.sum())
    low = int(np.searchsorted(share, (1 - MASS) / 2))
    high = int(np.searchsorted(share, 1 - (1 - MASS) / 2))
    if high - low + 1 >= LEVELS or high == low:
        return []
    return [
        f"nearly all pixels lie within {high - low + 1} of 256 levels, {low} to {high}: data.range=[{low},{high}] "
        "spreads them"
    ]


def _table(listing: Listing, hashes: dict[str, bytes]) -> dict[str, Any]:
    """Of each listed file the time of its last change and a digest of its bytes (zeros where it was not read)."""
    every = [file for files in listing.files.values() for file in files]
    none = bytes(16)
    names = b"\0".join(os.fsencode(file.path) for file in every)
    digests = b"".join(hashes.get(file.path, none) for file in every)
    return {
        "names": np.frombuffer(names, np.uint8),
        "mtimes": np.array([file.mtime_ns for file in every], np.int64),
        "sizes": np.array([file.size for file in every], np.int64),
        "digests": np.frombuffer(digests, np.uint8).reshape(-1, 16),
    }


def _files_of_rows(listing: Listing, source: Source) -> dict[str, Any]:
    """Of each part's rows the number of their file in the listing's order."""
    every = [file.path for files in listing.files.values() for file in files]
    number = {path: i for i, path in enumerate(every)}
    return {
        f"{name}.files": np.array(
            [number[file.path] for file in part.files if file.path not in source.bad], np.int64
        )
        for name, part in source.parts.items()
    }


def _source_rows(
    source: Source, rows: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.int64]]:
    """Rows among the images that could be read, as rows of the source."""
    return {
        part: np.array(
            [k for k, file in enumerate(source.parts[part].files) if file.path not in source.bad],
            np.int64,
        )[found]
        for part, found in rows.items()
    }


def _blocks(
    images: Iterator[Uint8s | None], shape: tuple[int, int, int]
) -> Iterator[tuple[list[int], Uint8s]]:
    """Some MB of images at a time as uint8 (B, C, H, W), with their row numbers; bad ones are left out."""
    size = max(1, BLOCK_BYTES // int(np.prod(shape)))
    block, rows = np.empty((size, *shape), dtype=np.uint8), list[int]()
    for row, image in enumerate(images):
        if image is None:
            continue
        block[len(rows)] = image
        rows.append(row)
        if len(rows) == size:
            yield rows, block
            rows = []
    if rows:
        yield rows, block[: len(rows)]


def _kind(source: Source, spec: DataSpec) -> str:
    """Whether pixels are stored or files: by what is smaller where the pixels are many."""
    if source.decoding is None:
        if spec.store == "encoded":
            text = "is 'encoded', but only image files can be kept as they are: dataset folder"
            raise UserError(Problem(text, "data.store"))
        return "pixels"
    if spec.store != "auto":
        return spec.store
    pixels, files = _pixel_bytes(source), _file_bytes(source)
    return "encoded" if pixels > PIXELS_UP_TO and files < pixels else "pixels"


def _pixel_bytes(source: Source) -> int:
    return sum(len(part.labels) for part in source.parts.values()) * int(np.prod(source.shape))


def _file_bytes(source: Source) -> int:
    return sum(max(0, file.size) for part in source.parts.values() for file in part.files)


def _refuse_if_full(source: Source, kind: str, target: Path) -> None:
    needed = _pixel_bytes(source) if kind == "pixels" else _file_bytes(source)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        other = "; data.store: encoded needs less" if _file_bytes(source) < free < needed else ""
        raise UserError(
            f"the data cache '{target.parent}' needs {needed / 1e9:.2f} GB, but has "
            f"{free / 1e9:.2f} GB free; TUNE_SSL_CACHE names another folder{other}"
        )


def _bad_images(bad: dict[str, str], total: int) -> UserError:
    named = [f"{shown_name(path)} ({reason})" for path, reason in sorted(bad.items())]
    text = (
        f"is 'refuse', but {len(bad)} of {total} images cannot be read: {first_names(named)}; "
        "'skip' leaves them out"
    )
    return UserError(Problem(text, key="data.on_bad_image"))


def _copied(record: dict[str, Any]) -> UserError:
    return UserError(
        Problem(f"is 'refuse', but {line}", key="data.duplicates")
        for line in sentences(record, dropped=False)
    )
