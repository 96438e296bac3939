"""The datasets by name. To add one, write a function from DataSpec to Source under `@dataset`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import ImageFile, ImageReader, Listing, fit, list_images, to_array
from tune_ssl.data.splits import hold_out

Uint8s = NDArray[np.uint8]
Ints = NDArray[np.int64]

DEFAULT_ROOT = "~/.cache/tune-ssl/data"
FOLDERS = {"train": "train", "val": "val", "test": "test", "unlabeled": "unlabeled"}
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


@dataclass(frozen=True)
class SourcePart:
    """Labels (N,), -1 where unknown, and lazily one uint8 (C, H, W) per label; None for a bad image."""

    labels: Ints
    images: Iterable[Uint8s | None]


@dataclass(frozen=True)
class Source:
    """What a dataset's function returns: `train` and `test`, perhaps `val` and `unlabeled`.

    `shape` is (C, H, W) of every image. `bad` (path -> reason) fills while the images are read.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    parts: dict[str, SourcePart]
    bad: dict[str, str] = field(default_factory=dict)
    ignored_files: int = 0


@dataclass(frozen=True)
class Dataset:
    """A registered dataset.

    `flip` says whether a left-right flip keeps the class. `key` gives what shapes the arrays besides
    the spec; it must be cheap, and raises UserError where the data cannot be used.
    """

    name: str
    flip: bool
    read: Callable[[DataSpec], Source]
    key: Callable[[DataSpec], str]


DATASETS: dict[str, Dataset] = {}


def dataset(
    name: str, *, flip: bool, key: Callable[[DataSpec], str] = lambda spec: ""
) -> Callable[[Callable[[DataSpec], Source]], Callable[[DataSpec], Source]]:
    """Register the decorated function as the dataset `name`."""

    def register(read: Callable[[DataSpec], Source]) -> Callable[[DataSpec], Source]:
        DATASETS[name] = Dataset(name, flip, read, key)
        return read

    return register


def find_dataset(name: str) -> Dataset:
    """The dataset `name`; UserError with the nearest known one."""
    if name not in DATASETS:
        raise UserError(Problem(unknown("dataset", name, DATASETS), key="data.dataset"))
    return DATASETS[name]


@dataset("digits", flip=False)
def digits(spec: DataSpec) -> Source:
    """scikit-learn's 1,797 8x8 digits; a fixed stratified 20 % are the test part."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bundle = load_digits()
    pixels = np.round(bundle.images * (255 / 16)).astype(np.uint8)  # 0..16 in the source
    labels = bundle.target.astype(np.int64)
    train, test = hold_out(labels)
    side = spec.image_size or 8
    parts = {
        "train": SourcePart(labels[train], _fitted(pixels[train, None], side)),
        "test": SourcePart(labels[test], _fitted(pixels[test, None], side)),
    }
    return Source(tuple("0123456789"), (1, side, side), parts)


def _real_root(spec: DataSpec) -> str:
    return str(_root(spec).resolve())


@dataset("mnist", flip=False, key=_real_root)
def mnist(spec: DataSpec) -> Source:
    """torchvision's MNIST: 60,000 and 10,000 grey 28x28 digits."""
    train, test = (
        _torchvision("MNIST", spec, "MNIST", train=is_train) for is_train in (True, False)
    )
    side = spec.image_size or 28
    parts = {
        name: SourcePart(
            np.asarray(data.targets, np.int64), _fitted(data.data.numpy()[:, None], side)
        )
        for name, data in (("train", train), ("test", test))
    }
    return Source(tuple("0123456789"), (1, side, side), parts)


@dataset("cifar10", flip=True, key=_real_root)
def cifar10(spec: DataSpec) -> Source:
    """torchvision's CIFAR-10: 50,000 and 10,000 colour images of 32x32."""
    train, test = (
        _torchvision("CIFAR10", spec, "cifar-10-batches-py", train=is_train)
        for is_train in (True, False)
    )
    side = spec.image_size or 32
    parts = {
        name: SourcePart(
            np.asarray(data.targets, np.int64), _fitted(data.data.transpose(0, 3, 1, 2), side)
        )
        for name, data in (("train", train), ("test", test))
    }
    return Source(tuple(train.classes), (3, side, side), parts)


