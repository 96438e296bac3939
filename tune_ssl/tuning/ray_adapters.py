"""What Ray's Tuner asks for: a searcher and a scheduler that ask the stream of jobs, and its callbacks."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_ssl.base.errors import Stopped
from tune_ssl.cluster.resources import capacity
from tune_ssl.records import log
from tune_ssl.storage.checkpoints import Checkpoints
from tune_ssl.storage.mirror import Mirror
from tune_ssl.tuning.job import REPORT, Job, NotPickled
from tune_ssl.tuning.stream import JobStream

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

LOOK = 2.0  # seconds between two looks at the nodes of a cluster
LONGEST = 600.0  # seconds without a node that fits before a run is stopped


class StreamSearcher(NotPickled, Searcher):
    """Gives Ray the next job while there is room for one; FINISHED when every condition is through."""

    def __init__(self, stream: JobStream, room: Room) -> None:
        super().__init__(metric="_", mode="max")
        self.stream, self.room = stream, room

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job, over = None, True
        with self.stream.guarded():
            if len(self.stream.running) < self.room.jobs:
                job = self.stream.next()
            over = job is None and (self.stream.stopped is not None or self.stream.over)
        if job is not None:
            return job.to_config()
        return str(Searcher.FINISHED) if over else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler has told the stream already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a run goes on from its records, and never unpickles a searcher."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a run goes on from its records, not from a searcher's pickle")


class StreamScheduler(NotPickled, FIFOScheduler):
    """First in, first out; the stream says which trial stops."""

    def __init__(self, stream: JobStream, caretaker: Caretaker) -> None:
        super().__init__()
        self.stream, self.caretaker = stream, caretaker

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        self.caretaker.trials[trial.config["trial"]] = trial

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """None: Ray starts pending trials by itself, and gives a free worker to the newest one.

        The oldest one has a worker that is starting, perhaps on a node that has just joined. With the free worker
        it would drop that one, again and again, and the cluster's new places would stay empty.
        """
        return None

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        job = self.stream.running.get(trial.config["trial"])
        if job is None:  # ended already
            return str(TrialScheduler.STOP)
        if REPORT not in result:
            return str(TrialScheduler.CONTINUE)
        stop = True
        with self.stream.guarded():
            report = json.loads(result[REPORT])
            if report.keys() & {"note", "model_error"}:
                self.caretaker.drop_partial(trial)
            stop = self.stream.report(job, report)
        if stop:
            end_training(trial)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Nothing: Ray calls this before a retry too. `Caretaker` hears of final failures."""

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        record_loss(self.stream, trial, "it ended without a last report")


def end_training(trial: Trial) -> None:
    """End what a stopped trial's worker does for it, now.

    Ray keeps the worker for the next trial, and leaves the thread of this one asleep in its report until then: with
    all its memory, and with the lock of a pretraining for which another trial may be waiting.
    """
    worker = trial.temporary_state.ray_actor
    if worker is not None:
        worker.execute.remote(_leave)


def _leave(trainable: Any) -> None:
    """In the worker: the sleeping report returns, and raises SystemExit."""
    from ray.train._internal.session import get_session

    session = get_session()
    if session is not None:
        session.stop_event.set()
        session.continue_lock.release()


