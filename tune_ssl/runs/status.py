"""How far a run is: its plan and its trials, as study.yaml and the records say, without a checked study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.domain import alone
from tune_ssl.records.ledger import OPEN, Best, Ledger
from tune_ssl.storage.checkpoints import Checkpoints
from tune_ssl.study.domains import domain, trials_of

CONFIRMED, FINALISTS = "confirmed", "repeated finalists"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Named(_Part):
    name: str


class _Condition(_Part):
    id: str
    method: str | None = None  # of a comparison


class _Entry(_Part):
    search: dict[str, Any] = {}


class _Settings(_Part):
    num_trials: int
    searcher: str = "optuna"
    finalists: int = 1
    finalist_seeds: list[int] = []
    seeds: list[int]


class _Study(_Part):
    search: dict[str, Any] = {}
    compare: dict[str, _Entry] = {}
    study: _Settings


class About(_Part):
    """The part of study.yaml that a list needs."""

    schema_version: Literal[1] = Field(alias="schema")
    method: str
    created: str
    metric: str
    mode: Literal["max", "min"]
    dataset: _Named
    conditions: list[_Condition]
    study: _Study


class Part(NamedTuple):
    """A part of a run: what it does, what it has done then, and how many of its trials have ended."""

    doing: str
    done: str
    ended: int
    planned: int


class RunStatus:
    """The parts of a run that were begun, and what is left of each."""

    def __init__(self, about: About, ledger: Ledger) -> None:
        self.about, self.ledger = about, ledger
        self.conditions = [condition.id for condition in about.conditions]

    @classmethod
    def read(cls, run: Path, ledger: Ledger | None = None) -> RunStatus:
        """That of a run folder, whose records may have been read already. UserError if it is none."""
        return cls(_about(run), ledger or Ledger.glance(run))

    def best(self) -> dict[str, Best | None]:
        """condition -> the locked trial, else the one that the selection rule would take now."""
        return {c: self.ledger.best(c, self.about.mode) for c in self.conditions}

    def in_words(self, running: bool | None) -> str:
        """Whether somebody works on it is what the driver's lock says, and not guessed."""
        parts = self.parts()
        unfinished = next((part for part in parts if part.ended < part.planned), None)
        if running:
            if unfinished is None:  # between two parts, or at the report
                return "running"
            return f"{unfinished.doing} {unfinished.ended} of {unfinished.planned}"
        prefix = "interrupted: " if running is False else "lock cannot be read: "
        if unfinished is not None:
            return f"{prefix}{unfinished.done} {unfinished.ended} of {unfinished.planned}"
        last, locked = parts[-1].done, set(self.ledger.locked)
        choosable = {c for c in self.conditions if self.ledger.scores(c, self.about.mode)}
        if last == FINALISTS or (last == CONFIRMED and choosable - locked):
            return f"{prefix}{CONFIRMED} {len(locked)} of {len(choosable | locked)} conditions"
        return last if running is False else prefix + last

    def parts(self) -> list[Part]:
        """The parts that were begun, in order; the search unless the run is an ablation alone."""
        settings, ledger, mode = self.about.study.study, self.ledger, self.about.mode
        counts = ledger.counts()
        ended = {
            phase: sum(n for status, n in own.items() if status != OPEN)
            for phase, own in counts.items()
        }
        rows = [(c, name, row) for c, own in ledger.planned.items() for name, row in own.items()]
        parts = []
        if log.SEARCH in counts or not rows:
            planned = sum(map(self._searched, self.about.conditions))
            parts.append(Part("searching", "searched", ended.get(log.SEARCH, 0), planned))
        if log.FINALIST in counts:
            best = {c: ledger.finalists(c, mode, settings.finalists) for c in self.conditions}
            planned = sum(map(len, best.values())) * len(settings.finalist_seeds)
            ends = [end for c, own in best.items() for end in ledger.repeats(c, own)]
            done = sum(end is not None for end in ends)
            parts.append(Part("repeating finalists", FINALISTS, done, planned))
        if ledger.locked:
            planned = len(ledger.locked) * len(settings.seeds)
            done = self._ended(log.CONFIRM, lambda trial, _: not ledger.superseded(trial))
            parts.append(Part("confirming", CONFIRMED, done, planned))
        if retuned := [(c, name, row) for c, name, row in rows if row["retune"]]:
            planned = sum(self._retuned(*row) for row in retuned)
            tuned = self._ended(log.RETUNE, lambda _, start: not start.get("repeats"))
            parts.append(Part("retuning", "retuned", tuned, planned))
        if rows:
            planned = sum(self._trials_of_row(*row) for row in rows)
            parts.append(Part("ablating", "ablated", ended.get(log.ABLATE, 0), planned))
        return parts

    def _ended(self, phase: str, counts: Callable[[str, log.Record], bool]) -> int:
        """Trials of a phase that have ended, of those that count."""
        return sum(
            end is not None and counts(trial, start)
            for condition in self.conditions
            for trial, start, end in self.ledger.trials(condition, phase)
        )

    def _retuned(self, condition: str, name: str, row: log.Record) -> int:
        """Trials that tune a row of an ablation: once it is being trained, those that there are."""
        own = (s for _, s, _ in self.ledger.trials(condition, log.RETUNE) if s["variant"] == name)
        begun = sum(not start.get("repeats") for start in own)
        over = (condition, name) in self.ledger.exhausted
        if over or self.ledger.row_has_begun(condition, name):
            return begun
        method = next(c.method for c in self.about.conditions if c.id == condition)
        leaves = self._leaves(method)
        domains = alone({k: domain(leaf) for k, leaf in leaves.items()}, row["retune"])
        settings = self.about.study.study
        return trials_of(settings.searcher, domains, settings.num_trials)

    def _leaves(self, method: str | None) -> dict[str, Any]:
        study = self.about.study
        return study.compare[method].search if method else study.search

    def _searched(self, condition: _Condition) -> int:
        """Trials of a condition's search: of one that found no further config those that it began."""
        if (condition.id, None) in self.ledger.exhausted:
            return sum(1 for _ in self.ledger.trials(condition.id, log.SEARCH))
        settings = self.about.study.study
        domains = {key: domain(leaf) for key, leaf in self._leaves(condition.method).items()}
        return trials_of(settings.searcher, domains, settings.num_trials)

    def _trials_of_row(self, condition: str, name: str, row: log.Record) -> int:
        """Of the reference, what is confirmed is not run again."""
        seeds = set(self.about.study.study.seeds)
        if name != log.REFERENCE:
            return len(seeds)
        return len(seeds - self.ledger.confirmed_seeds(condition, row["config"]))


