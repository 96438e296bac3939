"""What a run is doing now, for `tune-ssl watch`: read from its records as they grow, each line once.

How far the run is, the ledger and `RunStatus` say, of the run and in the same way of each condition. What is
worked out here is how long the rest will take, and which points the curves have.
"""

from __future__ import annotations

import math
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError, printable
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.ledger import Best, Ledger
from tune_ssl.records.log import Record
from tune_ssl.runs.status import About, Part, RunStatus
from tune_ssl.study.domains import domain, repeats_of
from tune_ssl.viewers.pace import Pace, Span, finishes
from tune_ssl.viewers.tail import Tail, parsed

RUNNING, WAITING, FINISHED = "running", "waiting", "finished"
STOPPED, UNKNOWN, GONE, BROKEN = "stopped", "unknown", "gone", "broken"
PHASE_OF = {
    "searching": log.SEARCH,
    "repeating finalists": log.FINALIST,
    "confirming": log.CONFIRM,
    "retuning": log.RETUNE,
    "ablating": log.ABLATE,
}
NOTHING = Part("nothing to do", "nothing to do", 0, 0)
CURVES = ("loss/total", "diag/pseudo_label_accuracy", "diag/mask_rate")  # after the study's metric
DRAWN = 16  # trials that have curves at once
KEPT = 4  # ended trials whose curves stay
LISTED = 15  # ended trials that are listed
POINTS = 150  # of a curve, as it is sent
MOST = 8 * POINTS  # of a curve, as it is kept
_TRIAL = re.compile(rb'"trial": ?"([^"\\]*)"')


