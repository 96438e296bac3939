"""Taking a run from its copy under a URL: a new run folder, or what an older one lacks.

What the copy says is not trusted: no name of its own leads out of the run folder, and nothing but the files
that a run has is taken.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.files import sync, write_atomically
from tune_ssl.records import log
from tune_ssl.storage.mirror import FOLDERS, MANIFEST, appended
from tune_ssl.storage.places import Place, reason

CHUNK = 1 << 24


def update_from_copy(place: Place, run: Path, *, report: bool = False) -> bool:
    """Make the run folder at least what its copy at `place` is; returns whether anything was taken.

    Append-only files: the longer one, if one begins with the other. UserError where they have gone
    different ways, where there is no copy, or where it has a name that leads elsewhere. A new folder
    appears whole or not at all; in one that is there, trials.jsonl is the last that changes.
    """
    try:
        return _update(place, run, report)
    except OSError as error:
        where = run if error.filename else place.url
        raise UserError(Problem(f"cannot be copied: {reason(error)}", str(where))) from None


def _update(place: Place, run: Path, report: bool) -> bool:
    sizes = _sizes(place)
    names = list(_names(place))
    if log.STUDY not in names:
        text = f"is no run that tune-ssl keeps: it has no {log.STUDY}"
        raise UserError(Problem(text, place.url))
    if not os.path.lexists(run):
        run.parent.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=f".{run.name}.", dir=run.parent))
        try:
            for name in names:
                _copy(place, name, begun, _size(sizes, name))
            begun.chmod(0o755)
            begun.rename(run)
            sync(run.parent)
        except BaseException:
            shutil.rmtree(begun, ignore_errors=True)
            raise
        return True
    ours, theirs = (run / log.STUDY).read_bytes(), place.read(log.STUDY)
    if _identity(ours) != _identity(theirs):
        text = f"is another run than {place.url}: choose another --runs, or move it away"
        raise UserError(Problem(text, str(run)))
    newer = [log.STUDY] if ours != theirs and len(theirs) > len(ours) else []
    newer += [
        n for n in names if n.endswith(".jsonl") and _is_newer(place, n, run, _size(sizes, n))
    ]
    for name in names:
        wanted = name.startswith(log.MODELS) or (report and "/" in name)
        if wanted and (log.TRIALS in newer or not (run / name).exists()):
            newer.append(name)
    for name in sorted(newer, key=lambda name: name == log.TRIALS):
        _copy(place, name, run, _size(sizes, name))
    return bool(newer)


def _identity(study: bytes) -> list[bytes]:
    """The lines of study.yaml that say which run it is: a run that was taken on with more has others below."""
    lines = study.split(b"\n")
    return [line for line in lines if line.startswith((b"id:", b"created:"))] or lines


def _sizes(place: Place) -> dict[str, int]:
    try:
        found = json.loads(place.read(MANIFEST))
        sizes = {str(name): int(size) for name, size in found["sizes"].items()}
        if min(sizes.values(), default=0) < 0:
            raise ValueError("a size below 0")
        return sizes
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError(Problem("cannot be understood", f"{place.url} {MANIFEST}")) from None


def _size(sizes: dict[str, int], name: str) -> int | None:
    """Bytes of a file to take, None: all. What mirror.json does not know yet came after it."""
    return sizes.get(name, 0) if sizes and appended(name) else None


def _names(place: Place) -> Iterator[str]:
    """The files of the copy, by their names relative to it. UserError for one that leads out of it."""
    listed = place.files() + [x for folder in FOLDERS for x in place.files(folder, recursive=True)]
    for name, info in listed:
        local = place.filesystem.type_name == "local"
        leads_out = not _stays(name) or (local and os.path.islink(info.path))
        top = name.partition("/")[0]
        if leads_out and (top in FOLDERS or "/" not in name):
            text = f"has a file {name!r}, whose name leads out of a run folder"
            raise UserError(Problem(text, place.url))
        if info.is_file and (name == log.STUDY or appended(name) or top in FOLDERS):
            yield name


def _stays(name: str) -> bool:
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and name.isprintable() and not set(name) & set("\\:")


def _is_newer(place: Place, name: str, run: Path, size: int | None) -> bool:
    """Whether the copy has more lines than the run folder. UserError where neither begins with the other."""
    path = run / name
    theirs = _cut(place.read(name), size)
    ours = path.read_bytes() if path.exists() else b""
    whole = ours[: ours.rfind(b"\n") + 1]  # a line that a crash tore is none
    if whole.startswith(theirs):
        return False
    if theirs.startswith(whole):
        return True
    text = (
        f"and its copy {place.url} have gone different ways in {name}: both have what the other "
        "lacks; move the folder away to go on with the copy"
    )
    raise UserError(Problem(text, str(run)))


def _cut(content: bytes, size: int | None) -> bytes:
    return content if size is None else content[:size]


def _copy(place: Place, name: str, run: Path, size: int | None) -> None:
    target = run / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(run.resolve()):
        raise UserError(Problem("is a link that leads out of the run folder", str(target.parent)))

    def fill(local: BinaryIO) -> None:
        left: Any = size
        with place.filesystem.open_input_file(f"{place.path}/{name}") as remote:
            while chunk := remote.read(CHUNK if left is None else min(CHUNK, left)):
                local.write(chunk)
                left = None if left is None else left - len(chunk)
        if left:
            text = f"has less of {name} than {MANIFEST} says; try again in a minute"
            raise UserError(Problem(text, place.url))

    write_atomically(target, fill)
