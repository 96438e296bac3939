"""What a run's records say of each condition, and a config run again: jobs for further seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tune_ssl.records import ledger, log
from tune_ssl.records.log import Record
from tune_ssl.study.study import Condition, Study
from tune_ssl.tuning.job import Progress
from tune_ssl.tuning.phase import JobSource


class RepeatSource(JobSource):
    """Runs chosen configs again, on given seeds; what ended before a resume is not repeated."""

    def __init__(self, run: Path, study: Study, splits: dict[tuple[str, int], str]) -> None:
        super().__init__(run, study, splits)
        self.events = log.read(run / log.TRIALS)
        self.endings = ledger.endings(self.events)

    def again(
        self,
        name: str,
        condition: Condition,
        config: dict[str, Any],
        seed: int,
        of: str | None = None,
        variant: str | None = None,
    ) -> None:
        """One more job, unless a trial of that name has ended already."""
        progress = self.progress.setdefault(condition.id, Progress(condition.id, 0))
        progress.planned += 1
        if name in self.endings:
            self._count(progress, self.endings[name]["event"], self.endings[name]["value"])
            return
        self.jobs.append(self.job(name, condition, config, seed, progress.planned - 1, of, variant))

    def scores(self, condition: Condition, *phases: str) -> dict[str, float]:
        """search trial -> what it is chosen by (records.scores), best first, the earlier of equals.

        Only trials of the given phases count.
        """
        starts = {t: s for t, s in self.starts(condition).items() if s["phase"] in phases}
        sign = -1 if self.mode == "max" else 1
        found = ledger.tuned(starts, self.endings)
        return dict(sorted(found.items(), key=lambda item: (sign * item[1], item[0])))

    def starts(self, condition: Condition) -> dict[str, Record]:
        """trial -> the event of this condition that started it."""
        starts: dict[str, Record] = {}
        for event in self.events:
            if event["condition"] == condition.id and event["event"] in log.BEGINNINGS:
                starts.setdefault(event["trial"], event)
        return starts

    def locked(self, condition: Condition) -> Record | None:
        """The config that was locked for the confirmation, if one was."""
        for event in self.events:
            if event["event"] == log.LOCKED and event["condition"] == condition.id:
                return event
        return None
