"""The stream of jobs of a run: each condition goes through its phases, and the one that has waited longest is next.

Ray's searcher asks the stream for the next job, and Ray's scheduler hands it every report. It writes the
records and decides who goes on. No condition waits for another: only for its own last jobs of a phase.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tune_ssl.base.errors import Stopped
from tune_ssl.base.secrets import redact
from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.tuning.job import BROKEN, Job
from tune_ssl.tuning.phase import Phase, RunContext

AHEAD = 4  # jobs of one condition that may be drawn before any of them can begin
FEWEST = 3  # failed trials after which it is asked whether all of them fail


class Begin(NamedTuple):
    """How a phase begins, and how many jobs it may be expected to have."""

    make: Callable[[], Phase | None]
    expected: int = 0


class At(NamedTuple):
    """How far a running trial is: steps done, and seconds trained, earlier attempts included."""

    step: int
    seconds: float


@dataclass
class Progress:
    """What the live table shows of one condition: its present phase and, below, all of its phases."""

    condition: str
    title: str = ""
    planned: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    running: int = 0
    best: float | None = None
    done_before: int = 0  # trials of the phases before


class ConditionLine:
    """One condition: its phases in order, the jobs in hand, and how many of its jobs run."""

    def __init__(self, context: RunContext, index: int, phases: Sequence[Begin]) -> None:
        self.context, self.waiting = context, list(phases)
        self.condition = context.study.conditions[index].id
        self.spec = context.study.conditions[index].spec
        self.phase: Phase | None = None
        self.in_hand: list[Job] = []
        self.turn = 0  # when it was last given a job
        self.progress = Progress(self.condition)
        self._advance()

    def look(self, waits: Callable[[Job], bool] = lambda job: False) -> Job | None:
        """The job that is next here, which stays in hand until it is taken; None if there is none now.

        A job that `waits` comes after one that need not: for that, a few more are drawn.
        """
        while self.phase is not None:
            job = next((job for job in self.in_hand if not waits(job)), None)
            if job is not None:
                return job
            drawn = self.phase.draw() if len(self.in_hand) < AHEAD else None
            if drawn is not None:
                self.in_hand.append(drawn)
            elif self.in_hand or self.progress.running:
                return None
            else:
                self._advance()
        return None

    @property
    def expected(self) -> int:
        """Jobs of all its phases, those that ended included."""
        later = sum(begin.expected for begin in self.waiting)
        return self.progress.done_before + self.progress.planned + later

    def count(self, status: str, value: float | None) -> None:
        self.progress.ended[status] += 1
        if status == log.FINISHED and value is not None:
            better = max if self.context.study.settings.mode == "max" else min
            best = self.progress.best
            self.progress.best = value if best is None else better(best, value)

    def _cut(self, phase: Phase, undone: int) -> None:
        """Write down what the time budget leaves undone."""
        minutes = self.context.deadline.minutes or 0
        reason = f"study.time_budget ({minutes:g} min) is over, trials not begun: {undone}"
        event = {"event": log.CUT, "phase": phase.name, "trial": None, "reason": reason}
        self.context.writer.event({**event, "condition": self.condition})
        self.context.tell(f"{self.condition}, {phase.title}: {reason}")

    def _advance(self) -> None:
        """On to the next phase that has something to do, or to the end."""
        if self.phase is not None and (undone := self.phase.undone) and not self.in_hand:
            self._cut(self.phase, undone)
        self.phase = None
        while self.phase is None and self.waiting:
            self.phase = self.waiting.pop(0).make()
            if self.phase is not None and not self.phase.planned:
                self.phase = None
        if self.phase is None:
            return
        done = self.progress.done_before + self.progress.ended.total()
        self.progress = Progress(
            self.condition, self.phase.title, self.phase.planned, done_before=done
        )
        for trial, start, end in self.context.ledger.trials(self.condition, self.phase.name):
            if end is not None and self.phase.counts(trial, start):
                self.count(end["event"], end["value"])


class JobStream:
    """All conditions of a run. `places` says at how many places trials can run, for the judgement of failures."""

    def __init__(self, context: RunContext, phases: Sequence[Sequence[Begin]]) -> None:
        self.context, self.tell = context, context.tell
        self.lines = [ConditionLine(context, i, own) for i, own in enumerate(phases)]
        self.of = {line.condition: line for line in self.lines}
        self.turns = itertools.count(1)
        self.running: dict[str, Job] = {}
        self.stopped: Exception | None = None
        self.on_end: Callable[[Job, str, float | None], None] | None = None
        self.told: set[str] = set()
        self.causes: dict[str, list[str]] = {}  # trial -> what ended its attempts so far
        self.pretrained: set[str] = set()  # what a running job has shown to be there
        self.one_machine = True
        self.places = 1
        self.failures: dict[str, set[str]] = {}  # cause -> the places where a trial failed for it
        ends = context.ledger.ended.values()
        self.sound = any(end["event"] != log.FAILED for end in ends)  # has any trial ever worked?
        self.reached: dict[str, int] = {}  # running trial -> evaluations that it has reported
        self.at: dict[str, At] = {}  # running trial -> how far it is
        self.worked = 0.0  # seconds that trials have trained since the stream began
        self.failed_at = 0  # evaluations of the failed trial that came furthest

    # ---- what Ray asks -------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left; to ask may take a condition to its next phase."""
        return not self.running and all(line.look() is None for line in self.lines)

    def next(self) -> Job | None:
        """The next job, recorded as begun; None if nothing can begin now, nothing is left, or all is stopped."""
        while self.stopped is None and (job := self._choose()) is not None:
            line = self.of[job.condition]
            line.in_hand.remove(job)
            line.turn = next(self.turns)
            line.progress.running += 1
            self.running[job.trial] = job
            before = self.context.ledger.ended.get(job.trial)
            if before is not None:  # a failed one, once more
                line.progress.ended[before["event"]] -= 1
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
            self.context.writer.report({"trial": job.trial, **line})
            self.reached[job.trial] = report["evaluation"]
            self._came_to(job, report)
            if job.pretraining and report["step"] >= job.pretraining_steps:
                self.pretrained.add(job.pretraining)
        if note := report.get("note"):
            self._tell_once(note)
        for note in report.get("notes", ()):
            self._tell_once(f"{job.condition}: {note} (first seen in {job.trial})")
        status = report["status"]
        if report.get("split") not in (None, job.split):
            reason = f"its worker drew split {report['split']}, the driver {job.split}"
            self.end(job, log.FAILED, report, reason)
        elif status == BROKEN:
            self._broke(job, report)
        elif status != "running":
            self.end(job, status, report, report.get("reason"))
        elif why := self._phase(job).why_stop(job, report):
            self.end(job, log.STOPPED, report, why)
        return job.trial not in self.running

    def recover(self, job: Job) -> None:
        """An attempt is over, and Ray runs the trial again from its newest checkpoint."""
        if job.trial in self.running:
            causes = self.causes.get(job.trial)
            self._begin(job, log.RESUMED, causes[-1] if causes else "its worker died")

    def give_back(self, job: Job) -> None:
        """Ray gave up the trial before it began: it is the next one of its condition again."""
        if job.trial in self.running:
            del self.running[job.trial]
            line = self.of[job.condition]
            line.progress.running -= 1
            line.in_hand.insert(0, job)

    def end(self, job: Job, status: str, report: Record | None, reason: str | None) -> None:
        """Record an ending, once. The record is written before the phase is told."""
        if job.trial not in self.running:
            return
        report, phase = report or {}, self._phase(job)
        if status == log.FINISHED:
            self.context.deadline.finished.append(report.get("seconds") or 0.0)
            phase.finishing(job, report)
        result = report.get("result") or {}
        value = result.get(self.context.study.settings.metric)
        more = {"accumulate": parts} if (parts := report.get("accumulate", 1)) != 1 else {}
        more |= {"waited": waited} if (waited := report.get("waited")) else {}
        more |= {"reused": report["reused"]} if "reused" in report else {}
        more |= {"notes": notes} if (notes := report.get("notes")) else {}
        self._event(
            job,
            status,
            step=report.get("step"),
            value=value,
            metrics=result,
            reason=redact(reason) if reason else reason,
            seconds=report.get("seconds"),
            images_seen=report.get("images_seen"),
            **more,
        )
        del self.running[job.trial]
        self._came_to(job, report)
        self.at.pop(job.trial, None)
        causes, reached = self.causes.pop(job.trial, []), self.reached.pop(job.trial, 0)
        line = self.of[job.condition]
        line.progress.running -= 1
        line.count(status, value)
        phase.ended(job, status, value)
        if self.on_end:
            self.on_end(job, status, value)
        if status != log.FAILED:
            self.sound = True
        elif not job.unfit:
            self.failed_at = max(self.failed_at, reached)
            self._stop_if_all_fail(causes[-1] if causes else reason or "", report.get("place"))

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

    # ---- helpers -------------------------------------------------------------------------------

    def _choose(self) -> Job | None:
        """Of the condition that has waited longest; a job that would wait for another's pretraining comes last."""
        would_wait: Job | None = None
        for line in sorted(self.lines, key=lambda line: line.turn):
            job = line.look(self._is_being_pretrained)
            if job is not None:
                return job
            would_wait = would_wait or next(iter(line.in_hand), None)
        return None if self.one_machine else would_wait

    def _is_being_pretrained(self, job: Job) -> bool:
        """Whether a running job trains just now what this one would take from the cache."""
        key = job.pretraining
        if key is None or key in self.pretrained:
            return False
        return any(other.pretraining == key for other in self.running.values())

    def _phase(self, job: Job) -> Phase:
        phase = self.of[job.condition].phase
        assert phase is not None and phase.name == job.phase
        return phase

    def _came_to(self, job: Job, report: Record) -> None:
        seconds = report.get("seconds") or 0.0
        # What a trial that goes on did before counts for another stream
        before = self.at.get(job.trial, At(0, seconds if job.resume_from else 0.0))
        self.worked += max(0.0, seconds - before.seconds)
        self.at[job.trial] = At(report.get("step") or before.step, seconds)

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
        if not may_help or len(before) > self.context.study.settings.max_retries:
            self.end(job, log.FAILED, report, report["reason"])

    def _stop_if_all_fail(self, cause: str, place: str | None) -> None:
        """Where trials only fail, the rest of the budget would be spent on the same failure.

        As many must have failed as are running, none of which has come further, and at each place where trials
        run or for one cause at two of them: neither a few early failures nor one bad device end a study. A
        config whose values do not fit together has no digest, and says nothing of the others.
        """
        self.failures.setdefault(cause, set()).add(place or "")
        if self.sound or max(self.reached.values(), default=0) > self.failed_at:
            return
        ledger = self.context.ledger
        failed = sum(bool(ledger.begun[trial]["digest"]) for trial in ledger.ended)
        if failed < max(FEWEST, len(self.running)):
            return
        places = set().union(*self.failures.values())
        if len(places) >= self.places or max(map(len, self.failures.values())) > 1:
            first = self.context.ledger.first_failure(*log.PHASES)
            self.stop(Stopped(f"all {failed} trials so far failed; the first one: {first}"))

    def _begin(self, job: Job, event: str, reason: str | None = None) -> None:
        line: Record = {"number": job.number, "config": job.config, "seed": job.seed}
        line |= {k: v for k in ("repeats", "variant", "given", "redrawn") if (v := getattr(job, k))}
        if reason:
            line["reason"] = redact(reason)
        self._event(job, event, digest=job.digest, **line)

    def _event(self, job: Job, event: str, **fields: object) -> None:
        about = {"event": event, "phase": job.phase, "trial": job.trial, "condition": job.condition}
        self.context.writer.event({**about, **fields})