def what_was_found(run: Path, ledger: Ledger, storage: str | None = None) -> list[str]:
    """How far each part is, how its trials ended, and how those go on that have not ended."""
    status = RunStatus.read(run, ledger)
    done = [f"{part.done} {part.ended} of {part.planned}" for part in status.parts()]
    how = [line for line in endings(ledger.counts()) if not line.endswith(f" {OPEN}")]
    lines = [f"{run.name}: {', '.join(done)}" + (f" ({', '.join(how)})" if how else "")]
    if running := ledger.open_trials():
        checkpoints = Checkpoints(run, storage)
        saved = sum(bool(checkpoints.of_earlier(trial)) for trial in running)
        ways = [f"{saved} go on from a checkpoint"] if saved else []
        ways += [f"{len(running) - saved} begin again"] if saved < len(running) else []
        were = "1 trial was" if len(running) == 1 else f"{len(running)} trials were"
        lines.append(f"{run.name}: {were} running: {', '.join(ways)}")
    if torn := sum(_torn(run / name) for name in (log.TRIALS, log.HISTORY)):
        lines.append(f"{run.name}: {torn} torn lines of its records are dropped")
    return lines


def endings(trials: dict[str, dict[str, int]]) -> list[str]:
    """`48 finished`, `3 stopped early`: over all phases."""
    total: Counter[str] = Counter()
    for counts in trials.values():
        total.update(counts)
    return [f"{total[e]} {e.replace('_', ' ')}" for e in (*log.ENDINGS, OPEN) if total[e]]


def _torn(path: Path) -> bool:
    """Whether a crash cut the last line."""
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except OSError:
        return False


def _about(run: Path) -> About:
    path = run / log.STUDY
    if not path.exists():
        raise UserError(Problem(f"has no {log.STUDY}", str(run)))
    data = read_yaml(path).data
    try:
        return About.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(Problem(f"is wrong: {first['msg']}", key, str(path))) from None
