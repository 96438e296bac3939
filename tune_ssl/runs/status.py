"""How far a run is and what its conditions would be chosen by: its plan and its trials, without a study."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import ledger, log
from tune_ssl.records.log import Record
from tune_ssl.study.domains import domain, trials_of

CONFIRMED, FINALISTS = "confirmed", "repeated finalists"
OPEN = "open"  # a trial without an ending: it runs, or was interrupted


class Best(NamedTuple):
    """What a condition's config is, or would now be, chosen by."""

    trial: str
    value: float
    locked: bool


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Named(_Part):
    name: str


class _Condition(_Part):
    id: str


class _Settings(_Part):
    num_trials: int
    searcher: str = "optuna"
    finalists: int = 1
    finalist_seeds: list[int] = []
    seeds: list[int]


class _Study(_Part):
    search: dict[str, Any]
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


class Stage(NamedTuple):
    """A part of a run: what it does, what it has done then, and how many of its trials have ended."""

    doing: str
    done: str
    ended: int
    planned: int


def status(book: Book, running: bool | None) -> str:
    """In words; whether somebody works on it is what the driver's lock says, and not guessed."""
    stages = book.stages()
    unfinished = next((stage for stage in stages if stage.ended < stage.planned), None)
    if running:
        if unfinished is None:  # between two stages, or at the report
            return "running"
        return f"{unfinished.doing} {unfinished.ended} of {unfinished.planned}"
    prefix = "interrupted: " if running is False else "lock cannot be read: "
    if unfinished is not None:
        return f"{prefix}{unfinished.done} {unfinished.ended} of {unfinished.planned}"
    last = stages[-1].done
    locked, choosable = set(book.locks), {c for c, scores in book.scores.items() if scores}
    if last == FINALISTS or (last == CONFIRMED and choosable - locked):
        return f"{prefix}{CONFIRMED} {len(locked)} of {len(choosable | locked)} conditions"
    return last if running is False else prefix + last


