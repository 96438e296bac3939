"""`study.loggers: [tensorboard]`: the event files of `tune-ssl tensorboard`, written while trials train."""

from __future__ import annotations

import shutil
from pathlib import Path

from tune_ssl.records.log import Record
from tune_ssl.viewers.follow import NOTHING, Followed
from tune_ssl.viewers.tensorboard import TrialLog

OWNER = ".run"  # says whose trials a folder has


class Tool:
    """A folder for each trial. One that goes on is written anew: the records have all of it."""

    def __init__(self, followed: Followed, folder: str | None = None) -> None:
        self.metric = followed.metric
        self.folder = (
            Path(folder) / followed.folder.name if folder else followed.folder / "tensorboard"
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logs: dict[str, TrialLog] = {}
        if folder:
            self._claim(followed.id)

    def _claim(self, run: str) -> None:
        """Two runs of one name in one folder of the user's must not delete each other's trials."""
        owner = self.folder / OWNER
        if owner.exists() and owner.read_text(encoding="utf-8") != run:
            raise ValueError(f"{self.folder} is another run's of this name: give each a `folder`")
        owner.write_text(run, encoding="utf-8")

    def has(self, trial: str, ending: Record) -> bool:
        return False

    def open(self, trial: str, start: Record) -> float:
        shutil.rmtree(self.folder / trial, ignore_errors=True)
        self.logs[trial] = TrialLog(self.folder / trial, start, self.metric)
        return NOTHING

    def report(self, trial: str, report: Record) -> None:
        self.logs[trial].report(report)

    def close(self, trial: str, ending: Record | None) -> None:
        self.logs.pop(trial).close(ending)

    def finish(self) -> None:
        pass
