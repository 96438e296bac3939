"""A digest of code: what runs, by its source rather than by its version number."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path


def source_digest(name: str = "tune_ssl") -> str:
    """SHA-256 of all the source of an imported module or package."""
    module, hasher = sys.modules[name], hashlib.sha256()
    folders = getattr(module, "__path__", ())
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    for path in files or [Path(inspect.getfile(module))]:
        hasher.update(path.read_bytes())
    return hasher.hexdigest()
