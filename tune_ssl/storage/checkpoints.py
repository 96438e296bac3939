"""The checkpoints that Ray keeps of a run, in its folder or under a URL: listed, swept, taken home.

They lie at <run>/ray/session-NNN/<trial>/checkpoint_NNNNNN/. All goes through pyarrow.fs, wherever it is.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tune_ssl.base.files import write_atomically
from tune_ssl.base.retry import until_it_works
from tune_ssl.storage.places import Place, folder_of, is_url, place_of

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

RAY = "ray"
STATE = "state.pt"

T = TypeVar("T")


class Checkpoints:
    """Those of one run: below its folder, or below URL/<its name> where `storage` is a URL."""

    def __init__(
        self, run: Path, storage: str | None = None, tell: Callable[[str], None] = print
    ) -> None:
        self.run, self.tell = run, tell
        self.url = storage if storage is not None and is_url(storage) else None
        self.pending: dict[tuple[str, str], int] = {}  # (session, trial) -> how many to keep
        self.changed = threading.Condition()
        self.sweeper: threading.Thread | None = None

    @cached_property
    def place(self) -> Place:
        """UserError where the URL cannot be used."""
        if self.url is not None:
            return place_of(self.url).at(self.run.name, RAY)
        return folder_of(str(self.run / RAY))

    @property
    def for_ray(self) -> dict[str, Any]:
        """Arguments of RunConfig. Ray gets the file system itself: no credentials are in what it saves."""
        if self.url is None:
            return {"storage_path": self.place.path}
        return {"storage_path": self.place.path, "storage_filesystem": self.place.filesystem}

    def next_session(self) -> str:
        """The name of Ray's next folder. Stopped where the storage does not answer for long."""
        return f"session-{len(self._with_retries(self._sessions)) + 1:03d}"

    def of(self, trial: str, file: str = STATE) -> tuple[str, ...]:
        """Path or URL of the file in each of the trial's checkpoints that has it, newest first. OSError."""
        return tuple(self.place.at(name).url for name in self._of(trial, file))

    def of_earlier(self, trial: str) -> tuple[str, ...]:
        """`of` for a trial that began before this object was first asked; no other has any."""
        found = self._with_retries(lambda: self.of(trial)) if trial in self._begun else ()
        if self.url is not None:  # a run that began without the URL
            found += Checkpoints(self.run, None, self.tell).of_earlier(trial)
        return found

    def sweep(self, session: str, trial: str, keep: int) -> None:
        """Delete all but the newest `keep`. Under a URL that is done in the background, and never raises."""
        if self.url is None:
            return self._sweep(session, trial, keep)
        with self.changed:
            self.pending[session, trial] = keep
            self.changed.notify()
            if self.sweeper is None:
                self.sweeper = threading.Thread(target=self._sweep_all, daemon=True)
                self.sweeper.start()

    def drop_partial(self, session: str, trial: str, whole: Collection[str]) -> None:
        """Delete what a failed write left on a local disk, all but the folders named `whole`.

        Half of a checkpoint must not take the disk from the records; under a URL it takes none of it.
        """
        if self.url is None:
            with contextlib.suppress(OSError):
                for name, _ in self._folders(session, trial):
                    if name.rpartition("/")[2] not in whole:
                        self._delete(name)

    def copy_newest(self, trial: str, names: Collection[str], folder: Path) -> None:
        """Copy files of the trial's newest checkpoint that has the last of `names` into `folder`.

        Each is there whole or not at all, the last one last. OSError.
        """
        found = self._with_retries(lambda: self._of(trial, list(names)[-1]))
        if not found:
            raise FileNotFoundError("no checkpoint has it")
        folder.mkdir(parents=True, exist_ok=True)
        source = self.place.at(found[0].rpartition("/")[0])

        def copy() -> None:
            for name in names:
                with source.filesystem.open_input_file(f"{source.path}/{name}") as remote:
                    fill = partial(shutil.copyfileobj, remote, length=1 << 24)
                    write_atomically(folder / name, fill)

        self._with_retries(copy)

    def clear(self) -> None:
        """Delete all of them, and what else Ray left there; what cannot be deleted stays."""
        with self.changed:
            self.pending.clear()
        with contextlib.suppress(Exception):  # of any file system
            self.place.filesystem.delete_dir(self.place.path)

    @cached_property
    def _begun(self) -> set[str]:
        def ask() -> set[str]:
            found = [name for folder in self._all() for name, _ in self.place.files(folder)]
            return {name.rpartition("/")[2] for name in found}

        return self._with_retries(ask)

    def _with_retries(self, do: Callable[[], T]) -> T:
        """A storage or a disk that is away for a while is waited for, then Stopped."""
        return until_it_works(do, OSError, f"{self.place.url} does not answer", self.tell)

    def _sessions(self) -> list[str]:
        return sorted(name for name, _ in self.place.files() if name.startswith("session-"))

    def _of(self, trial: str, file: str) -> list[str]:
        found: list[tuple[float, str]] = []
        for folder in self._all():
            for name, info in self.place.files(folder, trial, recursive=True):
                parent, _, base = name.rpartition("/")
                if base == file and parent.rpartition("/")[2].startswith("checkpoint_"):
                    found.append((_time(info), name))
        return [name for _, name in sorted(found, reverse=True)]

    def _all(self) -> list[str]:
        return [name for name, info in self.place.files() if not info.is_file]

    def _folders(self, session: str, trial: str) -> list[tuple[str, FileInfo]]:
        found = self.place.files(session, trial)
        return sorted((item for item in found if "/checkpoint_" in item[0]), key=lambda x: x[0])

    def _sweep(self, session: str, trial: str, keep: int) -> None:
        with contextlib.suppress(Exception):  # of any file system: the thread must go on
            for name, _ in self._folders(session, trial)[: -keep or None]:
                self._delete(name)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(Exception):  # of any file system
            self.place.filesystem.delete_dir(self.place.at(name).path)

    def _sweep_all(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.pending)
                (session, trial), keep = self.pending.popitem()
            self._sweep(session, trial, keep)


def _time(info: FileInfo) -> float:
    """Seconds; object stores know whole ones, and the names, which count up, decide within one."""
    return (info.mtime_ns or 0) / 1e9
