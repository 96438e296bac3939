"""The one reading of a run's records: what began, how it ended, what is missing, chosen, locked and planned.

It needs only the standard library, as the records do.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tune_ssl.records import log
from tune_ssl.records.log import Record

OPEN = "open"  # a trial without an ending: it runs, or was interrupted
COSTS = ("seconds", "waited", "images_seen", "reused")  # of an ending
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
    reopened condition -> the events that took its choice back after test data was opened
    late    trial -> the early ending of one that began again to be trained to its end; what both trainings cost is
            in the ending that counts
    cut     the events of work that a time budget left undone
    exhausted (condition, variant or None) of the searches that found no further config

    A trial ends once. Where it begins again after its end (a failed one is run again, a stopped one is trained to its
    end), it is open until its next ending, and that one counts.
    """

    def __init__(self, events: Iterable[Record] = ()) -> None:
        self.begun: dict[str, Record] = {}
        self.ended: dict[str, Record] = {}
        self.resumed: Counter[str] = Counter()
        self.locked: dict[str, Record] = {}
        self.planned: dict[str, dict[str, Record]] = {}
        self.reopened: dict[str, list[Record]] = {}
        self.cut: list[Record] = []
        self.late: dict[str, Record] = {}
        self.exhausted: set[tuple[str, str | None]] = set()
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
            self._uncut(event)  # it goes on
            before = self.ended.pop(trial, None)
            if before is not None and before["event"] == log.STOPPED:
                self.late[trial] = before
            self.resumed[trial] += kind == log.RESUMED
        elif kind in log.ENDINGS:
            first = self.late.get(trial, {})
            both = {key: (event.get(key) or 0) + n for key in COSTS if (n := first.get(key))}
            self.ended.setdefault(trial, {**event, **both})
        elif kind == log.LOCKED:
            self.locked.setdefault(event["condition"], event)
        elif kind == log.REOPENED:
            self.reopened.setdefault(event["condition"], []).append(event)
            self.locked.pop(event["condition"], None)
        elif kind == log.CUT:
            self._uncut(event)
            self.cut.append(event)
        elif kind == log.EXHAUSTED:
            self.exhausted.add((event["condition"], event.get("variant")))
        elif kind == log.PLANNED:
            self.planned.setdefault(event["condition"], {}).setdefault(event["variant"], event)

    def _uncut(self, event: Record) -> None:
        at = event["condition"], event["phase"]
        self.cut = [c for c in self.cut if (c["condition"], c["phase"]) != at]

    # ---- trials --------------------------------------------------------------------------------

    def trials(self, condition: str, *phases: str) -> Iterator[tuple[str, Record, Record | None]]:
        """(trial, beginning, ending or None) of a condition's trials in those phases, by phase."""
        for phase in phases:
            for trial in self._of.get((condition, phase), ()):
                yield trial, self.begun[trial], self.ended.get(trial)

    def superseded(self, trial: str) -> bool:
        """Whether it confirms a config that was chosen before a reopening, and is not the chosen one now."""
        start = self.begun[trial]
        if start["phase"] != log.CONFIRM or not self.reopened.get(start["condition"]):
            return False
        lock = self.locked.get(start["condition"])
        return lock is None or lock.get("config") != start.get("config")

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
        bad = (e for e in self.ended.values() if e["event"] in log.BAD_ENDINGS or log.was_cut(e))
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
        return self._scores(self.trials(condition, *(phases or TUNING)), mode)

    def _scores(
        self, trials: Iterable[tuple[str, Record, Record | None]], mode: str
    ) -> dict[str, float]:
        found = scores(
            {
                "trial": trial,
                "repeats": start.get("repeats"),
                "status": end and end["event"],
                "value": end and end.get("value"),
            }
            for trial, start, end in trials
        )
        sign = -1 if mode == "max" else 1
        return dict(sorted(found.items(), key=lambda item: (sign * item[1], item[0])))

    def _of_row(self, condition: str, variant: str) -> Iterator[tuple[str, Record, Record | None]]:
        """The trials that retune a row of an ablation, its finalists' repeats among them."""
        for trial, start, end in self.trials(condition, log.RETUNE):
            if start["variant"] == variant:
                yield trial, start, end

    def finalists(
        self, condition: str, mode: str, count: int, variant: str | None = None
    ) -> list[str]:
        """The trials that run again before one is chosen: the best `count` configs, if they are several.

        Of a condition's search, or of a retuned `variant`.
        """
        tuned = self._of_row(condition, variant) if variant else self.trials(condition, log.SEARCH)
        once = ((trial, start, end) for trial, start, end in tuned if not start.get("repeats"))
        distinct: dict[str, str] = {}
        for trial in self._scores(once, mode):
            distinct.setdefault(str(self.begun[trial]["config"]), trial)
        best = list(distinct.values())[:count]
        return best if len(best) > 1 else []

    def repeats(self, condition: str, best: Collection[str]) -> list[Record | None]:
        """The endings (None: it is open) of the finalists' repeats of those trials."""
        return [
            end
            for _, start, end in self.trials(condition, log.FINALIST)
            if start.get("repeats") in best
        ]

    def runners_up(self, condition: str, mode: str, count: int) -> list[str]:
        """The search trials to be finished where fewer than `count` are: stopped ones, the furthest and best first."""
        finished = len(self.scores(condition, mode, log.SEARCH))
        sign = -1 if mode == "max" else 1
        stopped = [
            (-(end["step"] or 0), math.inf if (v := end["value"]) is None else sign * v, trial)
            for trial, _, end in self.trials(condition, log.SEARCH)
            if end is not None and end["event"] == log.STOPPED
            if not log.was_cut(end)
        ]
        return [trial for *_, trial in sorted(stopped)[: max(0, count - finished)]]

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
            for trial, _, end in self.trials(condition, log.CONFIRM)
            if end is not None and end["event"] == log.FINISHED and end["value"] is not None
            if not self.superseded(trial)
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
        """The config of a retuned row: chosen by the rule that chose the reference's."""
        found = self._scores(self._of_row(condition, variant), mode)
        return self.begun[next(iter(found))]["config"] if found else None

    def confirmed_seeds(self, condition: str, config: Mapping[str, Any]) -> set[int]:
        """The seeds on which a confirmation of that very config has ended."""
        return {
            start["seed"]
            for trial, start, end in self.trials(condition, log.CONFIRM)
            if end is not None and end["event"] != log.FAILED and start["config"] == config
            if not self.superseded(trial)
        }

    def ablates_old_choice(self, condition: str) -> bool:
        """Whether the planned rows take apart another config than the one that is chosen now."""
        reference = self.planned.get(condition, {}).get(log.REFERENCE)
        lock = self.locked.get(condition)
        return bool(reference and lock and reference.get("config") != lock.get("config"))

    def row_has_begun(self, condition: str, variant: str) -> bool:
        """Whether a row of an ablation is being trained: what was tuned for it stands."""
        return any(s["variant"] == variant for _, s, _ in self.trials(condition, log.ABLATE))


def scores(trials: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """search trial -> what a condition's config is chosen by, for each trial that may be chosen.

    `trials` are one condition's, as mappings with trial, status, value and (of finalists) repeats. A candidate has
    finished with a finite value. Where the best ones were run again on further tuning seeds, only those count whose
    repeats all finished, by their mean over all seeds.
    """
    own: dict[str, float] = {}
    repeats: dict[str, list[float | None]] = {}
    for trial in trials:
        value = trial["value"] if trial["status"] == log.FINISHED else None
        value = value if value is not None and math.isfinite(value) else None
        if trial["repeats"]:
            repeats.setdefault(trial["repeats"], []).append(value)
        elif value is not None:
            own[trial["trial"]] = value
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
