"""The stopping half: Ray's scheduler hands every report to the JobSource and does as it says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_ssl.base.errors import Stopped
from tune_ssl.cluster.resources import find_place
from tune_ssl.records import log
from tune_ssl.storage.mirror import Mirror
from tune_ssl.tuning.job import Job, NotPickled
from tune_ssl.tuning.phase import JobSource

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

REPORT = "report"
LOOK, LONGEST = 30.0, 600.0  # seconds between two looks at the nodes; without one that fits


class RoutingScheduler(NotPickled, FIFOScheduler):
    """First in, first out; each trial is judged within its own condition's study."""

    def __init__(self, source: JobSource, bookkeeper: Bookkeeper) -> None:
        super().__init__()
        self.source, self.bookkeeper = source, bookkeeper

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        if REPORT not in result:
            return str(TrialScheduler.CONTINUE)
        stop = True
        with self.source.guarded():
            report = json.loads(result[REPORT])
            if report.keys() & {"note", "model_error"}:
                self.bookkeeper.drop_partial(trial)
            stop = self.source.report(Job.from_config(trial.config), report)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Nothing: Ray calls this before a retry too. `Bookkeeper` hears of final failures."""

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        lost(self.source, trial, "it ended without a last report")


class Bookkeeper(NotPickled, tune.Callback):
    """Hears of what no report tells: dead workers. Deletes the checkpoints that nothing will need."""

    def __init__(self, source: JobSource, session: str, mirror: Mirror | None = None) -> None:
        self.source, self.session, self.mirror = source, session, mirror
        self.whole: set[tuple[str, str]] = set()  # (trial, folder) of checkpoints that were written
        self.ended: list[
            tuple[int, Trial]
        ] = []  # (pushes of the copy until then, a trial that is over)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        with self.source.guarded():
            self.source.recover(Job.from_config(trial.config))

    def on_trial_error(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        lost(self.source, trial, "its worker died more often than study.max_retries allows")
        self._over(trial)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._over(trial)

    def on_checkpoint(
        self, iteration: int, trials: Any, trial: Trial, checkpoint: Any, **info: Any
    ) -> None:
        self.whole.add((Job.from_config(trial.config).trial, Path(checkpoint.path).name))
        self._sweep(trial, keep=2)  # the newest may be torn by a power cut

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        if self.mirror is not None:
            self.mirror.mark()
            if self.mirror.lost is not None:
                self.source.stop(self.mirror.lost)
            while self.ended and self.ended[0][0] + 2 <= self.mirror.pushes:
                self._sweep(self.ended.pop(0)[1], keep=0)

    def drop_partial(self, trial: Trial) -> None:
        """Delete what a failed checkpoint left: half of one must not take the disk from the records."""
        name = Job.from_config(trial.config).trial
        whole = {folder for trial, folder in self.whole if trial == name}
        self.source.checkpoints.drop_partial(self.session, name, whole)

    def _over(self, trial: Trial) -> None:
        """Its checkpoints may go once its ending is on the disk, and in the copy: a whole push later."""
        if (
            Job.from_config(trial.config).trial in self.source.running
        ):  # the run was stopped before that
            return
        if self.mirror is None:
            self._sweep(trial, keep=0)
        else:
            self.ended.append((self.mirror.pushes, trial))

    def _sweep(self, trial: Trial, keep: int) -> None:
        name = Job.from_config(trial.config).trial
        self.source.checkpoints.sweep(self.session, name, keep)


class Places(NotPickled, tune.Callback):
    """Stops a run for which no node is left: Tune would wait for one without a word, for ever.

    A cluster that grows by itself, and a node that is started again, have `LONGEST` seconds.
    """

    def __init__(self, source: JobSource, wanted: dict[str, float]) -> None:
        self.source, self.wanted = source, wanted
        self.looked, self.since = time.monotonic(), float("inf")

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        missing = find_place(self.wanted)
        if missing is None:
            if self.since < now:
                self.source.tell("a node that can run a trial is there again; going on")
            self.since = float("inf")
        elif self.since > now:
            self.since = now
            self.source.tell(f"no node that is left has {missing}; waiting for one")
        elif now - self.since > LONGEST:
            self.source.stop(Stopped(f"for {LONGEST / 60:.0f} minutes no node had {missing}"))


def lost(source: JobSource, trial: Trial, reason: str) -> None:
    """Record a failure that no report announced; does nothing where one did, or all is stopped."""
    if source.stopped is not None:
        return
    job, last = Job.from_config(trial.config), trial.last_result or {}
    report = json.loads(last[REPORT]) if REPORT in last else None
    causes = source.causes.get(job.trial)
    with source.guarded():
        source.end(job, log.FAILED, report, f"{reason}; {causes[-1]}" if causes else reason)


class WhenStopped(NotPickled, tune.Stopper):
    """Ends Ray's run when the source is stopped, or `also()`; what runs stays open in the records."""

    def __init__(self, source: JobSource, also: Callable[[], bool]) -> None:
        self.source, self.also = source, also

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.source.stopped is not None or self.also()
