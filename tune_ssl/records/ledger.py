"""The one reading of a run's records: what began, how it ended, what is missing, chosen, locked and planned.

It needs only the standard library, as the records do.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tune_ssl.records import log
from tune_ssl.records.log import Record

OPEN = "open"  # a trial without an ending: it runs, or was interrupted
TUNING = (log.SEARCH, log.FINALIST)  # the phases whose trials a config is chosen by


class Best(NamedTuple):
    """What a condition's config is, or would now be, chosen by. `value` is NaN where none was recorded."""

    trial: str
    value: float
    locked: bool


class Ledger:
    """A run's events, read once and kept up to date by `add`.

    begun   trial -> the event that first began it, in the order of beginning
    ended   trial -> the ending that counts
    resumed trial -> how often it was taken up again
    locked  condition -> the event that locked its config
    planned condition -> variant -> the row of an ablation, the reference first

    A trial ends once. Where it begins again after its end (a failed finalist or seed is run again), it
    is open until its next ending, and that one counts.
    """

    def __init__(self, events: Iterable[Record] = ()) -> None:
        self.begun: dict[str, Record] = {}
        self.ended: dict[str, Record] = {}
        self.resumed: Counter[str] = Counter()
        self.locked: dict[str, Record] = {}
        self.planned: dict[str, dict[str, Record]] = {}
        self.first: Record | None = None  # the first event of all
        self._of: dict[tuple[str, str], list[str]] = {}  # (condition, phase) -> trials
        for event in events:
            self.add(event)

    @classmethod
    def read(cls, run: Path) -> Ledger:
        """That of a run folder. UserError where its records are not what a run writes."""
        return cls(log.scan(run / log.TRIALS))

    @classmethod
    def glance(cls, run: Path) -> Ledger:
        """`read` without a warning: a torn last line is what a run that goes on may have."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls.read(run)

    def add(self, event: Record) -> None:
        kind, trial = event["event"], event["trial"]
        self.first = self.first or event
        if kind in log.BEGINNINGS:
            if trial not in self.begun:
                self.begun[trial] = event
                self._of.setdefault((event["condition"], event["phase"]), []).append(trial)
            self.ended.pop(trial, None)
            self.resumed[trial] += kind == log.RESUMED
        elif kind in log.ENDINGS:
            self.ended.setdefault(trial, event)
        elif kind == log.LOCKED:
            self.locked.setdefault(event["condition"], event)
        elif kind == log.PLANNED:
            self.planned.setdefault(event["condition"], {}).setdefault(event["variant"], event)

    # ---- trials --------------------------------------------------------------------------------

    def trials(self, condition: str, *phases: str) -> Iterator[tuple[str, Record, Record | None]]:
        """(trial, beginning, ending or None) of a condition's trials in those phases, by phase."""
        for phase in phases:
            for trial in self._of.get((condition, phase), ()):
                yield trial, self.begun[trial], self.ended.get(trial)

    def status(self, trial: str) -> str:
        """How it ended, or `open`."""
        return str(self.ended[trial]["event"]) if trial in self.ended else OPEN

    def open_trials(self) -> list[str]:
        return [trial for trial in self.begun if trial not in self.ended]

    @property
    def only_ablates(self) -> bool:
        """Whether the run began as the ablation of a study file: a plan came before any trial."""
        return self.first is not None and self.first["event"] == log.PLANNED

    def has(self, phase: str) -> bool:
        """Whether any trial of the phase has begun."""
        return any(of == phase for _, of in self._of)

    def counts(self) -> dict[str, dict[str, int]]:
        """phase -> ending, or `open` -> trials"""
        found: dict[str, Counter[str]] = {}
        for trial, start in self.begun.items():
            found.setdefault(start["phase"], Counter())[self.status(trial)] += 1
        return {phase: dict(counter) for phase, counter in found.items()}

    def first_failure(self, *phases: str) -> str:
        """`c0-t0000 failed: REASON` of the first bad ending in those phases; empty if there is none."""
        bad = (e for e in self.ended.values() if e["event"] in log.BAD_ENDINGS)
        event = min((e for e in bad if e["phase"] in phases), key=lambda e: e["time"], default=None)
        if event is None:
            return ""
        reason = (event.get("reason") or "").strip().splitlines() or ["no reason is recorded"]
        return f"{event['trial']} {event['event']}: {reason[-1]}"

    # ---- what is chosen ------------------------------------------------------------------------

    def scores(self, condition: str, mode: str, *phases: str) -> dict[str, float]:
        """search trial -> what a condition's config is chosen by, the best first, the earlier of equals.

        All trials that may be chosen: see `scores` below. `phases` are those that count, TUNING if none.
        """
        found = scores(
            {
                "trial": trial,
                "phase": start["phase"],
                "repeats": start.get("repeats"),
                "status": end and end["event"],
                "value": end and end.get("value"),
            }
            for trial, start, end in self.trials(condition, *(phases or TUNING))
        )
        sign = -1 if mode == "max" else 1
        return dict(sorted(found.items(), key=lambda item: (sign * item[1], item[0])))

    def finalists(self, condition: str, mode: str, count: int) -> list[str]:
        """The search trials that run again before one is chosen: the best `count`, if they are several."""
        best = list(self.scores(condition, mode, log.SEARCH))[:count]
        return best if len(best) > 1 else []

    def best(self, condition: str, mode: str) -> Best | None:
        """The locked trial, else the one that the selection rule would take now."""
        if lock := self.locked.get(condition):
            value = math.nan if lock["value"] is None else lock["value"]
            return Best(lock["trial"], value, True)
        found = self.scores(condition, mode)
        return Best(*next(iter(found.items())), False) if found else None

    def confirmed(self, condition: str) -> float | None:
        """The mean value on validation images over the fresh seeds of a confirmation; None where there is none."""
        values = [
            end["value"]
            for _, _, end in self.trials(condition, log.CONFIRM)
            if end is not None and end["event"] == log.FINISHED and end["value"] is not None
        ]
        return sum(values) / len(values) if values else None

    def best_of(self, conditions: Sequence[str], mode: str) -> str | None:
        """Of the conditions of several methods in one cell, the one that wins on validation images.

        By the means over fresh seeds, as far as any is confirmed; else by what the configs are chosen by.
        """
        values = {c: value for c in conditions if (value := self.confirmed(c)) is not None}
        if not values:
            bests = {c: self.best(c, mode) for c in conditions}
            values = {c: best.value for c, best in bests.items() if best is not None}
        choose = max if mode == "max" else min
        return choose(values, key=values.__getitem__, default=None)

    def retuned(self, condition: str, variant: str, mode: str) -> dict[str, Any] | None:
        """The config of a retuned row's best finished trial, the earlier of equals."""
        sign = -1 if mode == "max" else 1
        finished = [
            (sign * end["value"], start["number"], start["config"])
            for _, start, end in self.trials(condition, log.RETUNE)
            if start["variant"] == variant and end and end["event"] == log.FINISHED
            if end["value"] is not None
        ]
        return min(finished, key=lambda item: item[:2])[2] if finished else None

    def confirmed_seeds(self, condition: str, config: Mapping[str, Any]) -> set[int]:
        """The seeds on which a confirmation of that very config has ended."""
        return {
            start["seed"]
            for _, start, end in self.trials(condition, log.CONFIRM)
            if end is not None and end["event"] != log.FAILED and start["config"] == config
        }


