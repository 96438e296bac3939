"""Every dataset as uint8 images by row, built once per machine; mapped pixels are opened with numpy alone.

A store is found by what shapes its images: the keys of `data` that do, and of the user's own files the names and sizes.
Files that were touched since are read again, and where they are what they were, so is the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, nearest
from tune_ssl.base.files import make_room, write_atomically
from tune_ssl.base.progress import progress
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.batch import Task
from tune_ssl.data.build import build, writing
from tune_ssl.data.datasets import Dataset, find_dataset
from tune_ssl.data.folder import Listing, first_names, left_out
from tune_ssl.data.image_files import Decoding
from tune_ssl.data.image_reader import hash_of
from tune_ssl.data.rows import EncodedImages, ImageRows, mapped

FORMAT = 2  # part of every key: raise it when the files of a store change
DEFAULT_CACHE = "~/.cache/tune-ssl"
MOST_BYTES = 50 << 30  # of all stores; those that were used longest ago go first
KEPT_SECONDS = 24 * 3600  # for which a store is not deleted: a run may be at work on it
LEAST_STD = (
    1 / 255
)  # of a channel, in 0..1: one grey level; a channel below it is shifted, and not scaled
SHAPING = ("stored_size", "resize", "background", "range", "max_pixels")
CHOOSING = ("on_bad_image", "duplicates", "store")  # what is kept of the files, and how


@dataclass(frozen=True)
class LabeledPart:
    """`images` uint8 (N, C, H, W) by row, read-only; `labels` int64 (N,) in 0..K-1, -1 of another class."""

    images: ImageRows
    labels: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the task's images."""
        return np.flatnonzero(self.labels >= 0)


@dataclass(frozen=True)
class UnlabeledPart:
    """As LabeledPart, but every label is -1."""

    images: ImageRows
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Store:
    """A dataset on disk, or some of its classes. The test part is not here: see `open_test`.

    The K `class_names` are the task's; `kept` has their numbers in the dataset where they are not all (`of_classes`).
    `flip` says whether a left-right flip keeps the class. `mean` and `std` are those of the train
    part's channels, in 0..1, 1 where it is below LEAST_STD. `digest` is of all images and labels (12 hex digits).
    `meta` has counts, what was left out and why, notes and build seconds; `listed` are sentences about the folder that
    was listed to find it. Pickling carries the path and the classes.
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
    listed: tuple[str, ...] = ()
    kept: tuple[int, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, None if self.kept is None else self.class_names)

    def of_classes(self, names: Sequence[str] | None) -> Store:
        """The store as a task of these classes alone, numbered in this order; of all its classes where None.

        Rows, statistics and digest are those of the whole. UserError for a name that it does not have.
        """
        if names is None:
            return self
        known = self.class_names
        if wrong := [name for name in names if name not in known]:
            of = f"which is no class of {self.meta['dataset']}"
            raise UserError(
                Problem(
                    f"has {name!r}, {of}{nearest(name, known)} (known: {first_names(known)})",
                    "data.classes",
                )
                for name in wrong
            )
        kept = tuple(known.index(name) for name in names)
        store = replace(self, class_names=tuple(names), kept=kept)
        val = store.val and replace(store.val, labels=store.numbered(store.val.labels))
        train = replace(store.train, labels=store.numbered(store.train.labels))
        return replace(store, train=train, val=val)

    def numbered(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The dataset's class numbers (N,) as the task's: -1 of a class that is not in it."""
        if self.kept is None:
            return labels
        number = np.full(len(self.meta["class_names"]), -1, dtype=np.int64)
        number[[*self.kept]] = np.arange(len(self.kept))
        return number[labels]

    @property
    def counts(self) -> dict[str, int]:
        """part -> its images of the task; all of the unlabeled part."""
        counts: dict[str, int] = dict(self.meta["counts"])
        if self.kept is not None:
            for part, sizes in self.meta["class_counts"].items():
                counts[part] = sum(sizes[k] for k in self.kept)
        return counts

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every stored image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def task(self, spec: DataSpec) -> Task:
        """The shape of the problem: images as `spec` has the network see them."""
        if spec.image_size is not None:
            return Task(len(self.class_names), self.shape[0], spec.image_size)
        return Task(len(self.class_names), *self.shape)

    @property
    def decoding(self) -> Decoding | None:
        """How files became these images; None where the dataset's were arrays."""
        record = self.meta["decoding"]
        return None if record is None else Decoding.from_record(record)

    def remarks(self) -> list[str]:
        """What one should know of the data before training: a sentence for each."""
        lines = [*self.listed]
        for reason, files in self.meta["left_out"].items():
            more = files["count"] - len(files["first"])
            lines.append(left_out(reason, [*files["first"], *[""] * more]))
        if skipped := self.meta["skipped"]:
            named = [f"{path} ({reason})" for path, reason in skipped.items()]
            lines.append(
                f"skipped: {len(skipped)} images that cannot be read: {first_names(named)}"
            )
        same = [channel for channel, std in enumerate(self.meta["std"]) if std < LEAST_STD]
        if same:
            which = (
                f"channel {same[0]} is"
                if len(same) == 1
                else f"channels {', '.join(map(str, same))} are"
            )
            lines.append(f"{which} the same in nearly all training images, and not scaled")
        return [*lines, *self.meta["notes"]]

    def info(self) -> dict[str, Any]:
        """Plain values for `tune-ssl data info`: what is in the store and where it lies."""
        return {**self.meta, "path": str(self.path)}