class Book:
    """The trials of a run by phase and condition, and what is left of its plan."""

    def __init__(self, about: About, events: list[Record]) -> None:
        self.about, self.ended = about, ledger.endings(events)
        self.starts: dict[str, Record] = {}
        self.locks: dict[str, Record] = {}
        self.rows: dict[tuple[str, str], Record] = {}
        for event in events:
            if event["event"] in log.BEGINNINGS:
                self.starts.setdefault(event["trial"], event)
            elif event["event"] == log.LOCKED:
                self.locks.setdefault(event["condition"], event)
            elif event["event"] == log.PLANNED:
                self.rows.setdefault((event["condition"], event["variant"]), event)
        self.scores = {condition.id: self._scores(condition.id) for condition in about.conditions}

    def counts(self) -> dict[str, dict[str, int]]:
        """phase -> ending -> trials"""
        found: dict[str, Counter[str]] = {}
        for trial, start in self.starts.items():
            ending = self.ended[trial]["event"] if trial in self.ended else OPEN
            found.setdefault(start["phase"], Counter())[ending] += 1
        return {phase: dict(counter) for phase, counter in found.items()}

    def best(self) -> dict[str, Best | None]:
        """condition -> the locked trial, else the one that the selection rule would take now."""
        choose = max if self.about.mode == "max" else min
        found: dict[str, Best | None] = {}
        for condition, scores in self.scores.items():
            if condition in self.locks:
                lock = self.locks[condition]
                value = math.nan if lock["value"] is None else lock["value"]
                found[condition] = Best(lock["trial"], value, True)
            elif scores:
                trial = choose(sorted(scores), key=scores.__getitem__)
                found[condition] = Best(trial, scores[trial], False)
            else:
                found[condition] = None
        return found

    def stages(self) -> list[Stage]:
        """The parts that were begun, in order; the search unless the run is an ablation alone."""
        settings = self.about.study.study
        stages = []
        searched = self._ended(log.SEARCH)
        if searched or self._open(log.SEARCH) or not self.rows:
            planned = self._per_condition() * len(self.scores)
            stages.append(Stage("searching", "searched", searched, planned))
        if self._begun(log.FINALIST):
            each = [min(settings.finalists, n) for n in self._finished().values()]
            planned = sum(n for n in each if n > 1) * len(settings.finalist_seeds)
            finalists = self._ended(log.FINALIST)
            stages.append(Stage("repeating finalists", FINALISTS, finalists, planned))
        if self.locks:
            planned = len(self.locks) * len(settings.seeds)
            confirmed = self._ended(log.CONFIRM)
            stages.append(Stage("confirming", CONFIRMED, confirmed, planned))
        if any(row["retune"] for row in self.rows.values()):
            planned = sum(bool(row["retune"]) for row in self.rows.values()) * settings.num_trials
            stages.append(Stage("retuning", "retuned", self._ended(log.RETUNE), planned))
        if self.rows:
            planned = sum(self._row_trials(*key) for key in self.rows)
            stages.append(Stage("ablating", "ablated", self._ended(log.ABLATE), planned))
        return stages

    def _scores(self, condition: str) -> dict[str, float]:
        mine = {t: s for t, s in self.starts.items() if s["condition"] == condition}
        return ledger.tuned(mine, self.ended)

    def _begun(self, phase: str) -> bool:
        return any(start["phase"] == phase for start in self.starts.values())

    def _ended(self, phase: str) -> int:
        return sum(s["phase"] == phase and t in self.ended for t, s in self.starts.items())

    def _open(self, phase: str) -> int:
        return sum(s["phase"] == phase and t not in self.ended for t, s in self.starts.items())

    def _finished(self) -> dict[str, int]:
        """condition -> its finished search trials"""
        found = dict.fromkeys(self.scores, 0)
        for trial, start in self.starts.items():
            ending = self.ended.get(trial, {})
            search = start["phase"] == log.SEARCH and start["condition"] in found
            if search and ending.get("event") == log.FINISHED:
                found[start["condition"]] += ending.get("value") is not None
        return found

    def _per_condition(self) -> int:
        """Search trials of each condition."""
        settings, search = self.about.study.study, self.about.study.search
        domains = {key: domain(leaf) for key, leaf in search.items()}
        return trials_of(settings.searcher, domains, settings.num_trials)

    def _row_trials(self, condition: str, variant: str) -> int:
        """Trials of an ablation's row: what is confirmed of the reference is not run again."""
        seeds = self.about.study.study.seeds
        if variant != log.REFERENCE:
            return len(seeds)
        confirmed = {
            start["seed"]
            for trial, start in self.starts.items()
            if start["phase"] == log.CONFIRM and start["condition"] == condition
            if trial in self.ended and start["config"] == self.rows[condition, variant]["config"]
        }
        return len(set(seeds) - confirmed)


def book_of(run: Path) -> Book:
    """The trials of a run folder, by its own records. UserError if it is none."""
    return Book(_about(run), _events(run))


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


def _events(run: Path) -> list[Record]:
    path = run / log.TRIALS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a torn last line is what a run that goes on may have
        try:
            events = log.read(path)
        except OSError as error:
            raise UserError(Problem(f"cannot be read: {error.strerror}", str(path))) from None
    for event in events:
        if event.get("schema") != log.SCHEMA:
            text = f"is {event.get('schema')}, but this tune-ssl reads {log.SCHEMA}"
            raise UserError(Problem(text, "schema", str(path)))
        for key in ("event", "phase", "trial", "condition"):
            if key not in event:
                raise UserError(Problem(f"has a record without {key!r}", str(path)))
    return events


def endings(trials: dict[str, dict[str, int]]) -> list[str]:
    """`48 finished`, `3 stopped early`: over all phases."""
    total: Counter[str] = Counter()
    for counts in trials.values():
        total.update(counts)
    order = (*log.ENDINGS, OPEN)
    return [f"{total[e]} {e.replace('_', ' ')}" for e in order if total[e]]
