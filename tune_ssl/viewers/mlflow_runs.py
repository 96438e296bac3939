"""`study.loggers: [mlflow]`: each trial is a run of MLflow's, found again by its tags."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.viewers.follow import NOTHING, Followed
from tune_ssl.viewers.tensorboard import final_value, hyperparameters, scalars

URI, SQLITE = "MLFLOW_TRACKING_URI", "sqlite:///"
RUN, TRIAL, ENDED = "tune_ssl.run_id", "tune_ssl.trial", "tune_ssl.ended"
STATUS = {log.FINISHED: "FINISHED", log.STOPPED: "KILLED"}  # all others: FAILED
LONGEST = 500  # characters of a value
PAGE = 1000  # runs or metrics of one call
MOMENT, MOST = 2.0, 500  # seconds, metrics


class Tool:
    """One experiment, and in it one run for each trial."""

    def __init__(
        self, followed: Followed, tracking_uri: str | None = None, experiment: str | None = None
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        self.followed = followed
        self.uri = tracking_uri or os.environ.get(URI) or _own(followed.folder)
        if self.uri.startswith(SQLITE):
            _try(Path(self.uri.removeprefix(SQLITE)))
        self.client = MlflowClient(self.uri)
        self.experiment = self._experiment(experiment or followed.study)
        self.runs = self._earlier()  # trial -> MLflow's id of it
        self.waiting: dict[str, list[Any]] = {}  # MLflow's id -> metrics that are not handed over
        self.called: dict[str, float] = {}  # ... -> when something was

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = Path(self.followed.folder, "mlflow-artifacts").absolute().as_uri()
        own = self.uri == _own(self.followed.folder)
        return str(self.client.create_experiment(name, artifacts if own else None))

    def _earlier(self) -> dict[str, str]:
        """The runs of an earlier command of the same run folder."""
        found, token = {}, None
        while True:
            query = f"tags.`{RUN}` = '{self.followed.id}'"
            page = self.client.search_runs(
                [self.experiment], query, max_results=PAGE, page_token=token
            )
            for run in page:
                found[run.data.tags[TRIAL]] = run.info.run_id
            token = page.token
            if not token:
                return found

    def has(self, trial: str, ending: Record) -> bool:
        if trial not in self.runs:
            return False
        tags = self.client.get_run(self.runs[trial]).data.tags
        return bool(tags.get(ENDED) == repr(ending["time"]))

    def open(self, trial: str, start: Record) -> float:
        if trial in self.runs:
            run = self.runs[trial]
            self.client.update_run(run, status="RUNNING")
            return self._last_step(run)
        tags = {
            RUN: self.followed.id,
            TRIAL: trial,
            "tune_ssl.run": self.followed.folder.name,
            **{f"tune_ssl.{key}": str(start[key]) for key in ("condition", "phase", "digest")},
        }
        created = self.client.create_run(
            self.experiment, _milliseconds(start["time"]), tags, run_name=trial
        )
        self.runs[trial] = run = str(created.info.run_id)
        params = [(key, str(value)[:LONGEST]) for key, value in hyperparameters(start).items()]
        self._log(run, params=params)
        return NOTHING

    def _last_step(self, run: str) -> float:
        keys = self.client.get_run(run).data.metrics
        steps = [
            metric.step
            for key in keys
            if not key.startswith("final/")
            for metric in self.client.get_metric_history(run, key)
        ]
        return max(steps, default=NOTHING)

    def report(self, trial: str, report: Record) -> None:
        """Handed over at once, or together with those that follow within a moment: a call takes as long for many."""
        run, now = self.runs[trial], time.monotonic()
        waiting = self.waiting.setdefault(run, [])
        waiting += _metrics(scalars(report["metrics"]), report)
        if now - self.called.get(run, 0.0) > MOMENT or len(waiting) > MOST:
            self._log(run)

    def close(self, trial: str, ending: Record | None) -> None:
        run = self.runs[trial]
        if ending is None:  # its command ends: the next one goes on with it
            self._log(run)
            self.client.set_terminated(run, "KILLED")
            return
        tags = {"tune_ssl.status": ending["event"], ENDED: repr(ending["time"])}
        if ending.get("reason"):
            tags["tune_ssl.reason"] = str(ending["reason"])[-LONGEST:]
        final = final_value(ending, self.followed.metric)
        self.waiting.setdefault(run, []).extend(_metrics(final, ending))
        self._log(run, tags=tags)
        status = STATUS.get(ending["event"], "FAILED")
        self.client.set_terminated(run, status, _milliseconds(ending["time"]))

    def _log(self, run: str, params: Any = (), tags: dict[str, str] | None = None) -> None:
        """What waits of the run, with these."""
        from mlflow.entities import Param, RunTag

        waiting = self.waiting.pop(run, [])
        own = [Param(*each) for each in params], [RunTag(*each) for each in (tags or {}).items()]
        self.client.log_batch(run, waiting[:PAGE], *own)
        for i in range(PAGE, len(waiting), PAGE):
            self.client.log_batch(run, waiting[i : i + PAGE])
        self.called[run] = time.monotonic()

    def finish(self) -> None:
        pass


def _metrics(values: dict[str, float], at: Record) -> list[Any]:
    from mlflow.entities import Metric

    when = (_milliseconds(at["time"]), int(at["step"] or 0))
    return [Metric(key, float(value), *when) for key, value in values.items()]


def _try(path: Path) -> None:
    """Raise at once what MLflow would try again for minutes: nothing else answers at a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version")


def _own(run: Path) -> str:
    return f"{SQLITE}{run.absolute()}/mlflow.db"


def _milliseconds(seconds: float) -> int:
    return int(1000 * seconds)
