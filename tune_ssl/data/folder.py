"""Image files in folders: which there are, and their pixels, one at a time."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError

if TYPE_CHECKING:
    from PIL import Image

Uint8s = NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})
THREADS_FROM_BYTES = 16_384  # mean file size; threads made smaller files slower, by up to 2x
LISTED = 5  # names in one message


class ImageFile(NamedTuple):
    """A file with an image suffix; `path` is relative to the listing's root, with forward slashes."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """The image files of each part, sorted by class and path. `labels` are -1 without classes."""

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[ImageFile]]
    labels: dict[str, NDArray[np.int64]]
    ignored: int  # other files: not an image suffix, hidden, or in no class folder


def list_images(root: Path, folders: Mapping[str, str]) -> Listing:
    """List `folders` (part -> name of its folder): train, val and test by class, unlabeled at any depth.

    All but train may be missing. Files and folders whose name starts with a dot are no images.

    Raises:
        UserError: no such folder, fewer than two classes, a class without images, or other classes
            in val or test than in train.
    """
    if not (root / folders["train"]).is_dir():
        text = f"is '{root}', but has no folder {folders['train']}/ with one folder per class"
        raise UserError(Problem(text, key="data.root"))
    names: tuple[str, ...] = ()
    files: dict[str, list[ImageFile]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    ignored = 0
    problems: list[str] = []
    for part, folder in folders.items():
        top = root / folder
        if not top.is_dir():
            continue
        if part == "unlabeled":
            files[part], dropped = find_images(top, root)
            labels[part] = np.full(len(files[part]), -1, dtype=np.int64)
            ignored += dropped
            continue
        classes, loose = _classes(top)
        ignored += loose
        if part == "train":
            names = tuple(classes)
            if len(names) < 2:
                problems.append(f"needs 2 or more class folders in {folder}/, but has {len(names)}")
        elif set(classes) != set(names):
            only = ", ".join(sorted(set(classes) - set(names))) or "none"
            lacking = ", ".join(sorted(set(names) - set(classes))) or "none"
            problems.append(
                f"must have the same classes in {folder}/ and {folders['train']}/ "
                f"(only in {folder}/: {only}; lacking: {lacking})"
            )
        found: list[ImageFile] = []
        sizes: list[int] = []
        for name in classes:
            inside, dropped = find_images(top / name, root)
            ignored += dropped
            if not inside:
                problems.append(f"has no images in {folder}/{name}/")
            found += inside
            sizes.append(len(inside))
        files[part] = found
        labels[part] = np.repeat(np.arange(len(sizes)), sizes)
    if problems:
        raise UserError(Problem(f"is '{root}', which {text}", key="data.root") for text in problems)
    return Listing(root, names, {k: v for k, v in files.items() if v}, labels, ignored)


@dataclass
class ImageReader:
    """Reads files as uint8 (C, H, W); those that cannot be read are left out and noted in `bad`.

    `side` None keeps the images' own size, which must then be one; else the shorter side is scaled
    to `side` (bilinear, antialiased) and the centre cut out. Grey files (also 16 bit, of which the
    upper 8 are kept) give one channel if all are grey, else RGB. Transparency and the orientation
    tag are ignored, as in torchvision's ImageFolder; of a sequence the first frame is taken.
    """

    root: Path
    side: int | None
    bad: dict[str, str] = field(default_factory=dict)  # relative path -> reason
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def shape(self, files: Sequence[ImageFile]) -> tuple[int, int, int]:
        """(C, H, W) of every image, from the files' headers. UserError if their sizes differ."""
        headers = [header for header in map(self._header, files) if header]
        if not headers:
            return 1, 1, 1  # nothing is readable, and `bad` says so
        channels = 1 if all(mode in GREY_MODES for mode, _ in headers) else 3
        if self.side is not None:
            return channels, self.side, self.side
        sizes = Counter(size for _, size in headers)
        if len(sizes) > 1:
            seen = ", ".join(f"{w}x{h} ({n} images)" for (w, h), n in sizes.most_common(LISTED))
            rest = f" and {len(sizes) - LISTED} more" if len(sizes) > LISTED else ""
            text = f"is not set, but must be: the images have {len(sizes)} sizes: {seen}{rest}"
            raise UserError(Problem(text, key="data.image_size"))
        width, height = next(iter(sizes))
        return channels, height, width

    def read(self, files: Sequence[ImageFile], channels: int) -> Iterator[Uint8s | None]:
        """One image per file, large files decoded by threads a little ahead; None for a bad one."""

        def decode(file: ImageFile) -> Uint8s | None:
            if file.path in self.bad:
                return None
            try:
                return decode_image(self.root / file.path, channels, self.side)
            except MemoryError:
                raise
            except Exception as error:
                self._note(file, error)
                return None

        large = sum(file.size for file in files) >= THREADS_FROM_BYTES * len(files)
        return _parallel(decode, files) if large else map(decode, files)

    def _header(self, file: ImageFile) -> tuple[str, tuple[int, int]] | None:
        from PIL import Image

        try:
            with Image.open(self.root / file.path) as image:
                return image.mode, image.size
        except MemoryError:
            raise
        except Exception as error:
            self._note(file, error)
            return None

    def _note(self, file: ImageFile, error: Exception) -> None:
        reason = "is empty" if file.size == 0 else f"{type(error).__name__}: {error}"
        with self._lock:
            self.bad[file.path] = reason


def decode_image(path: Path, channels: int, side: int | None) -> Uint8s:
    """The file as uint8 (channels, H, W), fitted to `side`. Raises what Pillow raises."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            plain: Image.Image = Image.fromarray(grey)
        elif image.mode in ("I", "F"):
            raise ValueError("has 32-bit pixels, but must have 8 or 16 bits per channel")
        else:
            plain = image
        return to_array(fit(plain.convert("L" if channels == 1 else "RGB"), side))


def fit(image: Image.Image, side: int | None) -> Image.Image:
    """Scale the shorter side to `side` and cut out the centre; `None` keeps the image."""
    from PIL import Image

    width, height = image.size
    if side is None or (width, height) == (side, side):
        return image
    short = min(width, height)
    width, height = max(side, width * side // short), max(side, height * side // short)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_array(image: Image.Image) -> Uint8s:
    """uint8 (C, H, W) of an L or RGB image."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def first_names(names: Iterable[str], limit: int = LISTED) -> str:
    """The first names, printable on any terminal, and how many more there are."""
    names = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _classes(top: Path) -> tuple[list[str], int]:
    entries = list(os.scandir(top))
    classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    return classes, sum(not e.is_dir() for e in entries)


def find_images(top: Path, root: Path) -> tuple[list[ImageFile], int]:
    """The image files below `top`, sorted, and the number of other files. Links are followed once.

    Files and folders whose name starts with a dot are no images. `root` is `top` or above it.
    """
    found: list[ImageFile] = []
    ignored = 0
    seen: set[tuple[int, int]] = set()
    todo = [(str(top), top.relative_to(root).as_posix())]
    while todo:
        folder, name = todo.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".")
                if entry.is_dir():
                    if not hidden:
                        todo.append((entry.path, f"{name}/{entry.name}"))
                elif hidden or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                    ignored += 1
                else:
                    try:
                        info = entry.stat()
                        size, mtime = info.st_size, info.st_mtime_ns
                    except OSError:  # a broken link: it is found bad when it is read
                        size, mtime = -1, 0
                    found.append(ImageFile(f"{name}/{entry.name}", size, mtime))
    return sorted(found), ignored


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _parallel(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """`map` with threads, in order, with at most some hundred results waiting."""
    workers = min(32, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), 32 * workers):
            yield from pool.map(function, items[start : start + 32 * workers])
