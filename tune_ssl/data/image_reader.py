"""A listing's files, read in threads: first what each one is, then their pixels."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.progress import progress
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import LISTED, ImageFile, first_names
from tune_ssl.data.image_files import (
    BadImage,
    Decoding,
    Header,
    NoImage,
    Range,
    Uint8s,
    decode,
    has_image_suffix,
    look,
    values_of,
)

THREADS_FROM_BYTES = 16_384  # mean file size; threads made smaller files slower, by up to 2x
RANGE_FILES, RANGE_PIXELS = 2000, 4096  # files, and pixels of each, that the range is found in
ROBUST = 0.1  # per cent of the values at each end that do not count
MARGIN = 0.5  # of the robust range's width, by which it may grow towards the extremes
CUT = 0.6  # of an image's area: what a centre crop must show, or it is said
SAID_FROM = 0.05  # share of the images from which something about them is said


class FileImage(NamedTuple):
    """An image as it is stored, the file's own bytes, and a digest of them."""

    pixels: Uint8s
    content: bytes
    digest: bytes


@dataclass
class ImageReader:
    """Reads files as uint8 (C, H, W); those that cannot be read are left out and noted in `bad` (path -> reason).

    `look` comes first: it fills `headers`, and `no_images` (path -> reason) with files of other kinds.
    """

    root: Path
    spec: DataSpec
    bad: dict[str, str] = field(default_factory=dict)
    no_images: dict[str, str] = field(default_factory=dict)
    headers: dict[str, Header] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, files: Sequence[ImageFile]) -> None:
        """Find out what each file is, by its content."""

        def one(file: ImageFile) -> None:
            try:
                found = look(self.root / file.path, self.spec.max_pixels)
            except MemoryError:
                raise
            except NoImage as error:
                if has_image_suffix(file.path):
                    self._note(file, error)
                else:
                    with self._lock:
                        self.no_images[file.path] = str(error)
            except Exception as error:
                if isinstance(error, BadImage) or has_image_suffix(file.path):
                    self._note(file, error)
                else:  # a text that begins as some format does
                    with self._lock:
                        self.no_images[file.path] = f"no image ({reason_of(error, file.size)})"
            else:
                with self._lock:
                    self.headers[file.path] = found

        every = _parallel(one, files) if _large(files) else map(one, files)
        for _ in progress(every, "looking at files", len(files)):
            pass

    def decoding(self, train: Sequence[ImageFile]) -> Decoding:
        """How all files become arrays of one shape; the range of wide ones is that of the train part."""
        channels = self._channels()
        spec = self.spec
        ranges: tuple[Range, ...] | None = None
        if spec.range != "auto":
            ranges = ((spec.range[0], spec.range[1]),)
        elif any(
            self.headers[f.path].wide
            for f in train
            if f.path in self.headers and f.path not in self.bad
        ):
            ranges = self._ranges(train, channels)
        return Decoding(
            channels=channels,
            side=spec.stored_size,
            resize=spec.resize,
            background=spec.background,
            ranges=ranges,
            every=spec.range != "auto",
            max_pixels=spec.max_pixels,
        )

    def shape(self, how: Decoding) -> tuple[int, int, int]:
        """(C, H, W) of every image. UserError if their sizes differ and `data.image_size` is not set."""
        if how.side is not None:
            return how.channels, how.side, how.side
        sizes = Counter(header.size for header in self.headers.values())
        if not sizes:
            return 1, 1, 1  # nothing is readable, and `bad` says so
        if len(sizes) > 1:
            seen = ", ".join(f"{w}x{h} ({n} images)" for (w, h), n in sizes.most_common(LISTED))
            rest = f" and {len(sizes) - LISTED} more" if len(sizes) > LISTED else ""
            least = min(min(size) for size in sizes)
            some = next((side for side in (224, 160, 128, 96, 64, 32) if side <= least), 32)
            text = (
                f"is not set, but must be: the images have {len(sizes)} sizes: {seen}{rest}; "
                f"data.image_size={some} scales them"
            )
            raise UserError(Problem(text, "data.image_size"))
        width, height = next(iter(sizes))
        return how.channels, height, width

    def read(
        self, files: Sequence[ImageFile], how: Decoding, shape: tuple[int, int, int]
    ) -> Iterator[FileImage | None]:
        """One image per file, large files decoded by threads a little ahead; None for a bad one."""

        def one(file: ImageFile) -> FileImage | None:
            if file.path in self.bad:
                return None
            try:
                content = (self.root / file.path).read_bytes()
                pixels = decode(content, how)
                if pixels.shape != shape:
                    raise BadImage(_other_size(pixels.shape, shape))
                return FileImage(pixels, content, hash_of(content))
            except MemoryError:
                raise
            except Exception as error:
                self._note(file, error)
                return None

        return _parallel(one, files) if _large(files) else map(one, files)

    def notes(self, how: Decoding) -> list[str]:
        """Sentences about what the files lose in reading."""
        notes = []
        several = sorted(path for path, header in self.headers.items() if header.frames > 1)
        if several:
            notes.append(
                f"{len(several)} files hold several pictures, of which the first is taken: {first_names(several)}"
            )
        shown = [min(h.size) / max(h.size) for h in self.headers.values()]
        cut = [share for share in shown if share < CUT]
        square = how.side is not None and how.resize == "crop"
        if square and len(cut) > SAID_FROM * len(shown):
            notes.append(
                f"of {len(cut)} long images the centre is cut out, down to {100 * min(cut):.0f} % of their area; "
                "data.resize: pad or squash shows all of them"
            )
        wide = sum(header.wide for header in self.headers.values())
        if wide and how.ranges is None:
            notes.append(
                f"{wide} images have more than 8 bits a channel, and no training image has: all that their type holds "
                "becomes 0 to 255"
            )
        if wide and how.ranges is not None and not how.every:
            ends = ", ".join(f"{low:g} to {high:g}" for low, high in how.ranges[:LISTED])
            notes.append(
                f"{wide} images have more than 8 bits a channel: {ends} become 0 to 255 (data.range)"
            )
        return notes

    def _channels(self) -> int:
        """1 where all are grey, 3 where some have colour; else what most of them have: the others are bad."""
        found = Counter(header.channels for header in self.headers.values())
        photos = found.pop(1, 0), found.pop(3, 0)
        most, count = max(found.items(), key=lambda pair: (pair[1], pair[0]), default=(0, 0))
        if sum(photos) >= count:
            most = 3 if photos[1] else 1
        for path, header in self.headers.items():
            if header.channels != most and {header.channels, most} != {1, 3}:
                self.bad[path] = f"has {header.channels} channels, but most images have {most}"
        return most

    def _ranges(self, train: Sequence[ImageFile], channels: int) -> tuple[Range, ...]:
        """What the wide files of the train part hold, but for outliers: of grey and colour one range for all."""
        wide = [
            f
            for f in train
            if f.path not in self.bad and f.path in self.headers and self.headers[f.path].wide
        ]
        some = wide[:: max(1, -(-len(wide) // RANGE_FILES))]

        def one(file: ImageFile) -> NDArray[np.float64] | None:
            try:
                content = (self.root / file.path).read_bytes()
                return values_of(content, RANGE_PIXELS, self.spec.max_pixels)
            except MemoryError:
                raise
            except Exception:  # it is found bad when it is read
                return None

        found = [
            v
            for v in progress(_parallel(one, some), "finding the range", len(some))
            if v is not None
        ]
        together = channels in (1, 3)
        values = np.concatenate(
            [v.reshape(-1, 1) if together else v for v in found if v.size] or [np.zeros((1, 1))]
        )
        low, high = np.percentile(values, [ROBUST, 100 - ROBUST], axis=0)
        margin = MARGIN * (high - low)
        low = np.maximum(values.min(axis=0), low - margin)
        high = np.minimum(values.max(axis=0), high + margin)
        return tuple(zip(low.tolist(), high.tolist(), strict=True))

    def _note(self, file: ImageFile, error: Exception) -> None:
        with self._lock:
            self.bad[file.path] = reason_of(error, file.size)


def reason_of(error: Exception, size: int) -> str:
    """Why a file cannot be read, in a few words."""
    if size == 0:
        return "is empty"
    if isinstance(error, BadImage):
        return str(error)
    if isinstance(error, NoImage):
        return f"is {error}"
    if isinstance(error, OSError):
        return first_line(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:160]}"


def hash_of(content: bytes) -> bytes:
    """16 bytes that tell contents apart."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _other_size(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    return f"is {found[2]}x{found[1]} pixels large, but must be {wanted[2]}x{wanted[1]}"


def _large(files: Sequence[ImageFile]) -> bool:
    return sum(file.size for file in files) >= THREADS_FROM_BYTES * len(files)


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _parallel(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """`map` with threads, in order, with at most some hundred results waiting."""
    workers = min(32, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), 8 * workers):
            yield from pool.map(function, items[start : start + 8 * workers])
