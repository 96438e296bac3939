"""The confirmation: a condition's winner is locked, and trained on fresh seeds, which are then tested.

`trials.jsonl` says when: the `locked` event comes before the first of its runs.
"""

from __future__ import annotations

import warnings

from tune_ssl.base.errors import Stopped
from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.records.ties import half_width
from tune_ssl.runs.splits import validation_count
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.phase import RepeatPhase, RunContext

RULE = (
    "Of a condition's finished search trials, the one with the best {metric} ({mode}imum) at its end; "
    "where the {finalists} best were run again on tuning seeds {seeds}, the best mean over all "
    "tuning seeds. Stopped, diverged, collapsed and failed trials are never chosen."
)


class ConfirmPhase(RepeatPhase):
    """One job per reporting seed, all of the config that is locked for the condition.

    Each leaves what its network says of single images. The first seed's run also leaves galleries and the model: the
    driver writes them to the run folder.
    """

    name, title = log.CONFIRM, "confirm"

    def __init__(self, context: RunContext, index: int) -> None:
        super().__init__(context, index)
        seeds = context.study.settings.seeds
        self.too_late = 0  # seeds for which no time is left, so that nothing is chosen either
        locked = context.ledger.locked.get(self.condition.id)
        if locked is None and context.deadline.passed():
            self.planned = self.too_late = len(seeds)
            return
        locked = locked or self._lock()
        if locked is None:  # no search trial of this condition finished
            return
        for seed in seeds:
            trial = self._trial(seed, locked["config"])
            self.repeat(trial, locked["config"], seed, keep=seed == seeds[0])

    def counts(self, trial: str, start: Record) -> bool:
        return not self.context.ledger.superseded(trial)

    @property
    def undone(self) -> int:
        return self.too_late or super().undone

    def _trial(self, seed: int, config: dict[str, object]) -> str:
        """The name of a seed's run: each reopening that chose another config has runs of its own."""
        ledger = self.context.ledger
        times = len(ledger.reopened.get(self.condition.id, ()))
        name = f"c{self.index}-confirm"
        names = [f"{name}{again or ''}-s{seed}" for again in range(times + 1)]
        same = [n for n in names if n in ledger.begun and ledger.begun[n]["config"] == config]
        return same[0] if same else names[-1]

    def finishing(self, job: Job, report: Record) -> None:
        """Before the ending is recorded, so that a run of which anything is lost is run again."""
        about = {"trial": job.trial, "condition": job.condition, "seed": job.seed}
        if predictions := report.get("predictions"):
            self.context.writer.predictions({**about, **predictions})
        if not job.keep:
            return
        if galleries := report.get("galleries"):
            self.context.writer.galleries([{**about, **gallery} for gallery in galleries])
        try:
            if reason := report.get("model_error"):
                raise OSError(reason)
            folder = self.context.run / log.MODELS / str(self.index)
            self.context.checkpoints.copy_newest(job.trial, (log.WEIGHTS, log.MODEL), folder)
        except (OSError, Stopped) as error:
            warnings.warn(f"{job.trial}: its model was not saved: {error}", stacklevel=2)

    def _lock(self) -> Record | None:
        """Choose the condition's config and write it down: from here on test data may be opened."""
        ledger, settings, condition = (
            self.context.ledger,
            self.context.study.settings,
            self.condition,
        )
        scores = ledger.scores(condition.id, settings.mode)
        if not scores:
            return None
        best, value = next(iter(scores.items()))
        store = self.context.stores[condition.id]
        width = half_width(validation_count(store, condition, settings.tuning_seed))
        start = ledger.begun[best]
        self.context.writer.event(
            {
                "event": log.LOCKED,
                "phase": log.CONFIRM,
                "trial": best,
                "condition": condition.id,
                "digest": start["digest"],
                "config": start["config"],
                "value": value,
                "rule": RULE.format(
                    metric=settings.metric,
                    mode=settings.mode,
                    finalists=settings.finalists,
                    seeds=settings.finalist_seeds,
                ),
                "half_width": width,
            }
        )
        return ledger.locked[condition.id]
