"""A frozen encoder's features, computed once and kept: what its trials train on in the images' place.

Of each image there are the features of the image itself and of `model.frozen_views` augmented versions of each view
that is asked for; a step draws one of them. An image's versions depend on its row, the view and nothing else, so every
trial, condition and method that starts from the same encoder finds what the others left.

    <cache>/features/<digest>/train.weak.4.1f3a9c.npy    float32 (4, N, D): 4 versions of each of the part's N images
    <cache>/features/<digest>/train.weak.4.1f3a9c.done   N bytes: 1 where the row is there

1f3a9c is a digest of the view's operations, with their strengths.

Rows are computed as they are asked for, in blocks: one process at a time works on a block, several work on several.
A block counts when it is whole. Where nothing can be written, or with compute.cache=false, they stay in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from tune_ssl.base.errors import first_line
from tune_ssl.base.files import make_room, sync, write_atomically
from tune_ssl.base.progress import progress
from tune_ssl.base.spec import digest
from tune_ssl.data.loading import Data, chunk_size, stream
from tune_ssl.data.ops import shape_of
from tune_ssl.data.rows import take
from tune_ssl.data.sets import Images, Piece
from tune_ssl.data.store import cache_folder
from tune_ssl.data.transfer import Transfer, to_device
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.encoder_cache import MOST_BYTES, SOURCE
from tune_ssl.training.out_of_memory import in_halves

PLAIN = "none"  # the view that is the image itself
BLOCK = 256  # rows

MOST_VERSIONS = 1000  # of an image, in the numbering of random streams

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class FrozenFeatures:
    """The features of a dataset's images by a frozen `encoder` (in eval mode, on the data's device).

    `key` names the stage that trained the encoder: "" where none did, None where it is this trial's own. `spent` are
    the seconds that computing took, `waited` those in which another process computed what was needed.
    """

    def __init__(self, spec: TrialSpec, encoder: nn.Module, data: Data, key: str | None) -> None:
        self.encoder, self.data = encoder, data
        self.versions = spec.model.frozen_views
        self.folder: Path | None = None
        if spec.compute.cache and key is not None:
            self.folder = cache_folder() / "features" / feature_key(spec, encoder, data, key)
        self.tables: dict[str, Table] = {}
        self.spent = self.waited = 0.0

    def draw(self, images: Images, view: str, positions: Tensor, generator: Generator) -> Tensor:
        """Features (m, D) of the images at `positions` (m,), each of one of its versions of that view."""
        count = 1 if view == PLAIN else self.versions
        versions = torch.randint(count, (len(positions),), generator=generator).numpy()
        # All of the set will be drawn: in blocks, and not a step's few at a time
        return self._gather(images, view, positions.numpy(), versions, whole=True)

    def plain(self, images: Images, positions: Tensor) -> Tensor:
        """Features (m, D) of the un-augmented images at `positions` (m,)."""
        first = np.zeros(len(positions), np.int64)
        return self._gather(images, PLAIN, positions.numpy(), first, whole=False)

    def _gather(
        self, images: Images, view: str, positions: Ints, versions: Ints, whole: bool
    ) -> Tensor:
        out: Floats | None = None
        start = 0
        for piece in images.pieces:
            stop = start + len(piece.indices)
            here = (positions >= start) & (positions < stop)
            if here.any():
                rows = piece.indices[positions[here] - start]
                table = self._filled(piece, view, piece.indices if whole else np.unique(rows))
                found = table.values[versions[here], rows]
                out = np.empty((len(positions), found.shape[1]), np.float32) if out is None else out
                out[here] = found
            start = stop
        assert out is not None
        return to_device(torch.from_numpy(out), self.data.device)

    def _filled(self, piece: Piece, view: str, rows: Ints) -> Table:
        """The table of the piece's part and the view, in which these rows are there."""
        versions = 1 if view == PLAIN else self.versions
        name = f"{piece.part}.{view}.{versions}"
        if view != PLAIN:  # as strong as it is here
            name += f".{digest({'view': repr(self.data.view(view))})[:6]}"
        shape = (versions, len(piece.images), int(self.encoder.out_dim))  # type: ignore[arg-type]
        if name not in self.tables:
            self.tables[name] = open_table(self.folder, name, shape)
        try:
            self._fill(self.tables[name], piece, view, rows)
        except OSError as error:  # a disk that is full: the rest of this trial does without
            warnings.warn(
                f"'{self.folder}' does not keep these features: {first_line(error)}", stacklevel=2
            )
            self.tables[name] = open_table(None, name, shape)
            self._fill(self.tables[name], piece, view, rows)
        return self.tables[name]

    def _fill(self, table: Table, piece: Piece, view: str, rows: Ints) -> None:
        while len(missing := rows[table.done[rows] == 0]):
            busy: list[int] = []
            blocks = np.unique(missing // BLOCK).tolist()
            for block in progress(blocks, f"features of {piece.part}", len(blocks)):
                with table.claim(block, wait=False) as mine:
                    if mine:
                        self._compute(table, piece, view, missing[missing // BLOCK == block])
                    else:
                        busy.append(block)
            if busy:  # another process has them: when it is through with one, look again
                began = time.perf_counter()
                with table.claim(busy[0], wait=True):
                    self.waited += time.perf_counter() - began

    def _compute(self, table: Table, piece: Piece, view: str, rows: Ints) -> None:
        rows = rows[table.done[rows] == 0]  # perhaps done since
        began = time.perf_counter()
        most = chunk_size(self.data.task)
        for part in (rows[i : i + most] for i in range(0, len(rows), most)):
            for version in range(len(table.values)):
                table.put(version, part, self._encoded(piece, view, part, version))
        table.keep(rows)
        self.spent += time.perf_counter() - began

    @torch.no_grad()
    def _encoded(self, piece: Piece, view: str, rows: Ints, version: int) -> Floats:
        device, pixels = self.data.device, torch.from_numpy(take(piece.images, rows))
        if view != PLAIN:
            augment, seed = self.data.view(view), zlib.crc32(view.encode())
            draws = [
                augment.draw(shape_of(pixels[:1]), stream(seed, int(row) * MOST_VERSIONS + version))
                for row in rows
            ]
            [(images,), *planned] = Transfer([(pixels,), *augment.plan(draws)], device).arrived()
            inputs = self.data.normalize(augment.apply(images, planned))
        else:
            inputs = self.data.plain(to_device(pixels, device))
        with self.data.autocast():
            found = in_halves(self.encoder, inputs)
        features_MD: Floats = torch.cat(found).float().cpu().numpy()
        return features_MD


class Table:
    """(k, N, D) features, and which of the N rows are there."""

    def __init__(self, values: Floats, done: Bytes, path: Path | None = None) -> None:
        self.values, self.done, self.path = values, done, path

    @contextlib.contextmanager
    def claim(self, block: int, wait: bool) -> Iterator[bool]:
        """Whether the block is this process' own for the time of the `with`."""
        if self.path is None:
            yield True
            return
        lock = FileLock(self.path.with_suffix(f".block{block}.lock"), thread_local=False)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def put(self, version: int, rows: Ints, features_MD: Floats) -> None:
        """Write one version of some rows. OSError where the disk is full: written through the map it would be fatal."""
        if not isinstance(self.values, np.memmap):
            self.values[version, rows] = features_MD
            return
        assert self.path is not None
        _, images, width = self.values.shape
        with open(self.path, "r+b", buffering=0) as file:
            for row, features_D in zip(rows.tolist(), features_MD, strict=True):
                at = self.values.offset + 4 * width * (version * images + row)
                if os.pwrite(file.fileno(), features_D.tobytes(), at) < features_D.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def keep(self, rows: Ints) -> None:
        """The rows are written: from here on they count, also for other processes, and after a power cut."""
        if self.path is not None:
            sync(self.path)
        self.done[rows] = 1


def open_table(folder: Path | None, name: str, shape: tuple[int, int, int]) -> Table:
    """The table of that name in the folder, made if it is not there; in memory where no file can be."""
    if folder is not None:
        path, done = folder / f"{name}.npy", folder / f"{name}.done"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            if not path.exists():
                with FileLock(folder / f"{name}.lock", thread_local=False):
                    if not path.exists():
                        make_room(folder.parent, folder, MOST_BYTES)
                        write_atomically(done, lambda file: file.write(bytes(shape[1])))
                        write_atomically(path, _sparse(shape))
            values = np.load(path, mmap_mode="r")
            if values.shape == shape and values.dtype == np.float32:
                return Table(values, np.memmap(done, np.uint8, "r+", shape=(shape[1],)), path)
            why = "it holds something else"
        except (OSError, ValueError) as error:
            why = first_line(error)
        warnings.warn(f"'{folder}' does not keep these features: {why}", stacklevel=2)
    return Table(np.empty(shape, np.float32), np.zeros(shape[1], np.uint8))


def feature_key(spec: TrialSpec, encoder: nn.Module, data: Data, key: str) -> str:
    """The digest of everything that shapes a feature: the encoder, its weights, the images, how they are seen.

    Random weights count by their values: the seed and the stage, and what was drawn before them, shape those.
    """
    model = spec.model.model_dump(include={"encoder", "stem", "weights"})
    random = not key and model["weights"] == "none"
    return digest(
        {
            "model": model,
            "weights": content(encoder) if random else key,
            "data": [data.store.digest, data.task.size, list(data.mean), list(data.std)],
            "device": [data.device.type, str(data.precision), spec.compute.tf32],
            "code": SOURCE,
            "versions": [metadata.version(package) for package in ("torch", "torchvision", "timm")],
        }
    )


def content(network: nn.Module) -> str:
    """The digest of a network's weights and statistics."""
    hasher = hashlib.sha256()
    for name, value in network.state_dict().items():
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _sparse(shape: tuple[int, int, int]) -> Callable[[Any], Any]:
    """Writes a .npy file of zeros that takes no room on the disk until it is filled."""

    def write(file: Any) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * int(np.prod(shape)))

    return write
