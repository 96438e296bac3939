"""Files and folders: written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tune_ssl.base.errors import Problem, UserError, first_line


def write_atomically(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file that is there whole or not at all, and on the disk when the call returns.

    `fill` writes the content. What stood there before stays until then, and when something fails.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(temporary, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """What was written to a file, or into a folder, is on the disk when the call returns."""
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_filled(out: Path) -> None:
    """UserError if something other than an empty folder is there."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(Problem("exists already and is no folder", str(out)))
    try:
        filled = any(out.iterdir())
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {first_line(error)}", str(out))) from None
    if filled:
        text = "is not empty: give a new folder, or empty this one"
        raise UserError(Problem(text, str(out)))


def make_room(parent: Path, keep: Path, most: int, kept_seconds: float = 0) -> None:
    """Delete the folders in `parent` that were used longest ago, until all take at most `most` bytes.

    Those that were used within the last `kept_seconds` stay, and `keep` does.
    """
    found: list[tuple[float, Path, int]] = []
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # a lock, or what another process deletes just now
            found.append((folder.stat().st_mtime, folder, size_of(folder)))
    surplus = sum(size for _, _, size in found) - most
    for used, folder, size in sorted(found):
        if surplus > 0 and folder != keep and used < time.time() - kept_seconds:
            shutil.rmtree(folder, ignore_errors=True)
            surplus -= size


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder. OSError where it is none."""
    return sum(file.stat().st_size for file in folder.iterdir())
