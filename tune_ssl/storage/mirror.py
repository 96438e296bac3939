"""A run folder's copy under a URL, from which another machine can go on: pushed by the run's driver.

    <run>/study.yaml, *.jsonl, models/, report/    as in the run folder
    <run>/mirror.json    bytes of each append-only file up to which they agree; written last
    <run>/driver.json    who drives the run now, and when that was last true

The driver marks, between two of its steps, how long the append-only files are; a push copies just so much
of each. Whoever takes the copy cuts them to what mirror.json says: a push that was killed half-way, or one
that is going on, leaves no record that speaks of what is not there. Ray's checkpoints are not copied: Ray
writes them under the URL itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tune_ssl.base import retry
from tune_ssl.base.errors import Problem, Stopped, UserError
from tune_ssl.records import log
from tune_ssl.storage.places import Place, reason

DRIVER, MANIFEST = "driver.json", "mirror.json"
FOLDERS = (log.MODELS, "report")
INTERVAL = 10.0  # seconds between two pushes; longer where one takes long
FRESH = 60.0  # seconds without a heartbeat after which a driver counts as dead
BEAT = 10.0  # seconds between two heartbeats
CHUNK = 1 << 24
PAUSE = 2.0  # seconds between two attempts of the last push

Tell = Callable[[str], None]
_mirrors: dict[Path, Mirror] = {}  # of the runs that this process has driven


def appended(name: str) -> bool:
    """Whether a file of a run folder only ever grows."""
    return "/" not in name and name.endswith(".jsonl")


class Mirror:
    """Keeps the copy of one run up to date. A storage that is away is tried again and ends nothing."""

    def __init__(self, run: Path, place: Place, tell: Tell) -> None:
        self.run, self.place, self.tell = run, place.at(run.name), tell
        self.me = {**identity(), "driver": uuid.uuid4().hex}
        self.taken_over: Exception | None = None  # another driver has taken the run
        self.marked: dict[str, int] = {}
        self.pushed: dict[str, tuple[int, ...]] = {}
        self.manifest: dict[str, int] = {}
        self.written_manifest: dict[str, int] = {}  # what mirror.json has
        self.last_beat, self.marked_at, self.away = float("-inf"), float("-inf"), False
        self.pushes = 0  # that were whole
        self.over, self.pushing = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def acquire(self) -> None:
        """Be the driver. UserError while another one is, or where the storage does not answer."""
        refuse_driven(self.place)
        try:
            self._write_json(DRIVER, {**self.me, "time": time.time()})
        except OSError as error:
            raise UserError(
                Problem(f"cannot be written: {reason(error)}", self.place.url)
            ) from None
        self.last_beat = time.monotonic()

    def start(self) -> None:
        _mirrors[self.run.absolute()] = self
        self.mark()
        self.push()
        self.thread.start()

    def mark(self) -> None:
        """Between two steps of the driver: from here on, a push may copy what is in the files now."""
        if time.monotonic() - self.marked_at < 1.0:
            return
        with contextlib.suppress(OSError):  # a disk that is away for a while
            self.marked = {
                path.name: path.stat().st_size
                for path in self.run.iterdir()
                if appended(path.name) and path.is_file() and not path.is_symlink()
            }
            self.marked_at = time.monotonic()

    def flush(self, seconds: float = 0.0) -> bool:
        """Push all that is there now, for so long; returns whether the copy has it."""
        end = time.monotonic() + seconds
        while True:
            self.marked_at = float("-inf")
            self.mark()
            if self.push() or self.taken_over is not None or time.monotonic() >= end:
                return self.taken_over is None and not self.away
            time.sleep(PAUSE)

    def finish(self) -> None:
        """`close` of a run that is complete. Stopped where the copy does not get all of it."""
        whole = self.flush(retry.LONGEST)
        self.close()
        if self.taken_over is not None:
            raise self.taken_over
        if not whole:
            raise Stopped(
                f"{self.place.url} lacks the end of the run, which is whole in {self.run}"
            )

    def close(self) -> None:
        """The last push, and no driver any more."""
        self.over.set()
        self.flush()
        with self.pushing:
            self.last_beat = float("inf")  # no heartbeat from here on
            if self.taken_over is None:
                with contextlib.suppress(OSError):
                    self.place.delete(DRIVER)

    def push(self) -> bool:
        """Copy what has changed, and say whether all of it is there now. Never raises."""
        with self.pushing:
            try:
                self._beat()
                for name, size, state in list(self._changed()):
                    sent = self._send(name, size)
                    self.pushed[name] = state
                    if appended(name):
                        self.manifest[name] = sent
                if self.taken_over is None and self.written_manifest != self.manifest:
                    self._write_json(MANIFEST, {"schema": log.SCHEMA, "sizes": self.manifest})
                    self.written_manifest = dict(self.manifest)
                self.pushes += 1
            except Exception as error:  # of any file system
                if not self.away and self.taken_over is None:
                    self.tell(f"{self.place.url} cannot be written: {reason(error)}; trying again")
                self.away = True
                return False
            if self.away:
                self.away = False
                self.tell(f"{self.place.url} answers again")
            return self.taken_over is None

    def _work(self) -> None:
        pause = INTERVAL
        while not self.over.wait(pause):
            began = time.monotonic()
            self.push()
            pause = max(INTERVAL, 5 * (time.monotonic() - began)) if not self.away else INTERVAL
            while self.taken_over is None and not self.away and pause > BEAT:
                if self.over.wait(BEAT):
                    return
                pause -= BEAT
                with self.pushing, contextlib.suppress(Exception):
                    self._beat()

    def _changed(self) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
        """(name, bytes to copy or all, what is remembered of it) of files to copy, trials.jsonl last.

        What a record speaks of was written before it: the mark is taken before one looks what is there.
        """
        marked = self.marked
        for path in sorted(p for folder in FOLDERS for p in (self.run / folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                yield from self._if_changed(path.relative_to(self.run).as_posix(), None)
        yield from self._if_changed(log.STUDY, None)
        for name in sorted(marked, key=lambda name: (name == log.TRIALS, name)):
            yield from self._if_changed(name, marked[name])

    def _if_changed(
        self, name: str, size: int | None
    ) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
        try:
            now = (self.run / name).stat()
        except FileNotFoundError:
            return
        state = (now.st_ino, size) if size is not None else (now.st_mtime_ns, now.st_size)
        if self.pushed.get(name) != state:
            yield name, size, state

    def _send(self, name: str, size: int | None) -> int:
        if self.taken_over is not None:
            raise self.taken_over
        sent = 0

        def chunks() -> Iterator[bytes]:
            nonlocal sent
            with (self.run / name).open("rb") as file:
                while chunk := file.read(CHUNK if size is None else min(CHUNK, size - sent)):
                    yield chunk
                    sent += len(chunk)
                    with contextlib.suppress(
                        Exception
                    ):  # half a file must not be taken for a whole one
                        self._beat()

        self.place.write(name, chunks())
        return sent

    def _beat(self) -> None:
        if self.taken_over is not None or time.monotonic() - self.last_beat < BEAT - 1:
            return
        other = driver(self.place)
        if other and other.get("driver") != self.me["driver"] and _fresh(other):
            text = f"{self.place.url} is driven by {_who(other)} now; this run ends"
            self.taken_over = Stopped(text)
            raise self.taken_over
        self._write_json(DRIVER, {**self.me, "time": time.time()})
        self.last_beat = time.monotonic()

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self.place.write(name, iter([json.dumps(content).encode()]))


@contextlib.contextmanager
def mirrored(
    run: Path, place: Place | None, tell: Tell, first: Callable[[Place], Any] | None = None
) -> Iterator[Mirror | None]:
    """Be the driver of the run's copy for the time of the block, and keep the copy up to date.

    `first` is done with the copy's place before anything is pushed. UserError while another driver is alive;
    Stopped where the copy does not get the end of the run.
    """
    if place is None:
        yield None
        return
    mirror = Mirror(run, place, tell)
    mirror.acquire()
    try:
        if first:
            first(mirror.place)
        mirror.start()
        yield mirror
    except BaseException:
        mirror.close()
        raise
    mirror.finish()


def mirror_of(run: Path) -> Mirror | None:
    """That of a run that this process drives or drove, if the run has a copy."""
    return _mirrors.get(run.absolute())


def refuse_driven(place: Place) -> None:
    """UserError while a live process drives the run of that copy."""
    try:
        other = driver(place)
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {reason(error)}", place.url)) from None
    if other is not None and _fresh(other):
        ago = max(0, round(time.time() - other["time"]))
        text = (
            f"is driven by {_who(other)}, last heard of {ago} s ago; where that one is dead, "
            f"try again {FRESH:.0f} s after its last heartbeat"
        )
        raise UserError(Problem(text, place.url))


def driver(place: Place) -> dict[str, Any] | None:
    """What driver.json says; None where there is none, or one that cannot be understood. OSError."""
    try:
        found = json.loads(place.read(DRIVER))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    last: Any = found.get("time") if isinstance(found, dict) else None
    return found if type(last) in (int, float) and 0 <= last < 1e11 else None


def identity() -> dict[str, Any]:
    """Host and process; `space` tells two kernels and two containers apart, where Linux says it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space: str | None = f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        space = None
    return {"host": socket.gethostname(), "pid": os.getpid(), "space": space}


def _fresh(other: dict[str, Any]) -> bool:
    """A driver is alive until its heartbeat is old; one of this machine that is gone is known to be dead."""
    if (
        other.get("space")
        and other["space"] == identity()["space"]
        and not _alive(other.get("pid"))
    ):
        return False
    return bool(time.time() - other["time"] < FRESH)


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError, OverflowError):
        return False
    return True


def _who(other: dict[str, Any]) -> str:
    return f"process {other.get('pid')} on {other.get('host')}"