@dataset("stl10", flip=True, key=_real_root)
def stl10(spec: DataSpec) -> Source:
    """torchvision's STL-10: 5,000 and 8,000 colour images of 96x96, and 100,000 unlabeled ones."""
    train, test = (
        _torchvision("STL10", spec, "stl10_binary", split=part) for part in ("train", "test")
    )
    side = spec.image_size or 96
    parts = {
        name: SourcePart(np.asarray(data.labels, np.int64), _fitted(data.data, side))
        for name, data in (("train", train), ("test", test))
    }
    # 2.7 GB, which torchvision would read at once: columns come first in the file, as it says
    flat = np.memmap(_root(spec) / "stl10_binary" / "unlabeled_X.bin", dtype=np.uint8, mode="r")
    extra = flat.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    parts["unlabeled"] = SourcePart(np.full(len(extra), -1, dtype=np.int64), _fitted(extra, side))
    return Source(tuple(train.classes), (3, side, side), parts)


@dataset("imagenette", flip=True, key=_real_root)
def imagenette(spec: DataSpec) -> Source:
    """Imagenette 2: ten ImageNet classes, 9,469 and 3,925 photographs; its val folder is the test part.

    Of the published sizes the smallest that is large enough for `image_size` (160 by default) is
    used, a larger one if it is already there.
    """
    side = spec.image_size or 160
    small = {"160px": "imagenette2-160", "320px": "imagenette2-320", "full": "imagenette2"}
    sizes = [size for size in small if size == "full" or int(size[:-2]) >= side]
    present = [size for size in sizes if (_root(spec) / small[size]).is_dir()]
    size = (present or sizes)[0]
    if not present:
        _torchvision("Imagenette", spec, small[size], size=size)
    listing = list_images(_root(spec) / small[size], {"train": "train", "test": "val"})
    names = tuple(IMAGENETTE_CLASSES.get(name, name) for name in listing.class_names)
    return _from_files(listing, names, side)


def _folder_key(spec: DataSpec) -> str:
    listing, hasher = _folder(spec), hashlib.sha256()
    for part, files in listing.files.items():
        hasher.update(f"{part}\n".encode())
        for file in files:
            hasher.update(os.fsencode(f"{file.path}\0{file.size}\0{file.mtime_ns}\n"))
    return hasher.hexdigest()


@dataset("folder", flip=True, key=_folder_key)
def folder(spec: DataSpec) -> Source:
    """The user's own images: train/<class>/, and perhaps val/<class>/, test/<class>/, unlabeled/.

    Without a test folder a fixed stratified 20 % of the train folder are the test part.
    """
    listing = _folder(spec)
    if "test" not in listing.files:
        train, test = hold_out(listing.labels["train"])
        files, labels = listing.files["train"], listing.labels["train"]
        for part, rows in (("train", train), ("test", test)):
            listing.files[part] = [files[row] for row in rows]
            listing.labels[part] = labels[rows]
    return _from_files(listing, listing.class_names, spec.image_size)


def _folder(spec: DataSpec) -> Listing:
    if spec.root is None:
        text = "is not set, but dataset 'folder' needs the folder that has train/<class>/"
        raise UserError(Problem(text, key="data.root"))
    return list_images(_root(spec), FOLDERS)


def _from_files(listing: Listing, class_names: tuple[str, ...], side: int | None) -> Source:
    reader = ImageReader(listing.root, side)
    every: list[ImageFile] = [file for files in listing.files.values() for file in files]
    shape = reader.shape(every)
    parts = {
        part: SourcePart(listing.labels[part], reader.read(files, shape[0]))
        for part, files in listing.files.items()
    }
    return Source(class_names, shape, parts, reader.bad, listing.ignored)


def _root(spec: DataSpec) -> Path:
    return Path(spec.root or DEFAULT_ROOT).expanduser()


def _torchvision(name: str, spec: DataSpec, folder: str, **options: Any) -> Any:
    """torchvision.datasets.<name>; UserError where its `folder` is missing or damaged."""
    root = _root(spec)

    def problem(what: str) -> UserError:
        text = f"is '{spec.dataset}', but {what}; data.download=true fetches it"
        return UserError(Problem(text, key="data.dataset"))

    if not spec.download and not (root / folder).is_dir():
        raise problem(f"there is no folder {folder}/ in '{root}'")
    import torchvision.datasets  # type: ignore[import-untyped]

    try:
        return getattr(torchvision.datasets, name)(root, download=spec.download, **options)
    except (RuntimeError, OSError) as error:  # also urllib's errors, which are OSErrors
        if spec.download:
            text = f"is true, but fetching '{spec.dataset}' into '{root}' failed: {error}"
            raise UserError(Problem(text, key="data.download")) from error
        raise problem(f"the files in '{root / folder}' are incomplete or damaged") from error


def _fitted(images: Uint8s, side: int) -> Iterator[Uint8s]:
    """The rows of (N, C, H, W), each scaled to `side`."""
    if images.shape[2:] == (side, side):
        yield from images
        return
    from PIL import Image

    for image in images:
        plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        yield to_array(fit(Image.fromarray(np.ascontiguousarray(plain)), side))
