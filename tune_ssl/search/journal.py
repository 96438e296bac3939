"""The Optuna journal of a run: a file whose damage is noticed, and whose lock is never waited for in vain.

Optuna's own backend appends a line per operation under a lock and fsyncs it. Here a write that failed
half-way is undone, a file that vanished is not begun anew, and each wait is left to the caller.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Generator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

GRACE = 30.0  # seconds without a change after which a lock's holder counts as dead, as in Optuna
BLOCK = 1 << 16


class Damaged(Exception):
    """The journal is not what was written there."""


class Lock(JournalFileSymlinkLock):
    """Optuna's lock, as every program with Optuna takes it, but asked for without waiting.

    Optuna's own never ends where the path is relative: it follows the link to see how old the lock is.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.seen: tuple[int, float] | None = None  # (mtime_ns of another's lock, since when)

    def acquire(self) -> bool:
        """Raises BlockingIOError while another process has it."""
        try:
            os.symlink(self._lock_target_file, self._lock_file)
        except FileExistsError:
            if not self._stale():
                text = "its lock is held by another process"
                raise BlockingIOError(errno.EAGAIN, text, self._lock_file) from None
            self.release()
            os.symlink(self._lock_target_file, self._lock_file)
        self.seen = None
        return True

    def release(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is gone already
            super().release()

    def _stale(self) -> bool:
        try:
            changed = os.lstat(self._lock_file).st_mtime_ns
        except FileNotFoundError:
            return False
        if self.seen is None or self.seen[0] != changed:
            self.seen = changed, time.monotonic()
        return time.monotonic() - self.seen[1] > GRACE


class Journal(JournalFileBackend):
    """Raises Damaged where a line is no JSON or lines are gone, and OSError where Optuna would wait."""

    def __init__(self, path: Path) -> None:
        name = str(path.absolute())
        super().__init__(name, Lock(name))
        self.size = os.path.getsize(name)  # no less may be there at the next write

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise Damaged(f"a line is not what Optuna writes ({error})") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with open(self._file_path, "r+b", buffering=0) as file:
                size, end = file.seek(0, os.SEEK_END), whole(file)
                if end < self.size:
                    raise Damaged(f"it has {end} bytes, and had {self.size} before")
                try:
                    if end < size:
                        file.truncate(end)
                    file.seek(end)
                    if file.write(lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file_path)
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self._file_path, end)
                    raise
                self.size = end + len(lines)
        finally:
            self._lock.release()


def open_journal(path: Path, tell: Callable[[str], None]) -> JournalStorage:
    """The journal as a storage, begun if it is not there; what cannot be read is moved aside.

    Only for the one driver that holds the run's lock: a lock that is there is a dead process's.
    """
    repair(path)
    try:
        return JournalStorage(Journal(path))
    except OSError:
        raise
    except Exception as error:  # whatever replaying such lines leads to
        kept = set_aside(path)
        tell(f"{path} is damaged ({first_line(error)}); it is kept as {kept.name}")
        return JournalStorage(Journal(path))


def repair(path: Path) -> None:
    """Drop what a crash tore: lines at the journal's end that are none, and the lock of a dead process."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = whole(file)
        file.seek(max(0, end - BLOCK))
        last = file.read(end - file.tell()).rstrip(b"\n").rpartition(b"\n")[2]
        if end and not _is_json(last) and len(last) < BLOCK - 1:
            end -= len(last) + 1
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink(missing_ok=True)


def whole(file: BinaryIO | FileIO) -> int:
    """Bytes up to the end of the last line that is whole."""
    start = file.seek(0, os.SEEK_END)
    if start:  # nearly always it ends with one
        file.seek(start - 1)
        if file.read(1) == b"\n":
            return start
    while start:
        end, start = start, max(0, start - BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
    return 0


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `<name>.broken-<n>`; returns the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.rename(kept)
    return kept


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
