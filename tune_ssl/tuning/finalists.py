"""The finalists: a condition's best trials, run again on further tuning seeds before one is chosen.

One seed and one split say little: of many noisy trials the luckiest looks best. Still tuning: only
validation data is looked at, and every method pays the same.
"""

from __future__ import annotations

from tune_ssl.records import log
from tune_ssl.tuning.phase import RepeatPhase, RunContext


class FinalistPhase(RepeatPhase):
    """Jobs for the `study.finalists` best finished trials of a condition that is not locked yet."""

    name, title = log.FINALIST, "finalists"

    def __init__(self, context: RunContext, index: int) -> None:
        super().__init__(context, index)
        ledger, settings = context.ledger, context.study.settings
        if self.condition.id in ledger.locked:
            return
        for trial in ledger.finalists(self.condition.id, settings.mode, settings.finalists):
            number, config = trial.rpartition("-t")[2], ledger.begun[trial]["config"]
            for seed in settings.finalist_seeds:
                self.repeat(f"c{index}-final{number}-s{seed}", config, seed, repeats=trial)
