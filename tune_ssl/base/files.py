"""Files and folders: written whole or not at all."""

from __future__ import annotations

import contextlib
import os
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
