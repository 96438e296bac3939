"""Small pictures: images of a store side by side as one PNG. It needs no torch.

Shapes: n images in a row.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tune_ssl.base.errors import UserError
from tune_ssl.data.folder import shown_name
from tune_ssl.data.rows import take
from tune_ssl.data.store import Store, cache_folder, open_store

SMALLEST, LARGEST = 48, 160  # pixels a side, as shown
GAP = 2  # pixels between two images
GREY = 128
MOST_BYTES = 22_500  # of a strip where possible; base64 makes 30,000 of them
MOST_OF_ONE = 5_500  # likewise, of a single image

Uint8s = NDArray[np.uint8]


@dataclass(frozen=True)
class StoredImages:
    """The images of a run's store, as the report shows and names them. The test part is not among them."""

    store: Store

    def names(self, part: str, rows: Sequence[int]) -> list[str]:
        """The file of each row; empty where it is of no file, or the store does not say."""
        try:
            of_row = self._files[f"{part}.files"]
            return [shown_name(os.fsdecode(self._names[of_row[row]])) for row in rows]
        except (OSError, ValueError, KeyError, IndexError):
            return [""] * len(rows)

    @cached_property
    def _files(self) -> dict[str, Any]:
        with np.load(self.store.path / "files.npz") as table:
            return dict(table)

    @cached_property
    def _names(self) -> list[bytes]:
        return bytes(self._files["names"]).split(b"\0")

    def picture(self, part: str, row: int) -> tuple[str, int] | None:
        """A small PNG in base64, and its width; None where the store has no such image."""
        found = self._parts().get(part)
        if found is None or not 0 <= row < len(found.labels):
            return None
        try:
            return strip(take(found.images, np.array([row])), MOST_OF_ONE)
        except (OSError, ValueError):
            return None

    def _parts(self) -> dict[str, Any]:
        store = self.store
        return {"train": store.train, "val": store.val, "unlabeled": store.unlabeled}


def images_of(digest: str, path: str) -> StoredImages | None:
    """The images of the store with that digest: at `path`, or in this machine's cache; None where there are none."""
    folders = [Path(path)] if path else []
    folders += sorted((cache_folder() / "stores").glob("*/"))
    for folder in folders:
        try:
            store = open_store(folder)
        except UserError:
            continue
        if store.digest == digest:
            return StoredImages(store)
    return None


# ---- drawing -----------------------------------------------------------------------------------


def strip(images_n: Uint8s, most_bytes: int = MOST_BYTES) -> tuple[str, int]:
    """Images (n, C, side, side) side by side as a PNG in base64, and its width in pixels.

    Where a full strip would have more than `most_bytes`, it has 256 colours, and at last smaller images.
    """
    side = shown_side(images_n.shape[-1])
    drawn = sheet([images_n], side)
    content = png(drawn, optimize=True)
    for smaller in (side, 128, 96, 80, 64, SMALLEST):
        if len(content) <= most_bytes:
            break
        if smaller <= side:
            drawn = sheet([images_n], smaller).quantize(256)
            content = png(drawn, optimize=True)
    return base64.b64encode(content).decode(), drawn.width


def shown_side(side: int) -> int:
    """How large an image of `side` pixels is shown: whole multiples where it is enlarged."""
    return side * math.ceil(SMALLEST / side) if side < SMALLEST else min(side, LARGEST)


def sheet(rows: Sequence[Uint8s], side: int, below: int = 0) -> Image.Image:
    """Rows of images (n, C, H, H), each `side` pixels large, left to right in a grey frame.

    A cell is `side + GAP` wide; `below` each row that many pixels are left free for text. Of other than 1 or 3 channels
    the first three are shown, of two the first.
    """
    shown = 3 if rows[0].shape[1] >= 3 else 1
    rows = [row[:, :shown] for row in rows]
    channels = rows[0].shape[1]
    cell, width = side + GAP, max(len(row) for row in rows)
    mode, grey = ("L", GREY) if channels == 1 else ("RGB", (GREY,) * 3)
    drawn = Image.new(mode, (width * cell, len(rows) * (cell + below)), grey)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            pixels = image[0] if channels == 1 else np.moveaxis(image, 0, -1)
            how = Image.Resampling.NEAREST if side > image.shape[-1] else Image.Resampling.BOX
            scaled = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), how)
            drawn.paste(scaled, (x * cell + GAP // 2, y * (cell + below) + GAP // 2))
    return drawn


def png(drawn: Image.Image, optimize: bool = False) -> bytes:
    content = io.BytesIO()
    drawn.save(content, "PNG", optimize=optimize)
    return content.getvalue()
