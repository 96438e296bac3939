"""The finalists: a condition's best trials, run again on further tuning seeds before one is chosen.

One seed and one split say little: of many noisy trials the luckiest looks best. Still tuning: only
validation data is looked at, and every method pays the same.
"""

from __future__ import annotations

from pathlib import Path

from tune_ssl.records import log
from tune_ssl.study.study import Study
from tune_ssl.tuning.repeats import RepeatSource


class FinalistSource(RepeatSource):
    """Jobs for the `study.finalists` best finished trials of each condition that is not locked yet."""

    phase = log.FINALIST

    def __init__(self, run: Path, study: Study, splits: dict[tuple[str, int], str]) -> None:
        super().__init__(run, study, splits)
        settings = study.settings
        for index, condition in enumerate(study.conditions):
            if self.locked(condition) or settings.finalists < 2:
                continue
            starts = self.starts(condition)
            best = list(self.scores(condition, log.SEARCH))[: settings.finalists]
            for trial in best if len(best) > 1 else []:
                number = trial.rpartition("-t")[2]
                for seed in settings.finalist_seeds:
                    name = f"c{index}-final{number}-s{seed}"
                    self.again(name, condition, starts[trial]["config"], seed, of=trial)
