"""Every dataset as memory-mapped uint8 arrays, built once per machine and opened with numpy alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.files import write_atomically
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.batch import Task
from tune_ssl.data.datasets import Dataset, Source, find_dataset
from tune_ssl.data.folder import first_names

FORMAT = 1  # part of every key: raise it when the files below change
DEFAULT_CACHE = "~/.cache/tune-ssl"
BLOCK_BYTES = 4 << 20
LEAST_STD = (
    1 / 255
)  # of a channel, in 0..1: one grey level; a channel below it is shifted, and not scaled
PARTS = ("train", "val", "test", "unlabeled")

Uint8s = NDArray[np.uint8]


@dataclass(frozen=True)
class LabeledPart:
    """`images` uint8 (N, C, H, W), a read-only memory map; `labels` int64 (N,) in 0..K-1."""

    images: Uint8s
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class UnlabeledPart:
    """As LabeledPart, but every label is -1."""

    images: Uint8s
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Store:
    """A dataset on disk. The test part is not here: see `open_test`.

    `flip` says whether a left-right flip keeps the class. `mean` and `std` are those of the train
    part's channels, in 0..1, 1 where it is below LEAST_STD. `digest` is of all arrays (12 hex digits). `meta` has
    counts, skipped files and build seconds. Pickling carries the path only.
    """

    path: Path
    train: LabeledPart
    val: LabeledPart | None
    unlabeled: UnlabeledPart | None
    class_names: tuple[str, ...]
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    meta: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def task(self) -> Task:
        """The shape of the problem that the labels pose."""
        return Task(len(self.class_names), *self.shape)

    def info(self) -> dict[str, Any]:
        """Plain values for `tune-ssl data info`: what is in the store and where it lies."""
        same = [channel for channel, std in enumerate(self.meta["std"]) if std < LEAST_STD]
        note = "the same in nearly all training images; it is not scaled"
        notes = {"note": f"channel {', '.join(map(str, same))} is {note}"} if same else {}
        return {**self.meta, "path": str(self.path), **notes}


def prepare(spec: DataSpec, *, cache: Path | None = None) -> Store:
    """Open the store of `spec`, building it first if this machine has none.

    It lies in `cache`, else in $TUNE_SSL_CACHE, else in ~/.cache/tune-ssl. Of several processes one
    builds and the others wait. A store appears under its name only when it is complete.

    Raises:
        UserError: unknown dataset, missing or unusable data, or a cache that cannot be written.
    """
    dataset = find_dataset(spec.dataset)
    target = _target(dataset, spec, cache)
    store = _opened(target)
    if store is not None:
        return store
    from filelock import FileLock

    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(target.name + ".lock"))
        lock.acquire()
    try:
        store = _opened(target)  # another process may have built it meanwhile
        if store is None:
            _build(dataset, spec, target)
            store = open_store(target)
    finally:
        lock.release()
    return store


def find_store(spec: DataSpec, *, cache: Path | None = None) -> Store | None:
    """The store of `spec` if it is already built; never builds. UserError for unusable data."""
    return _opened(_target(find_dataset(spec.dataset), spec, cache))


def open_store(path: Path) -> Store:
    """Open a built store by its folder. UserError if there is none or a file is not whole."""
    store = _opened(path)
    if store is None:
        raise UserError(f"'{path}' is no complete data store; `tune-ssl data prepare` builds it")
    return store


def open_test(store: Store) -> LabeledPart:
    """The test part. Only a confirmation may call this."""
    images, labels = _part(store.path, store.meta, "test")
    return LabeledPart(images, labels)


def _target(dataset: Dataset, spec: DataSpec, cache: Path | None) -> Path:
    shaping = [FORMAT, dataset.name, spec.image_size, spec.on_bad_image, dataset.key(spec)]
    key = hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:12]
    return cache_folder(cache) / "stores" / f"{dataset.name}-{key}"


def cache_folder(given: Path | None = None) -> Path:
    """What this machine keeps between runs: `given`, else $TUNE_SSL_CACHE, else ~/.cache/tune-ssl."""
    base = given or Path(os.environ.get("TUNE_SSL_CACHE") or DEFAULT_CACHE)
    return base.expanduser().absolute()


def _opened(path: Path) -> Store | None:
    try:
        meta = json.loads((path / "meta.json").read_text())
        train, val, unlabeled = (
            _part(path, meta, name) if name in meta["counts"] else None
            for name in ("train", "val", "unlabeled")
        )
        if "test" in meta["counts"]:  # whole as well, though not kept open
            _part(path, meta, "test")
    except (OSError, ValueError, KeyError):
        return None
    assert train is not None
    return Store(
        path=path,
        train=LabeledPart(*train),
        val=LabeledPart(*val) if val else None,
        unlabeled=UnlabeledPart(*unlabeled) if unlabeled else None,
        class_names=tuple(meta["class_names"]),
        flip=meta["flip"],
        mean=tuple(meta["mean"]),
        std=tuple(std if std >= LEAST_STD else 1.0 for std in meta["std"]),
        digest=meta["digest"],
        meta=meta,
    )


def _part(path: Path, meta: dict[str, Any], name: str) -> tuple[Uint8s, NDArray[np.int64]]:
    count, shape, images = meta["counts"][name], meta["shape"], path / f"{name}.images.bin"
    if images.stat().st_size != count * int(np.prod(shape)):
        raise ValueError(f"{images} has another size than its meta.json says")
    labels = np.load(path / f"{name}.labels.npy")
    return np.memmap(images, dtype=np.uint8, mode="r", shape=(count, *shape)), labels


def _build(dataset: Dataset, spec: DataSpec, target: Path) -> None:
    """Write the store beside `target`, then rename it. The caller holds the lock."""
    started = time.monotonic()
    for left in target.parent.glob(f".{target.name}.*"):  # of builds that were killed
        shutil.rmtree(left, ignore_errors=True)
    source = dataset.read(spec)
    _refuse_if_full(source, target)
    with _writing(target):
        temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        meta = {"dataset": dataset.name, "flip": dataset.flip, **_write(source, spec, temp, target)}
        meta["build_seconds"] = round(time.monotonic() - started, 2)
        with _writing(target):
            content = json.dumps(meta, indent=1).encode()
            write_atomically(temp / "meta.json", lambda file: file.write(content))
            temp.chmod(0o755)  # mkdtemp's 0700 would shut out others who share the cache
            shutil.rmtree(target, ignore_errors=True)  # damaged, else it had been opened
            temp.rename(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _write(source: Source, spec: DataSpec, temp: Path, target: Path) -> dict[str, Any]:
    """Stream all parts into `temp`; what meta.json says of them."""
    hasher = hashlib.sha256(str(source.shape).encode())
    moments = np.zeros((2, source.shape[0]), dtype=np.uint64)  # sums of x and of x^2 per channel
    counts: dict[str, int] = {}
    for name in PARTS:
        if name not in source.parts:
            continue
        part, kept = source.parts[name], []
        hasher.update(name.encode())
        with _writing(target):
            file = (temp / f"{name}.images.bin").open("wb", buffering=0)
        with file:
            for rows, block in _blocks(part.images, source.shape):
                kept += rows
                hasher.update(block.data)
                if name == "train":
                    moments += _moments(block)
                with _writing(target):
                    _write_whole(file, block)
            with _writing(target):
                os.fsync(file.fileno())
        labels = part.labels[kept].astype("<i8")
        hasher.update(labels.tobytes())
        counts[name] = len(labels)
        with _writing(target):
            np.save(temp / f"{name}.labels.npy", labels)
        if name == "train":
            train_labels = labels
    if source.bad and spec.on_bad_image == "refuse":
        raise _bad_images(source.bad, sum(len(part.labels) for part in source.parts.values()))
    sizes = np.bincount(train_labels, minlength=len(source.class_names))
    lost = [source.class_names[k] for k in np.flatnonzero(sizes == 0).tolist()]
    lost += [f"the {name} part" for name in ("val", "test") if counts.get(name) == 0]
    if lost:
        raise UserError(f"no image of {first_names(lost)} can be read, or none is left for it")
    pixels = counts["train"] * source.shape[1] * source.shape[2]
    mean = moments[0] / (255 * pixels)
    variance = moments[1] / (255**2 * pixels) - mean**2
    return {
        "class_names": source.class_names,
        "shape": source.shape,
        "counts": {name: count for name, count in counts.items() if count},
        "train_class_counts": sizes.tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(variance, 0)).tolist(),
        "digest": hasher.hexdigest()[:12],
        "skipped": dict(sorted(source.bad.items())),
        "ignored_files": source.ignored_files,
        "bytes": sum(counts.values()) * int(np.prod(source.shape)),
    }


def _blocks(
    images: Any, shape: tuple[int, int, int]
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
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


def _moments(block: Uint8s) -> NDArray[np.uint64]:
    sums = block.sum(axis=(0, 2, 3), dtype=np.uint64)
    squares = np.square(block, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.uint64)
    return np.stack([sums, squares])


def _write_whole(file: Any, block: Uint8s) -> None:
    """An unbuffered write may take only a part of the bytes, as on a disk that fills up."""
    rest = block.data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def _refuse_if_full(source: Source, target: Path) -> None:
    images = sum(len(part.labels) for part in source.parts.values())
    needed, free = images * int(np.prod(source.shape)), shutil.disk_usage(target.parent).free
    if needed > free:
        raise UserError(
            f"the data cache '{target.parent}' needs {needed / 1e9:.2f} GB, but has "
            f"{free / 1e9:.2f} GB free; TUNE_SSL_CACHE names another folder"
        )


def _bad_images(bad: dict[str, str], total: int) -> UserError:
    text = (
        f"is 'refuse', but {len(bad)} of {total} images cannot be read: {first_names(sorted(bad))}; "
        "'skip' leaves them out"
    )
    return UserError(Problem(text, key="data.on_bad_image"))


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the data cache '{target.parent}' cannot be written: {first_line(error)}; "
            "TUNE_SSL_CACHE names another folder"
        ) from error