class Caretaker(NotPickled, tune.Callback):
    """Hears of workers that died without a report. Deletes the checkpoints that nothing will need."""

    def __init__(
        self, stream: JobStream, checkpoints: Checkpoints, session: str, mirror: Mirror | None
    ) -> None:
        self.stream, self.checkpoints = stream, checkpoints
        self.session, self.mirror = session, mirror
        self.whole: dict[str, set[str]] = {}  # of open trials: the checkpoints that were written
        self.trials: dict[str, Trial] = {}  # of those that are not over
        # (pushes of the copy until then, trial) of trials that are over
        self.ended: deque[tuple[int, str]] = deque()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        with self.stream.guarded():
            self.stream.recover(Job.from_config(trial.config))

    def on_trial_error(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        reason = "its worker died more often than study.max_retries allows"
        record_loss(self.stream, trial, reason)
        self._over(trial)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Trial, **info: Any) -> None:
        self._over(trial)

    def on_checkpoint(
        self, iteration: int, trials: Any, trial: Trial, checkpoint: Any, **info: Any
    ) -> None:
        name = trial.config["trial"]
        self.whole.setdefault(name, set()).add(Path(checkpoint.path).name)
        self._sweep(name, keep=2)  # the newest may be torn by a power cut

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        with self.stream.guarded():
            for name, job in list(self.stream.running.items()):
                given_up = self.trials.get(name)
                # Its worker could not be freed of the trial before: Ray tells nobody
                if given_up is not None and given_up.status == Trial.ERROR:
                    self.stream.give_back(job)
        if self.mirror is not None:
            self.mirror.mark()
            if self.mirror.taken_over is not None:
                self.stream.stop(self.mirror.taken_over)
            while self.ended and self.ended[0][0] + 2 <= self.mirror.pushes:
                _, name = self.ended.popleft()
                if name not in self.stream.running:
                    self._sweep(name, keep=0)

    def drop_partial(self, trial: Trial) -> None:
        """Delete what a failed checkpoint left: half of one must not take the disk from the records."""
        name = trial.config["trial"]
        self.checkpoints.drop_partial(self.session, name, self.whole.get(name, set()))

    def _over(self, trial: Trial) -> None:
        """Its checkpoints may go once its ending is on the disk, and in the copy: a whole push later."""
        name = trial.config["trial"]
        if name in self.stream.running:  # the run was stopped before that, or it runs again
            return
        self.whole.pop(name, None)
        self.trials.pop(name, None)
        if trial.local_path:  # where it is there, Ray gives a trial that runs again another name
            shutil.rmtree(trial.local_path, ignore_errors=True)
        if self.mirror is None:
            self._sweep(name, keep=0)
        else:
            self.ended.append((self.mirror.pushes, name))

    def _sweep(self, trial: str, keep: int) -> None:
        self.checkpoints.sweep(self.session, trial, keep)


class Room(NotPickled, tune.Callback):
    """How many jobs Ray may have at once. It follows a cluster that grows and shrinks.

    On a cluster one job more than fits is given to Ray: it goes to the next free place, and where the cluster
    scales by itself it is the demand that makes it grow. A cluster on which nothing fits any more (or not yet)
    has LONGEST seconds for a node: Tune would wait for one without a word, for ever.
    """

    def __init__(
        self, stream: JobStream, wanted: dict[str, float], limit: int | None, fixed: bool
    ) -> None:
        self.stream, self.wanted, self.fixed = stream, wanted, fixed
        self.limit = limit or sys.maxsize
        self.jobs = 1
        self.looked, self.since = float("-inf"), float("inf")
        self.look()

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        if not self.fixed and time.monotonic() - self.looked > LOOK:
            with self.stream.guarded():
                self.look()

    def look(self) -> None:
        self.looked = now = time.monotonic()
        found = capacity(self.wanted)
        self.jobs = max(1, min(found.jobs + (not self.fixed), self.limit))
        self.stream.context.deadline.places = self.jobs
        self.stream.places, self.stream.one_machine = found.places, found.nodes == 1
        if not found.missing:
            if self.since < now:
                self.stream.tell("a node that can run a trial is there; going on")
            self.since = float("inf")
        elif self.since > now:
            self.since = now
            self.stream.tell(f"no node has {found.missing}; waiting for one")
        elif now - self.since > LONGEST:
            text = f"for {LONGEST / 60:.0f} minutes no node had {found.missing}"
            self.stream.stop(Stopped(text))


def record_loss(stream: JobStream, trial: Trial, reason: str) -> None:
    """Record a failure that no report announced; does nothing where one did, or all is stopped."""
    job = stream.running.get(trial.config["trial"])
    if stream.stopped is not None or job is None:
        return
    last = trial.last_result or {}
    report = json.loads(last[REPORT]) if REPORT in last else None
    causes = stream.causes.get(job.trial)
    with stream.guarded():
        stream.end(job, log.FAILED, report, f"{reason}; {causes[-1]}" if causes else reason)


class WhenStopped(NotPickled, tune.Stopper):
    """Ends Ray's run when the stream is stopped, or `also()`; what runs stays open in the records."""

    def __init__(self, stream: JobStream, also: Callable[[], bool]) -> None:
        self.stream, self.also = stream, also

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stream.stopped is not None or self.also()
