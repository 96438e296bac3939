"""The finalists: a condition's best trials, run again on further tuning seeds before one is chosen.

One seed and one split say little: of many noisy trials the luckiest looks best. Still tuning: only
validation data is looked at, and every method pays the same.
"""

from __future__ import annotations

from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.tuning.phase import RepeatPhase, RunContext


class FinalistPhase(RepeatPhase):
    """Jobs for the `study.finalists` best finished trials of a condition that is not locked yet."""

    name, title = log.FINALIST, "finalists"

    def __init__(self, context: RunContext, index: int) -> None:
        super().__init__(context, index)
        self.best: set[str] = set()  # the trials that are run again
        if self.condition.id not in context.ledger.locked:
            self.repeat_best(None)

    def counts(self, trial: str, start: Record) -> bool:
        return start.get("repeats") in self.best

    def repeat_best(self, variant: str | None) -> None:
        """A job for each finalist and further tuning seed: of the search, or of a retuned `variant`."""
        ledger, settings = self.context.ledger, self.context.study.settings
        best = ledger.finalists(self.condition.id, settings.mode, settings.finalists, variant)
        if 1 < len(best) < settings.finalists or (not best and settings.finalists > 1):
            row = f" {variant}" if variant else ""
            finished = len(best) or "one or none"
            self.context.tell(
                f"{self.condition.id}{row}: {finished} of {settings.finalists} finalists: no more trials finished"
            )
        self.best.update(best)
        for trial in best:
            number, config = trial.rpartition("-t")[2], ledger.begun[trial]["config"]
            row = f"{log.RETUNE}-{variant}-" if variant else ""
            for seed in settings.finalist_seeds:
                name = f"c{self.index}-{row}final{number}-s{seed}"
                self.repeat(name, config, seed, repeats=trial, variant=variant)


class RetunedFinalistPhase(FinalistPhase):
    """The same for each row of an ablation that was tuned again."""

    name = log.RETUNE

    def __init__(self, context: RunContext, index: int) -> None:
        RepeatPhase.__init__(self, context, index)
        self.best = set()
        for variant, row in context.ledger.planned.get(self.condition.id, {}).items():
            if row["retune"] and not context.ledger.row_has_begun(self.condition.id, variant):
                self.repeat_best(variant)
