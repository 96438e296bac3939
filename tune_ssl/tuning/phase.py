"""Jobs: what a worker is asked to do, where the next one comes from, and the record of how each ended.

A JobSource is the driver's single book of a run. Ray's searcher asks it for the next job and Ray's
scheduler hands it every report; it writes the run folder and decides who goes on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Stopped, UserError
from tune_ssl.base.retry import until_it_works
from tune_ssl.base.secrets import redact
from tune_ssl.base.spec import digest
from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.storage.checkpoints import Checkpoints
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import override
from tune_ssl.tuning.job import BROKEN, Job, Progress

HOPELESS = 3  # failed trials, and nothing else, after which a phase stops


class JobSource:
    """Base: the jobs of one phase. Subclasses decide what is next, and who is stopped early.

    `splits` has the split digest of each (condition, seed) that a job may train on.
    """

    phase: str

    def __init__(self, run: Path, study: Study, splits: dict[tuple[str, int], str]) -> None:
        self.run, self.study, self.splits = run, study, splits
        self.metric, self.mode = study.settings.metric, study.settings.mode
        self.jobs: list[Job] = []
        self.progress: dict[str, Progress] = {}
        self.running: dict[str, Job] = {}
        self.reported: set[str] = set()  # of the running: which have reported metrics
        self.causes: dict[str, list[str]] = {}  # trial -> what ended its attempts so far
        self.first_failure = ""
        self.stopped: Exception | None = None
        self.on_end: Callable[[Job, str, float | None], None] | None = None
        self.tell: Callable[[str], None] = print
        self.told: set[str] = set()
        self.checkpoints = Checkpoints(run, study.settings.storage, lambda line: self.tell(line))

    # ---- what Ray asks -------------------------------------------------------------------------

    def remaining(self) -> int:
        """How many jobs `next` can still give."""
        return len(self.jobs)

    def next(self) -> Job | None:
        """The next job, recorded as started; None when there is nothing left or all is stopped."""
        while self.stopped is None and (job := self.draw()) is not None:
            self.running[job.trial] = job
            self.progress[job.condition].running += 1
            self._begin(job, log.RESUMED if job.resume_from else log.STARTED)
            if not job.unfit:
                return job
            self.end(job, log.FAILED, None, job.unfit)
        return None

    def report(self, job: Job, report: Record) -> bool:
        """Take one report of a running job. True when the trial is over and Ray shall stop it."""
        if job.trial not in self.running:  # ended already
            return True
        if "metrics" in report:
            line = {key: report[key] for key in ("stage", "step", "metrics", "seconds")}
            self._write(log.HISTORY, {"trial": job.trial, **line})
            self.reported.add(job.trial)
        if note := report.get("note"):
            self._tell_once(note)
        status = report["status"]
        if report.get("split") not in (None, job.split):
            reason = f"its worker drew split {report['split']}, the driver {job.split}"
            self.end(job, log.FAILED, report, reason)
        elif status == BROKEN:
            self._broke(job, report)
        elif status != "running":
            self.end(job, status, report, report.get("reason"))
        elif self.should_stop(job, report):
            self.end(job, log.STOPPED, report, "below the study's pruner")
        return job.trial not in self.running

    def recover(self, job: Job) -> None:
        """An attempt is over, and Ray runs the trial again from its newest checkpoint."""
        if job.trial in self.running:
            causes = self.causes.get(job.trial)
            self._begin(job, log.RESUMED, causes[-1] if causes else "its worker died")

    def end(self, job: Job, status: str, report: Record | None, reason: str | None) -> None:
        """Record an ending, once. The record is written before any study is told."""
        if job.trial not in self.running:
            return
        report = report or {}
        if status == log.FINISHED:
            self.finishing(job, report)
        result = report.get("result") or {}
        value = result.get(self.metric)
        self._event(
            job,
            status,
            step=report.get("step"),
            value=value,
            metrics=result,
            reason=redact(reason) if reason else reason,
            seconds=report.get("seconds"),
            images_seen=report.get("images_seen"),
            **({"accumulate": parts} if (parts := report.get("accumulate", 1)) != 1 else {}),
        )
        del self.running[job.trial]
        self.reported.discard(job.trial)
        progress = self.progress[job.condition]
        progress.running -= 1
        self._count(progress, status, value)
        self.ended(job, status, value)
        if self.on_end:
            self.on_end(job, status, value)
        if status == log.FAILED:
            self._stop_if_hopeless(job.trial, reason or "")

    def stop(self, error: Exception) -> None:
        """Nothing more is begun, and what runs is left open for a resume; the first error counts."""
        self.stopped = self.stopped or error

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """An exception in a callback of Ray's would end its loop any way it likes: stop instead."""
        try:
            yield
        except Exception as error:
            self.stop(error)

    # ---- what subclasses decide ----------------------------------------------------------------

    def draw(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def should_stop(self, job: Job, report: Record) -> bool:
        return False

    def finishing(self, job: Job, report: Record) -> None:
        """Called with the last report of a finished run, before the ending is recorded."""

    def ended(self, job: Job, status: str, value: float | None) -> None:
        """Called after the ending was recorded."""

    # ---- helpers -------------------------------------------------------------------------------

    def job(
        self,
        name: str,
        condition: Condition,
        config: dict[str, Any],
        seed: int,
        number: int,
        repeats: str | None = None,
        variant: str | None = None,
    ) -> Job:
        """The job that trains `config` in a condition, from its newest checkpoint if it has one."""
        settings = self.study.settings
        unfit = ""
        try:
            spec = override(condition.spec, {**config, "seed": seed})
        except UserError as error:  # both ends of each domain fit, but not each pair of values
            spec, unfit = condition.spec, "; ".join(str(problem) for problem in error.problems)
        return Job(
            trial=name,
            phase=self.phase,
            condition=condition.id,
            number=number,
            config=config,
            seed=seed,
            spec=spec.model_dump(mode="json"),
            digest="" if unfit else digest(spec),
            split=self.splits[condition.id, seed],
            metric=self.metric,
            mode=self.mode,
            cpus=settings.cpus_per_trial,
            checkpoint_seconds=settings.checkpoint_seconds,
            repeats=repeats,
            variant=variant,
            unfit=unfit,
            resume_from=self.checkpoints.before(name),
            plugins=self.study.plugins,
        )

    def _count(self, progress: Progress, status: str, value: float | None) -> None:
        progress.ended[status] += 1
        if status == log.FINISHED and value is not None:
            better = max if self.mode == "max" else min
            progress.best = value if progress.best is None else better(progress.best, value)

    def _tell_once(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.tell(line)

    def _broke(self, job: Job, report: Record) -> None:
        """An attempt ended by an exception: once more if another one may go better, else a failure."""
        before = self.causes.setdefault(job.trial, [])
        cause = report["cause"]
        may_help = report["again"] and cause not in before
        before.append(cause)
        if not may_help or len(before) > self.study.settings.max_retries:
            self.end(job, log.FAILED, report, report["reason"])

    def _stop_if_hopeless(self, trial: str, reason: str) -> None:
        """Where trials only fail, the rest of the budget would be spent on the same failure."""
        self.first_failure = (
            self.first_failure or f"{trial}: {(reason.strip() or '?').splitlines()[-1]}"
        )
        endings: Counter[str] = Counter()
        for progress in self.progress.values():
            endings.update(progress.ended)
        failed = endings[log.FAILED]
        if failed == endings.total() and failed >= HOPELESS + len(self.reported):
            text = f"all {failed} trials so far failed, the first one, {self.first_failure}"
            self.stop(Stopped(text))

    def _begin(self, job: Job, event: str, reason: str | None = None) -> None:
        line: dict[str, Any] = {"number": job.number, "config": job.config, "seed": job.seed}
        line |= {k: v for k in ("repeats", "variant") if (v := getattr(job, k))}
        if reason:
            line["reason"] = redact(reason)
        self._event(job, event, digest=job.digest, **line)

    def _event(self, job: Job, event: str, **fields: Any) -> None:
        line = {"event": event, "phase": job.phase, "trial": job.trial, "condition": job.condition}
        self._write(log.TRIALS, {**line, **fields}, durable=True)

    def _write(self, file: str, *lines: Record, durable: bool = False) -> None:
        """A disk that is full or away is waited for; then Stopped, and the record is not lost but unmade."""
        path = self.run / file

        def write() -> None:
            if durable:  # an ending is never on the disk without what was written before it
                for before in (log.HISTORY, log.GALLERIES):
                    log.sync(self.run / before)
            log.append_all(path, lines, durable=durable)

        until_it_works(write, OSError, f"{path} cannot be written", self.tell)
