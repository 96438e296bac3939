"""The search half: one Optuna study per condition is the truth; Ray's searcher only asks it.

`StudySource` draws trials from the studies in turn and tells each study how they ended: COMPLETE,
PRUNED (stopped early, its low-fidelity value never counts as a result) or FAIL.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tune_ssl import records
from tune_ssl.jobs import Job, JobSource, NotPickled, Progress
from tune_ssl.records import Record
from tune_ssl.space import grid
from tune_ssl.spec import StudySpec
from tune_ssl.study import Condition, Study
from tune_ssl.trial import override

STORAGE = records.JOURNAL
STATES = {
    records.FINISHED: TrialState.COMPLETE,
    records.STOPPED: TrialState.PRUNED,
    records.DIVERGED: TrialState.FAIL,
    records.COLLAPSED: TrialState.FAIL,
    records.FAILED: TrialState.FAIL,
}


class RoutingSearcher(NotPickled, Searcher):
    """Ray's view of a JobSource: it asks for the next job until there is none."""

    def __init__(self, source: JobSource) -> None:
        super().__init__(metric="_", mode="max")
        self.source = source

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        job = None
        with self.source.guarded():
            job = self.source.next()
        return job.to_config() if job else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler has told the source already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the studies are on disk, and a resume never unpickles a searcher."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a run is resumed from its studies, not from a searcher's pickle")


class StudySource(JobSource):
    """Draws trials from one Optuna study per condition, the least advanced condition first."""

    phase = records.SEARCH

    def __init__(self, run: Path, study: Study, splits: dict[tuple[str, int], str]) -> None:
        super().__init__(run, study, splits)
        repair_storage(run)
        self.cells = self.make_cells(open_storage(run))
        for cell in self.cells:
            name = cell.condition.id
            self.progress.setdefault(name, Progress(name, 0)).planned += cell.budget
        self._settle()

    def make_cells(self, storage: JournalStorage) -> list[Cell]:
        """One study per condition."""
        conditions = enumerate(self.study.conditions)
        return [Cell(storage, self.study, index, condition) for index, condition in conditions]

    def remaining(self) -> int:
        return sum(cell.open_trials() for cell in self.cells)

    def draw(self) -> Job | None:
        waiting = [cell for cell in self.cells if cell.open_trials()]
        if not waiting:
            return None
        cell = min(waiting, key=lambda c: (not c.orphans, c.asked, c.index))
        trial, values = cell.ask()
        name, seed = cell.trial_name(trial.number), self.study.settings.tuning_seed
        config = {**cell.base, **values}
        return self.job(name, cell.condition, config, seed, trial.number, variant=cell.variant)

    def should_stop(self, job: Job, report: Record) -> bool:
        value = report["result"].get(self.metric)
        if value is None:  # a stage before the one that measures it
            value = report["stand_in"]
        cell = self._cell(job)
        trial = cell.live[job.number]
        if value is None or not math.isfinite(value):
            return False
        if report["evaluation"] not in cell.reported(job.number):  # a retry may repeat itself
            trial.report(value, report["evaluation"])
        return trial.should_prune()

    def ended(self, job: Job, status: str, value: float | None) -> None:
        self._cell(job).tell(job.number, status, value)

    def _cell(self, job: Job) -> Cell:
        wanted = (job.condition, job.variant)
        return next(cell for cell in self.cells if (cell.condition.id, cell.variant) == wanted)

    def _settle(self) -> None:
        """After a crash: tell the studies what the records already know, and count what has ended."""
        ended = records.endings(records.read(self.run / records.TRIALS))
        for cell in self.cells:
            progress = self.progress[cell.condition.id]
            for number in list(cell.orphans):
                event = ended.get(cell.trial_name(number))
                if event:
                    cell.tell(number, event["event"], event["value"])
            for trial in cell.optuna.get_trials(deepcopy=False):
                event = ended.get(cell.trial_name(trial.number))
                if event:
                    self._count(progress, event["event"], event["value"])


