"""The search half: one Optuna study per condition is the truth; Ray's searcher only asks it.

`StudySource` draws trials from the studies in turn and tells each study how they ended: COMPLETE,
PRUNED (stopped early, its low-fidelity value never counts as a result) or FAIL.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.search.rebuild import Book, Rebuilder, Recorded, state_of
from tune_ssl.search.samplers import build_pruner, build_sampler, grace_of
from tune_ssl.search.storage import open_storage, study_name, study_prefix
from tune_ssl.study.domains import grid
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import override
from tune_ssl.tuning.job import Job, NotPickled, Progress
from tune_ssl.tuning.phase import JobSource


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

    phase = log.SEARCH

    def __init__(self, run: Path, study: Study, splits: dict[tuple[str, int], str]) -> None:
        super().__init__(run, study, splits)
        self.prefix = study_prefix(run, study.settings)
        storage = open_storage(run, study.settings, lambda line: self.tell(line))
        self.cells = self.make_cells(storage)
        self.by_name = {(cell.condition.id, cell.variant): cell for cell in self.cells}
        book = Book(run, self.phase)
        rebuilt = sum(cell.load(run, book) for cell in self.cells)
        if rebuilt:
            text = f"the Optuna storage lacked {rebuilt} trials of {run.name}: made again from its records"
            self.tell(text)
        for cell in self.cells:
            name = cell.condition.id
            self.progress.setdefault(name, Progress(name, 0)).planned += cell.budget
        self._settle(book)

    def make_cells(self, storage: BaseStorage) -> list[Cell]:
        """One study per condition."""
        conditions = enumerate(self.study.conditions)
        return [Cell(storage, self.prefix, self.study, i, condition) for i, condition in conditions]

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
        if value is None or not math.isfinite(value):
            return False
        return self._cell(job).report(job.number, value, report["evaluation"])

    def ended(self, job: Job, status: str, value: float | None) -> None:
        self._cell(job).tell(job.number, status, value)

    def _cell(self, job: Job) -> Cell:
        return self.by_name[job.condition, job.variant]

    def _settle(self, book: Book) -> None:
        """After a crash: tell the studies what the records already know, and count what has ended."""
        for cell in self.cells:
            for number, known in cell.known(book).items():
                if event := known.end:
                    if number in cell.orphans:
                        cell.tell(number, event["event"], event["value"])
                    name = cell.condition.id
                    self._count(self.progress[name], event["event"], event["value"])


class Cell:
    """One condition's Optuna study: its sampler, its pruner, and the trials that are running.

    An ablation's `variant` has a study of its own, over the keys that are `retuned` for it; `base`
    holds the others. Its first trial has the retuned keys' values in `base`. `load` comes before all else.
    """

    def __init__(
        self,
        storage: BaseStorage,
        prefix: str,
        study: Study,
        index: int,
        condition: Condition,
        variant: str | None = None,
        base: Mapping[str, Any] | None = None,
        retuned: Sequence[str] = (),
    ) -> None:
        self.storage, self.index, self.condition = storage, index, condition
        self.settings, self.variant, self.base = study.settings, variant, dict(base or {})
        self.domains = {key: study.search[key] for key in retuned} if variant else study.search
        self.spec = override(condition.spec, self.base)
        self.name = study_name(prefix, f"{condition.id} {variant}" if variant else condition.id)
        self.budget = study.settings.num_trials
        self.points: list[dict[str, Any]] = []  # what the first trials are to be, by number
        if study.settings.searcher == "grid":
            self.points = grid(self.domains, self.budget)
            self.budget = len(self.points)
        elif variant and set(self.domains) <= set(self.base):
            self.points = [{key: self.base[key] for key in self.domains}]
        self.optuna = self._create()
        self.orphans: list[int] = []
        self.live: dict[int, optuna.Trial] = {}
        self.reported: dict[int, set[int]] = {}
        self.asked = 0

    def _create(self) -> optuna.Study:
        return optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            direction="maximize" if self.settings.mode == "max" else "minimize",
            pruner=build_pruner(self.settings, self.spec.evaluations()),
            load_if_exists=True,
        )

    def load(self, run: Path, book: Book) -> int:
        """Bring the study up to the records; returns how many trials it lacked or had otherwise."""
        trials, rebuilt = self._rebuild(run, book, self.known(book))
        begun = self.optuna.user_attrs.get("rebuilt", 0)
        if rebuilt:
            begun = max(begun, len(trials))
            self.optuna.set_user_attr("rebuilt", begun)
        for values in self.points[len(trials) :]:  # a crash may have enqueued only some
            self.optuna.enqueue_trial(values)
        # A sampler that starts from the same seed after a resume would repeat its suggestions, and
        # that of a variant those of the search.
        seed = self.settings.tuning_seed + 7919 * self.index
        seed = (seed + zlib.crc32((self.variant or "").encode())) % 2**32
        self.optuna.sampler = build_sampler(self.settings, seed, len(trials), begun)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                self.orphans.append(trial.number)
                self._take(optuna.Trial(self.optuna, trial._trial_id), trial.intermediate_values)
        self.asked = sum(trial.state != TrialState.WAITING for trial in trials)
        return rebuilt

    def _rebuild(
        self, run: Path, book: Book, known: dict[int, Recorded]
    ) -> tuple[list[FrozenTrial], int]:
        """The study's trials, once nothing of the records is missing there, and how many were made again."""
        grace, factor = (
            grace_of(self.settings, self.spec.evaluations()),
            self.settings.reduction_factor,
        )
        asha = self.settings.scheduler == "asha"
        rungs = [grace * factor**i for i in range(20)] if asha else []
        rebuilder = Rebuilder(run, self.domains, self.points, rungs)
        trials = self.optuna.get_trials(deepcopy=False)
        if not all(rebuilder.agrees(t, known[t.number]) for t in trials if t.number in known):
            optuna.delete_study(study_name=self.name, storage=self.storage)
            self.optuna, trials = self._create(), []
        have = len(trials)
        recorded = (known[t.number] for t in trials if t.number in known)
        open_trials = [k for k in recorded if not trials[k.number].state.is_finished()]
        lacking = {number: known.get(number) for number in range(have, max(known, default=-1) + 1)}
        if not open_trials and not lacking:
            return trials, 0
        stand_ins = {s.name: f"val/{s.stand_in}" for s in self.spec.stages() if s.stand_in}
        sign = 1 if self.settings.mode == "max" else -1
        wanted = [*open_trials, *(k for k in lacking.values() if k)]
        book.read_values(wanted, self.settings.metric, stand_ins, sign)
        behind = sum(rebuilder.behind(trials[k.number], k) for k in open_trials)
        for k in open_trials:
            rebuilder.catch_up(self.optuna, trials[k.number], k)
        for number, one in lacking.items():
            rebuilder.add(self.optuna, number, one)
        return self.optuna.get_trials(deepcopy=False), len(lacking) + behind

    def known(self, book: Book) -> dict[int, Recorded]:
        """number -> what the records say of the trial."""
        return book.trials(self.trial_name(0).removesuffix("0000"))

    def trial_name(self, number: int) -> str:
        row = f"{log.RETUNE}-{self.variant}-" if self.variant else ""
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
            self._take(trial, ())
        return trial, {key: d.suggest(trial, key) for key, d in self.domains.items()}

    def report(self, number: int, value: float, evaluation: int) -> bool:
        """Whether the pruner ends the trial; a retry may report again what was reported."""
        if evaluation not in self.reported[number]:
            self.live[number].report(value, evaluation)
            self.reported[number].add(evaluation)
        return self.live[number].should_prune()

    def tell(self, number: int, status: str, value: float | None) -> None:
        state, final = state_of(status, value)
        trial = self.live[number]
        if state == TrialState.FAIL:
            trial.set_user_attr("status", status)
        self.optuna.tell(trial, values=final, state=state)
        del self.live[number], self.reported[number]
        if number in self.orphans:
            self.orphans.remove(number)

    def _take(self, trial: optuna.Trial, reported: Iterable[int]) -> None:
        self.live[trial.number] = trial
        self.reported[trial.number] = set(reported)
