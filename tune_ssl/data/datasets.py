"""The datasets by name. To add one, write a function from DataSpec to Source under `@dataset`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import ImageFile, Listing, list_images, list_parts
from tune_ssl.data.image_files import Decoding, fit, to_array
from tune_ssl.data.image_reader import FileImage, ImageReader
from tune_ssl.data.splits import hold_out

Uint8s = NDArray[np.uint8]
Ints = NDArray[np.int64]

DEFAULT_ROOT = "~/.cache/tune-ssl/data"
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
    """Labels (N,), -1 where unknown, and lazily one image per label; None for a bad one.

    An image is uint8 (C, H, W), or a FileImage where it comes from one of `files`.
    """

    labels: Ints
    images: Iterable[Uint8s | FileImage | None]
    files: tuple[ImageFile, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a dataset's function returns: `train` and `test`, perhaps `val` and `unlabeled`.

    `shape` is (C, H, W) of every image. `bad` (path -> reason) fills while the images are read. Of a source of files
    `decoding` says how they become arrays, `left_out` (reason -> paths) which are no images, and `again` reads parts
    with other files.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    parts: dict[str, SourcePart]
    bad: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    decoding: Decoding | None = None
    again: Callable[[Ints, list[ImageFile]], SourcePart] | None = None

    def without(self, rows: dict[str, Ints]) -> Source:
        """The source without these rows of its parts, to be read anew."""
        assert self.again is not None
        parts = dict(self.parts)
        for part, dropped in rows.items():
            whole = self.parts[part]
            kept = np.setdiff1d(np.arange(len(whole.labels)), dropped)
            parts[part] = self.again(whole.labels[kept], [whole.files[row] for row in kept])
        for part in set(parts) - set(rows):
            parts[part] = self.again(parts[part].labels, [*parts[part].files])
        return replace(self, parts=parts)


@dataclass(frozen=True)
class Dataset:
    """A registered dataset.

    `flip` says whether a left-right flip keeps the class. `key` gives what shapes the arrays besides
    the spec; it must be cheap, and raises UserError where the data cannot be used. A dataset of the user's own files
    has `listing` instead, whose result `read` gets.
    """

    name: str
    flip: bool
    read: Callable[..., Source]
    key: Callable[[DataSpec], str]
    listing: Callable[[DataSpec], Listing] | None = None


DATASETS: dict[str, Dataset] = {}


def dataset(
    name: str,
    *,
    flip: bool,
    key: Callable[[DataSpec], str] = lambda spec: "",
    listing: Callable[[DataSpec], Listing] | None = None,
) -> Callable[[Callable[..., Source]], Callable[..., Source]]:
    """Register the decorated function as the dataset `name`."""

    def register(read: Callable[..., Source]) -> Callable[..., Source]:
        DATASETS[name] = Dataset(name, flip, read, key, listing)
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
    side = spec.stored_size or 8
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
    side = spec.stored_size or 28
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
    side = spec.stored_size or 32
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
    side = spec.stored_size or 96
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
    side = spec.stored_size or 160
    small = {"160px": "imagenette2-160", "320px": "imagenette2-320", "full": "imagenette2"}
    sizes = [size for size in small if size == "full" or int(size[:-2]) >= side]
    root = _root(spec)
    if root.name in small.values() and (root / "train").is_dir():
        base = root  # the folder itself was named, and not the one above it
    else:
        present = [size for size in sizes if (root / small[size]).is_dir()]
        size = (present or sizes)[0]
        if not present:
            _torchvision("Imagenette", spec, small[size], size=size)
        base = root / small[size]
    listing = list_parts(base, {"train": base / "train", "test": base / "val"})
    names = tuple(IMAGENETTE_CLASSES.get(name, name) for name in listing.class_names)
    spec = spec.model_copy(update={"image_size": side, "store_size": None})
    return _from_files(replace(listing, class_names=names), spec)


@dataset("folder", flip=True, listing=list_images)
def folder(spec: DataSpec, listing: Listing) -> Source:
    """The user's own images: <class>/ or train/<class>/, or `data.labels`; perhaps val, test and unlabeled images.

    Without a test part a fixed stratified 20 % of the train part are the test part.
    """
    # What the listing itself left out is said by whoever lists: another folder may share the store
    return _from_files(replace(listing, left_out={}, notes=()), spec)


def _from_files(listing: Listing, spec: DataSpec) -> Source:
    """What the files hold; those that are no images are left out, and named."""
    reader = ImageReader(listing.root, spec)
    reader.look([file for files in listing.files.values() for file in files])
    listing = listing.without(reader.no_images)
    files = {part: found for part, found in listing.files.items() if found}
    labels = dict(listing.labels)
    if "test" not in files and files.get("train"):
        train, test = hold_out(labels["train"])
        if not len(test):
            text = f"is '{listing.root}', which has no image to spare for a test part: data.test_root gives one"
            raise UserError(Problem(text, key="data.root"))
        whole, known = files["train"], labels["train"]
        for part, rows in (("train", train), ("test", test)):
            files[part], labels[part] = [whole[row] for row in rows], known[rows]
    listing = replace(listing, files={"train": [], **files}, labels=labels).checked()
    how = reader.decoding(files["train"])
    shape = reader.shape(how)

    def part_of(labels_N: Ints, chosen: list[ImageFile]) -> SourcePart:
        return SourcePart(labels_N, reader.read(chosen, how, shape), tuple(chosen))

    parts = {part: part_of(labels[part], chosen) for part, chosen in files.items()}
    notes = (*listing.notes, *reader.notes(how))
    return Source(
        listing.class_names, shape, parts, reader.bad, listing.left_out, notes, how, part_of
    )


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

    how = Decoding(channels=images.shape[1], side=side)
    for image in images:
        plain = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        yield to_array(fit(Image.fromarray(np.ascontiguousarray(plain)), how))
