"""Files and folders: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.lazy import LazyModule

if TYPE_CHECKING:
    import safetensors
else:
    safetensors = LazyModule("safetensors")


def refuse_filled(out: Path) -> None:
    """UserError if something other than an empty folder is there."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(Problem("exists already and is no folder", str(out)))
    try:
        filled = any(out.iterdir())
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {error.strerror}", str(out))) from None
    if filled:
        text = "is not empty: give a new folder, or empty this one"
        raise UserError(Problem(text, str(out)))
