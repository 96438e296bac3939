"""The confirmation: each condition's winner is locked, trained on fresh seeds, and only then tested.

This is the only code that opens test data (a test of the architecture says so), and `trials.jsonl`
says when: the `locked` event comes before the first of its runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tune_ssl import records
from tune_ssl.data.sets import Images, LabeledSet, Piece
from tune_ssl.data.splits import half_width
from tune_ssl.data.store import Store, open_test
from tune_ssl.evaluation import confusion, predict
from tune_ssl.jobs import Job, JobSource, Progress, checkpoints
from tune_ssl.records import Record
from tune_ssl.runfolder import validation_count
from tune_ssl.spec import digest
from tune_ssl.study import Condition, Study
from tune_ssl.trainable import run_job
from tune_ssl.training import Trained
from tune_ssl.trial import override

RULE = (
    "Of a condition's finished search trials, the one with the best {metric} at its end "
    "({mode}imum; the earliest of equals). Stopped, diverged and failed trials are never chosen."
)


def confirm_trial(config: dict[str, Any]) -> None:
    """The function trainable of a confirmation."""
    run_job(Job.from_config(config), finish=measure_test)


def measure_test(trained: Trained) -> dict[str, Any]:
    """test/accuracy, test/mean_class_accuracy, test/loss, test/count and test/confusion (K x K)."""
    part = open_test(trained.data.store)
    images = Images((Piece(part.images, np.arange(len(part.labels))),))
    on = LabeledSet(images, part.labels)
    prediction = predict(trained.stage, trained.network, trained.data, on)
    counts_KK = confusion(prediction, torch.from_numpy(on.labels), trained.data.task.num_classes)
    values: dict[str, Any] = trained.evaluate(on, "test")
    return {**values, "test/count": len(on), "test/confusion": counts_KK.tolist()}


class ConfirmSource(JobSource):
    """One job per condition and reporting seed; those that ended before a resume are not repeated."""

    def __init__(
        self,
        run: Path,
        study: Study,
        stores: dict[str, Store],
        splits: dict[tuple[str, int], str],
    ) -> None:
        settings = study.settings
        super().__init__(run, [], settings.metric, settings.mode)
        events = records.read(run / records.TRIALS)
        ended = records.endings(events)
        for index, condition in enumerate(study.conditions):
            locked = self._lock(events, ended, condition, study, stores[condition.id])
            if locked is None:
                continue
            progress = Progress(condition.id, len(settings.seeds))
            self.progress[condition.id] = progress
            for number, seed in enumerate(settings.seeds):
                name = f"c{index}-confirm-s{seed}"
                if name in ended:
                    self._count(progress, ended[name]["event"], ended[name]["value"])
                    continue
                spec = override(condition.spec, {**locked["config"], "seed": seed})
                self.jobs.append(
                    Job(
                        trial=name,
                        phase=records.CONFIRM,
                        condition=condition.id,
                        number=number,
                        config=locked["config"],
                        seed=seed,
                        spec=spec.model_dump(mode="json"),
                        digest=digest(spec),
                        split=splits[condition.id, seed],
                        metric=settings.metric,
                        mode=settings.mode,
                        cpus=settings.cpus_per_trial,
                        checkpoint_seconds=settings.checkpoint_seconds,
                        resume_from=checkpoints(run, name),
                    )
                )

    def _lock(
        self,
        events: list[Record],
        ended: dict[str, Record],
        condition: Condition,
        study: Study,
        store: Store,
    ) -> Record | None:
        """The condition's chosen config: the locked one if there is, else chosen and locked now."""
        for event in events:
            if event["event"] == records.LOCKED and event["condition"] == condition.id:
                return event
        finished = [
            e
            for e in ended.values()
            if e["phase"] == records.SEARCH
            and e["condition"] == condition.id
            and e["event"] == records.FINISHED
            and e["value"] is not None
        ]
        if not finished:
            return None
        sign = 1 if self.mode == "max" else -1
        best = max(sorted(finished, key=lambda e: str(e["trial"])), key=lambda e: sign * e["value"])
        width = half_width(validation_count(store, condition, study.settings.tuning_seed))
        ties = sum(abs(e["value"] - best["value"]) <= width for e in finished) - 1
        start = next(
            e
            for e in events
            if e["trial"] == best["trial"] and e["event"] in (records.STARTED, records.RESUMED)
        )
        locked = {
            "event": records.LOCKED,
            "phase": records.CONFIRM,
            "trial": best["trial"],
            "condition": condition.id,
            "digest": start["digest"],
            "config": start["config"],
            "value": best["value"],
            "rule": RULE.format(metric=self.metric, mode=self.mode),
            "ties": ties,
            "half_width": width,
        }
        records.append(self.run / records.TRIALS, locked)
        return locked
