"""The tools that `study.loggers` names follow a run, each in a process of its own (`viewers.follow`).

The driver puts a record into a queue and goes on. A tool that fails is switched off, one that is slow loses reports,
one that hangs is ended when the run is over: each is said in one line, and the run and its records are as without.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tune_ssl.base.errors import first_line, printable
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.study.named import given_arguments, name_of
from tune_ssl.tuning.phase import RunContext
from tune_ssl.viewers.follow import SCRATCH

MODULES = {
    "tensorboard": "tune_ssl.viewers.tensorboard_live",
    "mlflow": "tune_ssl.viewers.mlflow_runs",
    "wandb": "tune_ssl.viewers.wandb_runs",
}
MOST = 10_000  # reports that wait for a tool; of beginnings and endings there are as many as trials
PATIENCE = 20.0  # seconds at the end for what still waits
START = 60.0  # ... and from its start at least: MLflow makes tables, and a short run is over
HURRY = 5.0  # instead of both, after Ctrl-C or where the run cannot go on
HASTE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # a server that is not there
COMMAND = "from tune_ssl.viewers.follow import main; main()"

Tell = Callable[[str], None]


class Logger:
    """One tool's process, the queue of what it is to be told, and what it answers."""

    def __init__(self, name: str, about: dict[str, Any], tell: Tell) -> None:
        self.name, self.tell = name, tell
        self.off = self.done = False
        self.dropped = 0
        self.waiting: queue.SimpleQueue[tuple[str, Record] | None] = queue.SimpleQueue()
        self.process: subprocess.Popen[str] | None = None
        self.started = time.monotonic()
        # -P and PYTHONPATH: it imports what this process would, and nothing of the folder it runs in
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.scratch = tempfile.mkdtemp(prefix=SCRATCH)  # W&B leaves files behind
        environment |= {"TMPDIR": self.scratch}
        for key, value in HASTE.items():
            environment.setdefault(key, value)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the driver
            )
        except OSError as error:
            self._switch_off(first_line(error))
            return
        for work in (self._feed, self._listen):
            threading.Thread(target=work, args=(about,), daemon=True).start()

    def put(self, kind: str, record: Record) -> None:
        """Never waits."""
        if self.off:
            return
        if kind == "report" and self.waiting.qsize() >= MOST:
            self.dropped += 1
        else:
            self.waiting.put((kind, record))

    def close(self, until: float) -> None:
        """Wait until all is handed over, or until then."""
        if self.process is None:
            return
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, until - time.monotonic()))
        finally:
            cut = self.process.poll() is None
            if cut:  # with W&B's own process, which is in its group
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.off:
            return
        if cut:
            left = self.waiting.qsize()
            more = f"{left} records" if left else "its last records"
            self._switch_off(f"it is too slow, and {more} did not reach it in time")
        if self.dropped:
            self.tell(f"{self.name}: {self.dropped} reports were dropped, as it was too slow")

    def _feed(self, about: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdin is not None
        line: Any = about
        try:
            while line is not None:
                self.process.stdin.write(json.dumps(log.plain(line)) + "\n")
                if self.waiting.empty():
                    self.process.stdin.flush()
                line = self.waiting.get()
            self.process.stdin.write('["end", {}]\n')
            self.process.stdin.close()
        except (OSError, ValueError):
            pass  # its process is gone: `_listen` says so
        except Exception as error:  # no tool may stop a run
            self._switch_off(f"{type(error).__name__}: {first_line(error)}")
            self.process.kill()

    def _listen(self, about: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            if "failed" in answer:
                self._switch_off(answer["failed"])
            self.done = self.done or "done" in answer
        code = self.process.wait()
        if code != -signal.SIGKILL and not self.done:
            self._switch_off(f"its process ended with {code}")

    def _switch_off(self, reason: str) -> None:
        if not self.off:
            self.off = True
            goes_on = "nothing more is logged there; the run goes on"
            self.tell(f"{self.name}: {printable(reason)}; {goes_on}")


class Loggers:
    """All loggers of a run; of a study without any it does nothing."""

    def __init__(self, context: RunContext, resumed: bool) -> None:
        study, run = context.study, context.run
        run_id = str(read_yaml(run / log.STUDY).data.get("id") or run.name)
        self.all = [
            Logger(
                name_of(named),
                {
                    "module": MODULES[name_of(named)],
                    "arguments": given_arguments(named),
                    "folder": str(run.absolute()),
                    "id": run_id,
                    "study": study.name,
                    "metric": study.settings.metric,
                    "resumed": resumed,
                },
                context.tell,
            )
            for named in study.settings.loggers
        ]

    def put(self, kind: str, record: Record) -> None:
        for logger in self.all:
            logger.put(kind, record)

    def close(self, hurry: bool) -> None:
        for logger in self.all:
            logger.waiting.put(None)
        now = time.monotonic()
        for logger in self.all:
            late = max(now + PATIENCE, logger.started + START)
            logger.close(now + HURRY if hurry else late)


@contextlib.contextmanager
def following(context: RunContext, resumed: bool) -> Iterator[None]:
    """The study's loggers hear of what is recorded while the block runs."""
    loggers = Loggers(context, resumed)
    context.writer.also = loggers.put
    hurry = True
    try:
        yield
        hurry = False
    finally:
        context.writer.also = None
        loggers.close(hurry)