def prepare(spec: DataSpec, *, cache: Path | None = None) -> Store:
    """Open the store of `spec`, building it first if this machine has none.

    It lies in `cache`, else in $TUNE_SSL_CACHE, else in ~/.cache/tune-ssl. Of several processes one
    builds and the others wait. A store appears under its name only when it is complete.

    Raises:
        UserError: unknown dataset, missing or unusable data, or a cache that cannot be written.
    """
    dataset = find_dataset(spec.dataset)
    listing = dataset.listing(spec) if dataset.listing else None
    base = _base(dataset, spec, listing, cache)
    store = _found(base, listing)
    if store is not None:
        return _listed(store, spec, listing).of_classes(spec.classes)
    from filelock import FileLock

    with writing(base):
        base.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(base.with_name(base.name + ".lock"))
        lock.acquire()
    try:
        store = _found(base, listing)  # another process may have built it meanwhile
        if store is None:
            target = _free_name(base)
            build(dataset, spec, listing, target)
            make_room(base.parent, target, MOST_BYTES, KEPT_SECONDS)
            store = open_store(target)
    finally:
        lock.release()
    return _listed(store, spec, listing).of_classes(spec.classes)


def _listed(store: Store, spec: DataSpec, listing: Listing | None) -> Store:
    """The store with what is to be said of this folder: another one may have the same images."""
    if listing is None:
        return store
    meta = {**store.meta, "root": spec.root or spec.labels}
    return replace(store, meta=meta, listed=tuple(listing.remarks()))


def find_store(spec: DataSpec, *, cache: Path | None = None) -> Store | None:
    """The store of `spec` if it is already built; never builds. UserError for unusable data."""
    dataset = find_dataset(spec.dataset)
    listing = dataset.listing(spec) if dataset.listing else None
    return _found(_base(dataset, spec, listing, cache), listing)


def open_store(path: Path) -> Store:
    """Open a built store by its folder. UserError if there is none or a file is not whole."""
    store = _opened(path)
    if store is None:
        raise UserError(f"'{path}' is no complete data store; `tune-ssl data prepare` builds it")
    return store


def _reopened(path: Path, classes: tuple[str, ...] | None) -> Store:
    return open_store(path).of_classes(classes)


def pinned_store(spec: DataSpec, path: str, digest: str) -> Store:
    """The store that a run began with: at `path` if it is there, else what `spec` gives here and now.

    Raises:
        UserError: the data are not those of `digest` any more.
    """
    store = _opened(Path(path)) if path else None
    if store is not None and store.digest == digest:
        return store.of_classes(spec.classes)
    store = prepare(spec)
    if store.digest != digest:
        text = (
            f"has digest {store.digest} on this machine, but the run began with {digest}: the data changed, and the "
            f"store {path} is gone; bring the images back as they were, or start a new run"
        )
        raise UserError(Problem(text, spec.dataset))
    return store


def changes_since(store: Store, spec: DataSpec) -> str:
    """How the user's files differ from those that the store was built of; empty where they do not, or cannot."""
    dataset = find_dataset(spec.dataset)
    table = _files_of(store.path)
    if dataset.listing is None or table is None:
        return ""
    names = bytes(table["names"]).split(b"\0")
    known = dict(
        zip(names, zip(table["sizes"], table["mtimes"], table["digests"], strict=True), strict=True)
    )
    listing = dataset.listing(spec)
    listed = [file for files in listing.files.values() for file in files]
    now = {os.fsencode(file.path): file for file in listed}
    changed = 0
    for name in set(now) & set(known):
        size, mtime, digest = known[name]
        if now[name].size != size or now[name].mtime_ns != mtime:
            changed += not _holds(listing.root / now[name].path, digest.tobytes())
    counts = {
        "more": len(set(now) - set(known)),
        "fewer": len(set(known) - set(now)),
        "changed": changed,
    }
    return ", ".join(f"{count} {how}" for how, count in counts.items() if count)


