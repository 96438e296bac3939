"""The lock of a run folder: one driver at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.runs.folder import _unwritable

LOCK = ".driver.lock"


@contextlib.contextmanager
def driver_lock(run: Path) -> Iterator[None]:
    """One driver per run folder; the lock goes with the process. UserError if another has it."""
    lock = FileLock(run / LOCK, timeout=0.5)  # `in_use` holds it for an instant
    try:
        lock.acquire()
    except Timeout:
        raise UserError(Problem("is in use by another tune-ssl process", str(run))) from None
    except OSError as error:
        raise _unwritable(run, error.strerror) from None
    try:
        yield
    finally:
        lock.release()


def in_use(run: Path) -> bool:
    """Whether a process of this machine drives the run now. OSError where its lock cannot be asked."""
    path = run / LOCK
    if not path.exists():
        return False
    try:
        import fcntl
    except ImportError:  # not on Windows, where the lock is not shared
        try:
            with FileLock(path, blocking=False):
                return False
        except Timeout:
            return True
    with path.open("rb") as file:  # a shared lock needs no right to write
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
