"""What a machine keeps between runs, looked at and deleted: stores of images, features, pretrained networks."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tune_ssl.base.errors import Problem, UserError, nearest
from tune_ssl.base.files import size_of
from tune_ssl.data.store import cache_folder

KINDS = {"stores": "images", "features": "features", "pretrained": "network"}  # folder -> its name
DAY = 24 * 3600.0


class Kept(NamedTuple):
    """A folder of the cache: `about` says of what data it is, `images` how many, `used` when it was last opened."""

    kind: str
    name: str
    about: str
    images: str
    size: int
    used: float
    path: Path


def kept(cache: Path | None = None) -> list[Kept]:
    """All that is kept, what was used last first."""
    found = [one for folder in KINDS for one in _in(cache_folder(cache) / folder, KINDS[folder])]
    return sorted(found, key=lambda one: -one.used)


def delete(
    names: Sequence[str], unused_days: float | None = None, cache: Path | None = None
) -> list[Kept]:
    """Delete what is named, or was not used for so many days; returns what is gone.

    A run that is at work keeps the files that it has open, and builds again what it opens later.

    Raises:
        UserError: an unknown name, or nothing that says what to delete.
    """
    if not names and unused_days is None:
        raise UserError("give names, as `tune-ssl data list` has them, or --unused DAYS")
    every = kept(cache)
    known = [one.name for one in every]
    wrong = [Problem(f"is not kept{nearest(n, known)}", n) for n in names if n not in known]
    if wrong:
        raise UserError(wrong)
    before = time.time() - (unused_days or 0) * DAY
    chosen = [
        one
        for one in every
        if one.name in names or (unused_days is not None and not names and one.used <= before)
    ]
    for one in chosen:
        shutil.rmtree(one.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            one.path.with_name(f"{one.path.name}.lock").unlink(missing_ok=True)
    return chosen


def _in(parent: Path, kind: str) -> Iterator[Kept]:
    for path in parent.glob("[!.]*") if parent.is_dir() else ():
        if not path.is_dir():
            continue
        about = images = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            meta = json.loads((path / "meta.json").read_text())
            about = f"{meta['dataset']} {meta['root'] or ''}".strip()
            images = f"{sum(meta['counts'].values()):,}"
        with contextlib.suppress(OSError):
            yield Kept(kind, path.name, about, images, size_of(path), path.stat().st_mtime, path)