def open_test(store: Store) -> LabeledPart:
    """The test part. Only a confirmation may call this."""
    images, labels = _part(store.path, store.meta, "test")
    return LabeledPart(images, store.numbered(labels))


def cache_folder(given: Path | None = None) -> Path:
    """What this machine keeps between runs: `given`, else $TUNE_SSL_CACHE, else ~/.cache/tune-ssl."""
    base = given or Path(os.environ.get("TUNE_SSL_CACHE") or DEFAULT_CACHE)
    return base.expanduser().absolute()


def _base(dataset: Dataset, spec: DataSpec, listing: Listing | None, cache: Path | None) -> Path:
    """The path that a store's name begins with: stores of files of the same names and sizes share it."""
    shaping = [FORMAT, dataset.name, *(getattr(spec, key) for key in SHAPING)]
    if listing is None:
        shaping += [spec.on_bad_image, dataset.key(spec)]
    else:
        shaping += [*(getattr(spec, key) for key in CHOOSING), listing.key()]
    key = hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:12]
    return cache_folder(cache) / "stores" / f"{dataset.name}-{key}"


def _found(base: Path, listing: Listing | None) -> Store | None:
    """The store of that name, of files with these contents."""
    for path in _named(base):
        store = _opened(path)
        if store is not None and (listing is None or _same_files(store, listing)):
            return store
    return None


def _named(base: Path) -> list[Path]:
    """The stores whose name begins so: base, base-1, base-2."""
    found = [path for path in base.parent.glob(f"{base.name}*") if path.is_dir()]
    return sorted(
        path for path in found if path.name.removeprefix(base.name).strip("-0123456789") == ""
    )


def _free_name(base: Path) -> Path:
    """A name for a new store: one that is taken holds other contents, or is damaged."""
    number = 0
    while True:
        path = base if not number else base.with_name(f"{base.name}-{number}")
        if _opened(path) is None:
            return path
        number += 1


def _same_files(store: Store, listing: Listing) -> bool:
    """Whether the listed files hold what the store was built of: those that were touched since are read."""
    table = _files_of(store.path)
    if table is None:
        return False
    every = [file for files in listing.files.values() for file in files]
    mtimes = np.array([file.mtime_ns for file in every], np.int64)
    if len(mtimes) != len(table["mtimes"]):
        return False
    elsewhere = store.meta["files_root"] != str(listing.root.absolute())
    touched = np.flatnonzero((mtimes != table["mtimes"]) | elsewhere).tolist()
    for at in progress(touched, "reading touched files", len(touched)):
        if not _holds(listing.root / every[at].path, table["digests"][at].tobytes()):
            return False
    if touched and not elsewhere:
        with contextlib.suppress(OSError):
            write_atomically(
                store.path / "files.npz",
                lambda file: np.savez(file, **{**table, "mtimes": mtimes}),  # type: ignore[arg-type]
            )
    return True


def _holds(path: Path, digest: bytes) -> bool:
    """Whether a file has the bytes of that digest; zeros: it was no image, and of a size that it still has."""
    try:
        return digest == bytes(16) or hash_of(path.read_bytes()) == digest
    except OSError:
        return False


def _files_of(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path / "files.npz") as table:
            return dict(table)
    except (OSError, ValueError):
        return None


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
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: others are deleted first
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


def _part(path: Path, meta: dict[str, Any], name: str) -> tuple[ImageRows, NDArray[np.int64]]:
    count, shape = meta["counts"][name], tuple(meta["shape"])
    labels = np.load(path / f"{name}.labels.npy")
    if meta["kind"] == "encoded":
        files, offsets = path / f"{name}.files.bin", np.load(path / f"{name}.offsets.npy")
        if len(offsets) != count + 1 or files.stat().st_size != offsets[-1]:
            raise ValueError(f"{files} has another size than its offsets say")
        how = Decoding.from_record(meta["decoding"])
        return EncodedImages(files, offsets, shape, how), labels
    images = path / f"{name}.images.bin"
    if images.stat().st_size != count * int(np.prod(shape)):
        raise ValueError(f"{images} has another size than its meta.json says")
    return mapped(images, (count, *shape)), labels
