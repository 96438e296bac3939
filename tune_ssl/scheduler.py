"""The stopping half: Ray's scheduler hands every report to the JobSource and does as it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_ssl import records
from tune_ssl.jobs import Job, JobSource, NotPickled

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

REPORT = "report"


class RoutingScheduler(NotPickled, FIFOScheduler):
    """First in, first out; each trial is judged within its own condition's study."""

    def __init__(self, source: JobSource) -> None:
        super().__init__()
        self.source = source

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        if REPORT not in result:
            return str(TrialScheduler.CONTINUE)
        report = json.loads(result[REPORT])
        stop = self.source.report(Job.from_config(trial.config), report)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Its worker died more often than max_retries allows."""
        self._lost(trial, "its worker died too often")

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        self._lost(trial, "it ended without a last report")

    def _lost(self, trial: Trial, reason: str) -> None:
        """An ending that no report announced; does nothing where one did."""
        last = trial.last_result or {}
        report = json.loads(last[REPORT]) if REPORT in last else None
        self.source.end(Job.from_config(trial.config), records.FAILED, report, reason)


class Sweeper(tune.Callback):
    """Deletes an ended trial's checkpoints: nothing will resume it."""

    def __init__(self, session: Path) -> None:
        self.session = session

    def on_trial_complete(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        name = Job.from_config(trial.config).trial
        shutil.rmtree(self.session / name, ignore_errors=True)

    on_trial_error = on_trial_complete
