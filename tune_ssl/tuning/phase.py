"""A phase: one part of a condition's work, and the jobs that it gives.

A condition goes from its search to its finalists to its confirmation, or through the rows of an ablation.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import digest
from tune_ssl.data.store import Store
from tune_ssl.records import log
from tune_ssl.records.ledger import OPEN, Ledger
from tune_ssl.records.log import Record
from tune_ssl.runs.splits import store_of
from tune_ssl.storage.checkpoints import Checkpoints
from tune_ssl.study.shared_pretraining import shared_pretraining_key
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import override
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.writer import Writer


class Deadline:
    """When `study.time_budget` is over, for work that is still to begin."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.places = 1  # trials that run at once
        self.finished: list[float] = []  # seconds of the trials that finished

    def passed(self, later: int = 0) -> bool:
        """Whether nothing more is to begin; with `later` trials to come after it, whether they would find no time."""
        if not self.finished or not later:
            return time.monotonic() >= self.ends
        one = sum(self.finished) / len(self.finished)
        rounds = math.ceil(later / max(1, self.places))
        return time.monotonic() + one * (1 + rounds) >= self.ends


@dataclass(frozen=True)
class RunContext:
    """What the phases of a run share. `splits` has the split digest of each (condition, seed)."""

    run: Path
    study: Study
    stores: dict[str, Store]
    splits: dict[tuple[str, int], str]
    writer: Writer
    checkpoints: Checkpoints
    tell: Callable[[str], None]
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    others: dict[str, Store] = field(default_factory=dict)  # of searched images

    @property
    def ledger(self) -> Ledger:
        return self.writer.ledger


class Phase:
    """The jobs of one condition in one part of a run. It is over when it gives none and none of it runs."""

    name: str  # in the records
    title: str  # in the live table

    def __init__(self, context: RunContext, index: int) -> None:
        self.context, self.index = context, index
        self.condition: Condition = context.study.conditions[index]
        self.planned = 0
        self.jobs: deque[Job] = deque()

    def draw(self) -> Job | None:
        """The next job; None while there is none to give."""
        if self.context.deadline.passed():
            return None
        return self.jobs.popleft() if self.jobs else None

    @property
    def undone(self) -> int:
        """Jobs that it has not given."""
        return len(self.jobs)

    def counts(self, trial: str, start: Record) -> bool:
        """Whether a trial of the phase's name is one of its own, by its beginning."""
        return True

    def why_stop(self, job: Job, report: Record) -> str:
        """Why a running job is to be stopped after this report; empty to let it go on."""
        return ""

    def finishing(self, job: Job, report: Record) -> None:
        """Called with the last report of a finished job, before its ending is recorded."""

    def ended(self, job: Job, status: str, value: float | None) -> None:
        """Called after the ending was recorded."""

    def job(
        self,
        trial: str,
        config: dict[str, Any],
        seed: int,
        number: int,
        *,
        repeats: str | None = None,
        given: str | None = None,
        redrawn: int = 0,
        variant: str | None = None,
        keep: bool = False,
        whole_at: tuple[int, ...] = (),
    ) -> Job:
        """The job that trains `config` in this condition, from its newest checkpoint if it has one."""
        context, unfit = self.context, ""
        settings = context.study.settings
        try:
            spec = override(self.condition.spec, {**config, "seed": seed})
            store = store_of(self.condition, spec.data, context.stores, context.others)
        except UserError as error:  # both ends of each domain fit, but not each pair of values
            spec, unfit = self.condition.spec, "; ".join(map(str, error.problems))
            store = context.stores[self.condition.id]
        return Job(
            trial=trial,
            phase=self.name,
            condition=self.condition.id,
            number=number,
            config=config,
            seed=seed,
            spec=spec.model_dump(mode="json"),
            digest="" if unfit else digest(spec),
            split=context.splits[self.condition.id, seed],
            metric=settings.metric,
            mode=settings.mode,
            cpus=settings.cpus_per_trial,
            checkpoint_seconds=settings.checkpoint_seconds,
            repeats=repeats,
            given=given,
            redrawn=redrawn,
            variant=variant,
            keep=keep,
            whole_at=whole_at,
            data=store.digest,
            store=str(store.path),
            unfit=unfit,
            pretraining=shared_pretraining_key(spec),
            pretraining_steps=next(iter(spec.stage_steps().values())),
            resume_from=context.checkpoints.of_earlier(trial),
            plugins=context.study.plugins,
        )


class RepeatPhase(Phase):
    """Runs chosen configs on given seeds. What has ended is not run again, unless it failed.

    What failed is run once more: a machine may have lost it, and a config must not lose for that.
    """

    def __init__(self, context: RunContext, index: int) -> None:
        super().__init__(context, index)
        self.tried_again: set[str] = set()

    def repeat(self, trial: str, config: dict[str, Any], seed: int, **about: Any) -> None:
        """One more job, unless a trial of that name has ended other than by a failure."""
        if self.context.ledger.status(trial) in (OPEN, log.FAILED):
            self.jobs.append(self.job(trial, config, seed, self.planned, **about))
        self.planned += 1

    def ended(self, job: Job, status: str, value: float | None) -> None:
        if status != log.FAILED:
            return
        if job.trial in self.tried_again:
            self.context.tell(f"{job.trial} failed again: it is left out")
            return
        self.tried_again.add(job.trial)
        self.jobs.append(job)