class Curves:
    """The points of the trials that run: trial -> key -> stage -> step -> value."""

    def __init__(self) -> None:
        self.points: dict[str, dict[str, dict[str, dict[float, float]]]] = {}

    def add(self, report: Record, keys: Iterable[str]) -> None:
        own = self.points.setdefault(report["trial"], {})
        for key in keys:
            value = report["metrics"].get(key)
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            steps = own.setdefault(key, {}).setdefault(report["stage"], {})
            steps[report["step"]] = value
            if len(steps) > MOST:
                for step in list(steps)[1:-1:2]:
                    del steps[step]

    def keep(self, trials: set[str]) -> None:
        self.points = {trial: own for trial, own in self.points.items() if trial in trials}

    def of(self, key: str, trials: dict[str, str], open_: set[str]) -> list[dict[str, Any]]:
        """One line for each trial and stage, of at most POINTS points."""
        found = []
        for trial, condition in trials.items():
            for stage, steps in self.points.get(trial, {}).get(key, {}).items():
                points = thinned(sorted(steps.items()))
                about = {"trial": trial, "condition": condition, "stage": stage}
                x, y = [p[0] for p in points], [float(f"{p[1]:.6g}") for p in points]
                found.append({**about, "ended": trial not in open_, "x": x, "y": y})
        return found


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS of them, evenly, the first and the last among them.

    >>> len(thinned([(step, 0.5) for step in range(1000)])), thinned([(1, 2.0)])
    (150, [(1, 2.0)])
    """
    if len(points) <= POINTS:
        return points
    every = (len(points) - 1) / (POINTS - 1)
    return [points[round(i * every)] for i in range(POINTS)]


class LiveRun:
    """A run folder that is read on. `driven` says whether somebody drives it, None where that cannot be asked.

    `named` is how a command names the run.
    """

    def __init__(self, run: Path, driven: Callable[[], bool | None], named: str = "") -> None:
        self.run, self.driven, self.named = run, driven, named or shlex.quote(str(run))
        self.trials, self.history = Tail(run / log.TRIALS), Tail(run / log.HISTORY)
        self.study = Tail(run / log.STUDY)
        self.running: bool | None = None
        self.about: About | None = None
        self.more: dict[str, Any] = {}  # of study.yaml
        self.found: dict[str, Any] = {}  # the last state that could be read
        self._restart()

    def _restart(self) -> None:
        self.trials.restart()
        self.history.restart()
        self.ledger, self.of = Ledger(), dict[str, Ledger]()
        self.curves, self.pace = Curves(), Pace()
        self.began: dict[str, float] = {}
        self.read_once = False

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """What changes when a report of the run would: each file of its records."""
        found: dict[str, tuple[int, ...]] = {}
        for path in (self.run / log.STUDY, *sorted(self.run.glob("*.jsonl"))):
            try:
                state = path.stat()
                found[path.name] = state.st_ino, state.st_size
            except OSError:  # gone meanwhile
                found[path.name] = ()
        return found

    def state(self) -> dict[str, Any]:
        """All of it as plain values. What is wrong with the records is in it too, as a sentence."""
        try:
            if not (self.run / log.STUDY).exists():
                gone = f"{self.run} is gone: the folder was moved or deleted"
                return {**self._last(GONE), "problem": printable(gone)}
            if self._read_on() or not self.found:
                self.found = self._described()
            return self.found
        except UserError as error:
            return {**self._last(BROKEN), "problem": str(error.problems[0])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # of another shape
            what = " ".join(f"{type(error).__name__}: {error}".split())
            text = f"{self.run / log.TRIALS} does not fit {log.STUDY}: {what}"
            return {**self._last(BROKEN), "problem": printable(text)}

    def _last(self, state: str) -> dict[str, Any]:
        """The last numbers, of a run that cannot be read now. It is read anew when it is there again."""
        self._restart()
        self.study.restart()
        last, self.found = self.found or {"run": {"name": self.run.name}}, {}
        return {"run": last["run"], "state": state, "status": "", "hint": ""}

    def _read_on(self) -> bool:
        """Take in what is new; whether anything is."""
        try:
            running = self.driven()
        except OSError:
            running = None
        changed = running != self.running
        self.running = running
        if self.about is None or self.study.grown():
            list(self.study.lines())
            self.about = RunStatus.read(self.run, Ledger()).about
            self.more = read_yaml(self.run / log.STUDY).data
            changed = True
        if self.trials.grown() or self.history.grown():
            if self.trials.replaced() or self.history.replaced():
                self._restart()
            changed = True
        if changed or not self.read_once:
            self.read_once = True
            for line in self.trials.lines():
                self._event(line)
            wanted = {*self.ledger.open_trials(), *self._last_ended()}
            for line in self.history.lines():
                self._report(line, wanted)
            self.curves.keep(wanted)
        return changed

    def _event(self, line: bytes) -> None:
        event = parsed(line)
        if event is None:
            return
        if problem := log.problem_of(log.TRIALS, event):
            raise UserError(Problem(problem, where=str(self.trials.path)))
        kind, trial, condition = event["event"], event["trial"], event["condition"]
        self.ledger.add(event)
        self.of.setdefault(condition, Ledger()).add(event)
        when = event.get("time")
        if kind in log.BEGINNINGS and when is not None:
            self.began[trial] = when
        elif kind in log.ENDINGS and when is not None and trial in self.began:
            start = self.began.pop(trial)
            self.pace.add(Span(condition, event["phase"], kind, start, when))

    def _last_ended(self) -> list[str]:
        return list(islice(reversed(self.ledger.ended), KEPT))

    def _report(self, line: bytes, wanted: set[str]) -> None:
        named = _TRIAL.search(line)
        trial = named[1].decode(errors="replace") if named else ""
        if trial in self.ledger.begun and trial not in wanted:
            return  # most lines are of trials that ended, and need no reading
        report = parsed(line)
        if report is None:
            return
        if problem := log.problem_of(log.HISTORY, report):
            raise UserError(Problem(problem, where=str(self.history.path)))
        self.curves.add(report, self._keys())

    def _keys(self) -> tuple[str, ...]:
        assert self.about is not None
        return tuple(dict.fromkeys((self.about.metric, *CURVES)))

    # ---- what is said ------------------------------------------------------------------------

    def _described(self) -> dict[str, Any]:
        assert self.about is not None
        about, ledger = self.about, self.ledger
        whole = RunStatus(about, ledger)
        words = whole.in_words(self.running)
        over = self.running is False and not whole.in_words(False).startswith("interrupted")
        open_ = ledger.open_trials()
        if self.running:
            state = RUNNING if open_ else WAITING
        else:
            state = FINISHED if over else STOPPED if self.running is False else UNKNOWN
        rows = [self._condition(condition.id, over) for condition in about.conditions]
        finish = self._finish(rows) if self.running else {}
        for row in rows:
            row["finish"] = finish.get(row["id"])
        running = len(open_) if self.running else 0
        progress = {
            "ended": sum(row["ended"] for row in rows),
            "planned": sum(row["planned"] for row in rows),
            "running": running,
            "open": len(open_),
            "finish": max(finish.values(), default=None),
        }
        for row in rows:
            del row["work"], row["least"]
        drawn = [t for t in (*self._last_ended(), *open_[-DRAWN:]) if t in ledger.begun]
        trials = {trial: str(ledger.begun[trial]["condition"]) for trial in drawn}
        named = {"name": str(self.more.get("name") or self.run.name), "folder": str(self.run)}
        what = {"method": about.method, "dataset": about.dataset.name, "created": about.created}
        curves = [
            {"key": key, "lines": self.curves.of(key, trials, set(open_))} for key in self._keys()
        ]
        found = {
            "run": {**named, **what, "metric": about.metric, "mode": about.mode},
            "state": state,
            "status": words,
            "hint": self._hint(whole, state),
            "problem": "",
            "progress": progress,
            "conditions": rows,
            "curves": [curve for curve in curves if curve["lines"]],
            "not_drawn": max(0, len(open_) - DRAWN),
            "trials": self._ended(),
        }
        plain: dict[str, Any] = log.plain(found)
        return plain

    def _condition(self, condition: str, over: bool) -> dict[str, Any]:
        assert self.about is not None
        own = next(c for c in self.about.conditions if c.id == condition)
        ledger = self.of.get(condition) or Ledger()
        status = RunStatus(self.about.model_copy(update={"conditions": [own]}), ledger)
        idle = self.ledger.only_ablates and not ledger.planned  # an ablation of other conditions
        parts = [NOTHING] if idle else status.parts()
        to_come = {} if over else self._to_come(own.method, condition, ledger)
        part = next((part for part in parts if part.ended < part.planned), parts[-1])
        begins = next(iter(to_come), "") if part.ended >= part.planned else ""
        open_ = ledger.open_trials()
        outcomes: Counter[str] = Counter()
        for counts in ledger.counts().values():
            outcomes.update(counts)
        left = [(PHASE_OF.get(p.doing, ""), max(0, p.planned - p.ended)) for p in parts]
        left += to_come.items()
        means = {phase: self.pace.seconds(condition, phase) for phase, count in left if count}
        spent = sum(min(self._spent(t), means.get(self._phase(t)) or 0.0) for t in open_)
        known = None not in means.values()
        work = sum(count * (means[phase] or 0.0) for phase, count in left if count) - spent
        cells = self.more.get("conditions") or []
        cell = next((c.get("cell") for c in cells if str(c.get("id")) == condition), None)
        best: Best | None = status.best()[condition]
        return {
            "id": condition,
            "cell": str(cell or condition),
            "method": own.method,
            "phase": self._phase_in_words(part, begins, ledger),
            "part": [part.ended, part.planned],
            "begun": len(ledger.begun),
            "ended": sum(p.ended for p in parts),
            "planned": sum(p.planned for p in parts) + sum(to_come.values()),
            "running": len(open_) if self.running else 0,
            "outcomes": {kind: outcomes[kind] for kind in log.ENDINGS if outcomes[kind]},
            "best": best and best._asdict(),
            "cut": [str(event.get("reason") or "") for event in ledger.cut],
            "work": max(0.0, work) if known else None,
            "least": self._longest(open_, means, [phase for phase, count in left if count]),
        }

    def _to_come(self, method: str | None, condition: str, ledger: Ledger) -> dict[str, int]:
        """phase -> trials of the phases that a search is followed by and that have not begun."""
        assert self.about is not None
        if ledger.planned or self.ledger.planned or ledger.locked or ledger.has(log.CONFIRM):
            return {}
        if "--no-confirm" in str(self.more.get("command")).split():
            return {}
        study = self.about.study
        leaves = study.compare[method].search if method else study.search
        domains = {key: domain(leaf) for key, leaf in leaves.items()}
        settings: Any = study.study  # has what is asked of the whole settings
        repeats = 0 if ledger.has(log.FINALIST) else repeats_of(settings, domains)
        found = {log.FINALIST: repeats, log.CONFIRM: len(study.study.seeds)}
        return {phase: count for phase, count in found.items() if count}

    def _phase_in_words(self, part: Part, begins: str, ledger: Ledger) -> str:
        if ledger.cut:
            return f"{part.done}, cut"
        if part.ended < part.planned:
            return part.doing if self.running else part.done
        if begins and self.running:
            return next(doing for doing, phase in PHASE_OF.items() if phase == begins)
        return part.done

    def _phase(self, trial: str) -> str:
        return str(self.ledger.begun[trial]["phase"])

    def _spent(self, trial: str) -> float:
        return max(0.0, time.time() - self.began.get(trial, math.inf)) if self.running else 0.0

    def _longest(
        self, open_: list[str], means: dict[str, float | None], phases: list[str]
    ) -> float:
        """The seconds of one trial after the other that no machine can do at once: one of each phase to come."""
        running = [max(0.0, (means.get(self._phase(t)) or 0.0) - self._spent(t)) for t in open_]
        begun = {self._phase(trial) for trial in open_}
        later = sum(means[phase] or 0.0 for phase in dict.fromkeys(phases) if phase not in begun)
        return max(running, default=0.0) + later

    def _finish(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """condition -> when it will be done, of those with work left; nothing before a trial has ended."""
        left = {row["id"]: row for row in rows if row["ended"] < row["planned"] and not row["cut"]}
        if any(row["work"] is None for row in left.values()):
            return {}
        work = {condition: row["work"] for condition, row in left.items()}
        least = {condition: row["least"] for condition, row in left.items()}
        now = time.time()
        running = [
            Span(start["condition"], start["phase"], "", self.began[trial], now)
            for trial in self.ledger.open_trials()
            if trial in self.began and (start := self.ledger.begun[trial])
        ]
        found = finishes(work, self.pace.at_once(running), least)
        return {condition: round(now + seconds) for condition, seconds in found.items()}

    def _hint(self, whole: RunStatus, state: str) -> str:
        """What to do about a run that nobody drives."""
        parts = whole.parts()
        unfinished = next((part for part in parts if part.ended < part.planned), parts[-1])
        ablates = PHASE_OF[unfinished.doing] in (log.RETUNE, log.ABLATE)
        verb = "ablate" if ablates else "search --resume"
        command = f"tune-ssl {verb} {self.named}"
        if state == STOPPED:
            return f"The driver is not running: go on with {command}"
        if state == FINISHED and unfinished.doing == "searching":
            return f"Nothing is confirmed. {command} confirms the winners"
        if state == WAITING:
            return "The driver runs, and no trial does: it begins, waits for a place, or ends"
        return ""

    def _ended(self) -> list[dict[str, Any]]:
        """The last trials that ended, the last one first."""
        found = []
        for trial, end in islice(reversed(self.ledger.ended.items()), LISTED):
            start = self.ledger.begun.get(trial, end)
            reason = (end.get("reason") or "").strip().splitlines()
            found.append(
                {
                    "trial": trial,
                    "condition": start["condition"],
                    "phase": start["phase"],
                    "outcome": end["event"],
                    "value": end.get("value"),
                    "seconds": end.get("seconds"),
                    "time": end.get("time"),
                    "reason": reason[-1][:300] if reason else "",
                }
            )
        return found
