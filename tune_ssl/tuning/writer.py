"""The driver's pen: every line of a run folder's records goes through it, and at once into the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_ssl.base.files import sync
from tune_ssl.base.retry import until_it_works
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.records.log import Record


class Writer:
    """Appends to the records of one run. A disk that is full or away is waited for; then Stopped.

    An event is on the disk when `event` returns, and so is whatever was written before an ending. That
    costs one fsync for a beginning, and one more for each other file that an ending speaks of.
    """

    def __init__(self, run: Path, ledger: Ledger, tell: Callable[[str], None]) -> None:
        self.run, self.ledger, self.tell = run, ledger, tell
        self.unsynced: set[str] = set()  # files whose last lines may not be on the disk
        self.also: Callable[[str, Record], None] | None = None  # hears of what was written

    def event(self, event: Record) -> None:
        event = {"time": time.time(), **event}
        self._append(log.TRIALS, event, durable=True)
        self.ledger.add(event)
        if self.also is not None:
            self.also("event", event)

    def report(self, report: Record) -> None:
        report = {"time": time.time(), **report}
        self._append(log.HISTORY, report)
        if self.also is not None:
            self.also("report", report)

    def galleries(self, galleries: list[Record]) -> None:
        self._append(log.GALLERIES, *galleries)

    def predictions(self, line: Record) -> None:
        self._append(log.PREDICTIONS, line)

    def _append(self, name: str, *lines: dict[str, Any], durable: bool = False) -> None:
        path = self.run / name

        def write() -> None:
            if durable and lines[0]["event"] in log.ENDINGS:
                while self.unsynced:
                    sync(self.run / next(iter(self.unsynced)))
                    self.unsynced.pop()
            log.append_all(path, lines, durable=durable)

        until_it_works(write, OSError, f"{path} cannot be written", self.tell)
        if not durable:
            self.unsynced.add(name)