class Cell:
    """One condition's Optuna study: its sampler, its pruner, and the trials that are running.

    An ablation's `variant` has a study of its own, over the keys that are `retuned` for it; `base`
    holds the others. Its first trial has the retuned keys' values in `base`.
    """

    def __init__(
        self,
        storage: JournalStorage,
        study: Study,
        index: int,
        condition: Condition,
        variant: str | None = None,
        base: Mapping[str, Any] | None = None,
        retuned: Sequence[str] = (),
    ) -> None:
        self.index, self.condition, self.settings = index, condition, study.settings
        self.variant, self.base = variant, dict(base or {})
        self.domains = {key: study.search[key] for key in retuned} if variant else study.search
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=f"{condition.id} {variant}" if variant else condition.id,
            direction="maximize" if study.settings.mode == "max" else "minimize",
            pruner=build_pruner(study.settings, override(condition.spec, self.base).evaluations()),
            load_if_exists=True,
        )
        trials = self.optuna.get_trials(deepcopy=False)
        # A sampler that starts from the same seed after a resume would repeat its suggestions, and
        # that of a variant those of the search.
        seed = study.settings.tuning_seed + 7919 * index + zlib.crc32((variant or "").encode())
        self.optuna.sampler = build_sampler(study.settings, seed % 2**32, len(trials))
        self.orphans = [t.number for t in trials if t.state == TrialState.RUNNING]
        self.live: dict[int, optuna.Trial] = {
            t.number: optuna.Trial(self.optuna, t._trial_id)
            for t in trials
            if t.state == TrialState.RUNNING
        }
        self.asked = sum(t.state != TrialState.WAITING for t in trials)
        self.budget = study.settings.num_trials
        if study.settings.searcher == "grid":
            points = grid(self.domains, self.budget)
            self.budget = len(points)
            for values in points:  # again after a resume: a crash may have enqueued only some
                self.optuna.enqueue_trial(values, skip_if_exists=True)
        elif variant and set(self.domains) <= set(self.base):
            known = {key: self.base[key] for key in self.domains}
            self.optuna.enqueue_trial(known, skip_if_exists=True)

    def trial_name(self, number: int) -> str:
        row = f"{records.RETUNE}-{self.variant}-" if self.variant else ""
        return f"c{self.index}-{row}t{number:04d}"

    def open_trials(self) -> int:
        """Trials that can still be drawn: orphans of a killed driver, and the rest of the budget."""
        return len(self.orphans) + max(0, self.budget - self.asked)

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        if self.orphans:
            trial = self.live[self.orphans.pop(0)]
        else:
            trial = self.optuna.ask()
            self.asked += 1
            self.live[trial.number] = trial
        return trial, {key: d.suggest(trial, key) for key, d in self.domains.items()}

    def reported(self, number: int) -> set[int]:
        return set(self.optuna.get_trials(deepcopy=False)[number].intermediate_values)

    def tell(self, number: int, status: str, value: float | None) -> None:
        state = STATES[status]
        if state == TrialState.COMPLETE and (value is None or not math.isfinite(value)):
            state = TrialState.FAIL
        final = value if state == TrialState.COMPLETE else None
        trial = self.live.pop(number)
        trial.set_user_attr("status", status)
        trial.set_user_attr("trial", self.trial_name(number))
        self.optuna.tell(number, values=final, state=state)
        if number in self.orphans:
            self.orphans.remove(number)


def open_storage(run: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(run / STORAGE)))


def repair_storage(run: Path) -> None:
    """Drop what a crash tore: half a line at the journal's end, and the lock of a dead process.

    Only for the one driver that holds the run's lock.
    """
    journal = run / STORAGE
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)
    journal.with_name(STORAGE + ".lock").unlink(missing_ok=True)


def build_sampler(settings: StudySpec, seed: int, told: int) -> optuna.samplers.BaseSampler:
    """The sampler of the settings; `told` trials are in the study already."""
    fresh = (seed + told) % 2**32
    if settings.searcher in ("random", "grid"):  # a grid's values are all enqueued
        return optuna.samplers.RandomSampler(seed=fresh)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=fresh, n_startup_trials=max(4, min(10, settings.num_trials // 3))
        ),
        "gp": lambda: optuna.samplers.GPSampler(seed=fresh),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=fresh),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=seed, scramble=True),
    }
    return samplers[settings.sampler]()


def build_pruner(settings: StudySpec, evaluations: int) -> optuna.pruners.BasePruner:
    """Asynchronous successive halving (Li et al. 2020), the median rule, or none; all per condition.

    Resources are evaluations. The pruner's state is in the study, so that it survives the driver.
    """
    grace = max(1, math.ceil(settings.grace_period * evaluations))
    if settings.scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=grace, reduction_factor=settings.reduction_factor
        )
    if settings.scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=grace)
    return optuna.pruners.NopPruner()
