"""The images of a stored part, by row: mapped pixels, or the files' own bytes, decoded when they are asked for."""

from __future__ import annotations

import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.data.image_files import Decoding, decode

Uint8s = NDArray[np.uint8]
Ints = NDArray[np.int64]

PAGE = mmap.PAGESIZE


class EncodedImages:
    """Image files one after another in one file: `images[rows]` decodes those, in threads of this process.

    Row r has the bytes from offsets[r] to offsets[r + 1]. Like an array it has a shape (N, C, H, W) and a length.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, path: Path, offsets: Ints, shape: tuple[int, int, int], how: Decoding
    ) -> None:
        self.shape = (len(offsets) - 1, *shape)
        self._content = mapped(path, (int(offsets[-1]),))
        self._offsets, self._how = offsets, how

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Uint8s:
        """uint8 of the same axes as an array's would have: a row number, a slice or row numbers (m,)."""
        if isinstance(rows, (int, np.integer)):
            return self._decoded(range(len(self))[rows])
        wanted = np.arange(len(self))[rows]
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            out[place] = self._decoded(int(wanted[place]))

        workers = min(_threads(), len(wanted))
        if workers <= 1:
            for place in range(len(wanted)):
                fill(place)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(fill, range(len(wanted))))
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Uint8s:
        return self[:]

    def _decoded(self, row: int) -> Uint8s:
        start, stop = self._offsets[row : row + 2]
        return decode(self._content[start:stop].tobytes(), self._how)


ImageRows = Uint8s | EncodedImages
"""uint8 images (N, C, H, W) by row: a read-only map of pixels, or what decodes them."""


def mapped(path: Path, shape: tuple[int, ...]) -> Uint8s:
    """A read-only map of a file, which is read at random: the system is told not to read ahead."""
    if 0 in shape:  # nothing can be mapped
        return np.zeros(shape, np.uint8)
    images: Any = np.memmap(path, np.uint8, "r", shape=shape)
    if hasattr(mmap, "MADV_RANDOM"):
        images._mmap.madvise(mmap.MADV_RANDOM)
    return images  # type: ignore[no-any-return]


def take(images: ImageRows, rows: Ints) -> Uint8s:
    """uint8 (m, C, H, W): a copy of these rows. What is on the disk is asked for before it is waited for."""
    size = int(np.prod(images.shape[1:]))
    if isinstance(images, np.memmap) and size > PAGE and hasattr(mmap, "MADV_WILLNEED"):
        whole: Any = images._mmap  # type: ignore[attr-defined]
        for row in rows.tolist():
            start = row * size // PAGE * PAGE
            whole.madvise(mmap.MADV_WILLNEED, start, min((row + 1) * size, len(whole)) - start)
    return np.asarray(images[rows])


def _threads() -> int:
    """As many as the trial has CPUs, which is what torch was told; without torch, all of the machine's."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else os.cpu_count() or 1