def scores(trials: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """search trial -> what a condition's config is chosen by, for each trial that may be chosen.

    `trials` are one condition's, as mappings with phase, trial, status, value and (of finalists)
    repeats. A candidate has finished with a finite value. Where the best ones were run again on
    further tuning seeds, only those count whose repeats all finished, by their mean over all seeds.
    """
    own: dict[str, float] = {}
    repeats: dict[str, list[float | None]] = {}
    for trial in trials:
        value = trial["value"] if trial["status"] == log.FINISHED else None
        value = value if value is not None and math.isfinite(value) else None
        if trial["phase"] == log.SEARCH and value is not None:
            own[trial["trial"]] = value
        elif trial["phase"] == log.FINALIST:
            repeats.setdefault(trial["repeats"], []).append(value)
    means = {
        trial: sum([own[trial], *values]) / (1 + len(values))  # type: ignore[list-item]
        for trial, values in repeats.items()
        if trial in own and None not in values
    }
    return means or own


def latest_reports(reports: Iterable[Record]) -> list[Record]:
    """One report per (trial, stage, step): the last one written, in the order of first writing."""
    return _latest(reports, "trial", "stage", "step")


def latest_galleries(galleries: Iterable[Record]) -> list[Record]:
    """One gallery per (trial, name): the last one written, in the order of first writing."""
    return _latest(galleries, "trial", "name")


def _latest(found: Iterable[Record], *keys: str) -> list[Record]:
    kept: dict[Sequence[Any], Record] = {}
    for record in found:
        kept[tuple(record[key] for key in keys)] = record
    return list(kept.values())
