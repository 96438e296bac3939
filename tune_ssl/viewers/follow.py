"""A process that hands a run's trials to one tool (TensorBoard, MLflow, W&B) while they train.

The driver starts it and writes to its stdin: first what it follows, then the lines of the records as they are written.
It answers with JSON lines: `{"failed": reason}` at the first thing that goes wrong, after which it ends, and
`{"done": true}` when all is handed over. Whatever the tool does, the driver never waits for it.

At its beginning it reads the records: what the tool lacks of a run that goes on is handed over first. A step that the
tool has is not handed over again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from tune_ssl.base.errors import first_line
from tune_ssl.base.secrets import redact
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports
from tune_ssl.records.log import Record

PATIENCE = 20.0  # seconds that a tool has for what is left when the driver is gone
SCRATCH = "tune-ssl-logger-"  # begins the name of a tool's own temporary folder
NOTHING = -1.0  # the last step of a trial of which a tool has none


class Followed(NamedTuple):
    """The run that is followed. `id` is its own for ever; `metric` decides in it."""

    folder: Path
    id: str
    study: str
    metric: str


class Tool(Protocol):
    """What a module of a tool gives as `Tool(followed, **arguments)`."""

    def has(self, trial: str, ending: Record) -> bool:
        """Whether the tool has all of a trial that ended so, from an earlier command."""

    def open(self, trial: str, start: Record) -> float:
        """Begin a trial, or go on with it; the last step that the tool has of it, or NOTHING."""

    def report(self, trial: str, report: Record) -> None: ...

    def close(self, trial: str, ending: Record | None) -> None:
        """The trial's end; None: the command ends before the trial does."""

    def finish(self) -> None:
        """Nothing comes any more."""


class Follower:
    """Keeps a tool in step with the records."""

    def __init__(self, followed: Followed, tool: Tool) -> None:
        self.followed, self.tool = followed, tool
        # Of open trials the last step, and its stage where it was handed over by this process
        self.last: dict[str, tuple[float, str | None]] = {}
        self.ended: dict[str, float] = {}  # trial -> when it ended

    def catch_up(self) -> None:
        """What the records have and the tool lacks."""
        ledger, history = self._records()
        for trial, start in ledger.begun.items():
            ending = ledger.ended.get(trial)
            if ending is None or not self.tool.has(trial, ending):
                self._open(trial, start, history)
                self.event(ending)
            else:
                self.ended[trial] = ending["time"]

    def event(self, event: Record | None) -> None:
        """A beginning or an ending; others are of no trial."""
        if event is None:
            return
        trial = event["trial"]
        if event["event"] in log.BEGINNINGS and trial not in self.last:
            if event["time"] > self.ended.get(trial, 0.0):
                again = trial in self.ended
                self._open(trial, event, self._records()[1] if again else {})
        elif event["event"] in log.ENDINGS and self.last.pop(trial, None) is not None:
            self.tool.close(trial, event)
            self.ended[trial] = event["time"]

    def report(self, report: Record) -> None:
        trial, at = report["trial"], (report["step"], report["stage"])
        if trial not in self.last:
            return
        step, stage = self.last[trial]
        if at[0] > step or (at[0] == step and stage not in (None, at[1])):
            self.last[trial] = at
            self.tool.report(trial, report)

    def finish(self) -> None:
        for trial in list(self.last):
            self.tool.close(trial, None)
        self.tool.finish()

    def _open(self, trial: str, start: Record, history: dict[str, list[Record]]) -> None:
        self.last[trial] = (self.tool.open(trial, start), None)
        for report in history.get(trial, ()):
            self.report(report)

    def _records(self) -> tuple[Ledger, dict[str, list[Record]]]:
        """The ledger, and each trial's reports, by step."""
        run = self.followed.folder
        history: dict[str, list[Record]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torn lines
            ledger = Ledger.read(run)
            for report in latest_reports(log.read(run / log.HISTORY)):
                history.setdefault(report["trial"], []).append(report)
        for reports in history.values():
            reports.sort(key=lambda report: report["step"])
        return ledger, history


def follow(lines: TextIO, answer: TextIO) -> None:
    """Follow until the driver says `end` or is gone."""

    def say(**what: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(json.dumps(what), file=answer, flush=True)

    try:
        about = json.loads(lines.readline())
        followed = Followed(Path(about["folder"]), about["id"], about["study"], about["metric"])
        module = importlib.import_module(about["module"])
        follower = Follower(followed, module.Tool(followed, **about["arguments"]))
        if about["resumed"]:
            follower.catch_up()
        for line in lines:
            kind, record = json.loads(line)
            if kind == "end":
                break
            (follower.event if kind == "event" else follower.report)(record)
        follower.finish()
    except Exception as error:
        reason = first_line(error)
        name = type(error).__name__
        say(failed=redact(reason if reason.startswith(name) else f"{name}: {reason}"))
    else:
        say(done=True)


def _leave_without(driver: int) -> None:
    """End soon after the driver did, also where the tool hangs."""
    while os.getppid() == driver:
        time.sleep(1)
    time.sleep(PATIENCE)
    _leave(1)


def _leave(code: int) -> None:
    """End at once: a tool's own threads and exit handlers may wait for ever. What it left behind goes."""
    scratch = Path(tempfile.gettempdir())
    if scratch.name.startswith(SCRATCH):
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(code)


def main() -> None:
    """stdout is for the driver alone: what a tool prints goes nowhere."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nowhere, number)
    threading.Thread(target=_leave_without, args=(os.getppid(),), daemon=True).start()
    follow(sys.stdin, answer)
    with contextlib.suppress(OSError):  # nobody listens any more
        answer.flush()
    _leave(0)


if __name__ == "__main__":
    main()
