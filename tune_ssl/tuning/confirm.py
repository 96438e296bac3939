"""The confirmation: each condition's winner is locked, trained on fresh seeds, and only then tested.

This is the only code that opens test data (a test of the architecture says so), and `trials.jsonl`
says when: the `locked` event comes before the first of its runs.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tune_ssl.base.errors import Stopped
from tune_ssl.data.sets import Images, LabeledSet, Piece
from tune_ssl.data.splits import half_width
from tune_ssl.data.store import Store, open_test
from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.runs.splits import validation_count
from tune_ssl.study.study import Condition, Study
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.repeats import RepeatSource
from tune_ssl.tuning.worker import run_job

if TYPE_CHECKING:
    from tune_ssl.training.loop import Trained

RULE = (
    "Of a condition's finished search trials, the one with the best {metric} ({mode}imum) at its end; "
    "where the {finalists} best were run again on tuning seeds {seeds}, the best mean over all "
    "tuning seeds. Stopped, diverged, collapsed and failed trials are never chosen."
)


def confirm_trial(config: dict[str, Any]) -> None:
    """The function trainable of a confirmation."""
    job = Job.from_config(config)
    run_job(job, finish=measure_test, keep=partial(keep, job) if job.keep else None)


def measure_test(trained: Trained) -> dict[str, Any]:
    """The evaluators' values on test/, and test/count, test/confusion (K x K) and test/reliability (15 x 3)."""
    from tune_ssl.training.evaluation import confusion, predict, reliability

    part = open_test(trained.data.store)
    images = Images((Piece(part.images, np.arange(len(part.labels))),))
    on = LabeledSet(images, part.labels)
    prediction = predict(trained.stage, trained.network, trained.data, on)
    counts_KK = confusion(prediction, on, trained.data.task.num_classes)
    bins_B3 = reliability(prediction, on).round(6)
    values: dict[str, Any] = trained.evaluate(on, "test")
    values |= {"test/confusion": counts_KK.tolist(), "test/reliability": bins_B3.tolist()}
    return {**values, "test/count": len(on)}


def keep(job: Job, trained: Trained, folder: Path) -> dict[str, Any]:
    """Galleries for the report, and the model's files in `folder`. Never raises: the result counts more."""
    from tune_ssl.artifacts.galleries import make_galleries
    from tune_ssl.artifacts.model_files import save_model

    kept: dict[str, Any] = {"galleries": [g.to_record() for g in make_galleries(trained, job.seed)]}
    try:
        save_model(folder, trained, trial=job.trial, condition=job.condition, spec=job.spec)
    except Exception as error:
        for half in folder.iterdir():
            half.unlink()
        kept["model_error"] = f"{type(error).__name__}: {error}"
    return kept


class ConfirmSource(RepeatSource):
    """One job per condition and reporting seed, all of the config that is locked for the condition.

    The first seed's run also leaves galleries and the model: the driver writes them to the run folder.
    """

    phase = log.CONFIRM

    def __init__(
        self,
        run: Path,
        study: Study,
        stores: dict[str, Store],
        splits: dict[tuple[str, int], str],
    ) -> None:
        super().__init__(run, study, splits)
        for index, condition in enumerate(study.conditions):
            locked = self.locked(condition) or self._lock(condition, stores[condition.id])
            if locked is None:  # no search trial of this condition finished
                continue
            for seed in study.settings.seeds:
                self.again(f"c{index}-confirm-s{seed}", condition, locked["config"], seed)
        first = study.settings.seeds[0]
        self.jobs = [replace(job, keep=job.seed == first) for job in self.jobs]

    def finishing(self, job: Job, report: Record) -> None:
        """Before the ending is recorded, so that a run of which anything is lost is run again."""
        if not job.keep:
            return
        about = {"trial": job.trial, "condition": job.condition, "seed": job.seed}
        if galleries := report.get("galleries"):
            self._write(log.GALLERIES, *({**about, **gallery} for gallery in galleries))
        index = [condition.id for condition in self.study.conditions].index(job.condition)
        try:
            if reason := report.get("model_error"):
                raise OSError(reason)
            folder = self.run / log.MODELS / str(index)
            self.checkpoints.take(job.trial, (log.WEIGHTS, log.MODEL), folder)
        except (OSError, Stopped) as error:
            warnings.warn(f"{job.trial}: its model was not saved: {error}", stacklevel=2)

    def _lock(self, condition: Condition, store: Store) -> Record | None:
        """Choose the condition's config and write it down: from here on test data may be opened."""
        settings = self.study.settings
        scores = self.scores(condition, log.SEARCH, log.FINALIST)
        if not scores:
            return None
        best, value = next(iter(scores.items()))
        width = half_width(validation_count(store, condition, settings.tuning_seed))
        start = self.starts(condition)[best]
        locked = {
            "event": log.LOCKED,
            "phase": log.CONFIRM,
            "trial": best,
            "condition": condition.id,
            "digest": start["digest"],
            "config": start["config"],
            "value": value,
            "rule": RULE.format(
                metric=self.metric,
                mode=self.mode,
                finalists=settings.finalists,
                seeds=settings.finalist_seeds,
            ),
            "ties": sum(abs(other - value) <= width for other in scores.values()) - 1,
            "half_width": width,
        }
        self._write(log.TRIALS, locked, durable=True)
        return locked
