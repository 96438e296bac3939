"""What a worker does for a confirmation: it measures test data and looks at single images, and keeps the network.

This is the only code that opens test data (a test of the architecture says so). A confirm job exists only
for a config that is locked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import first_line
from tune_ssl.data.sets import Images, LabeledSet, Piece
from tune_ssl.data.store import open_test
from tune_ssl.records.predictions import record_of_pool, record_of_test
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.single_images import pool_of

if TYPE_CHECKING:
    from tune_ssl.training.loop import Trained


def measure_test(trained: Trained) -> dict[str, Any]:
    """What a confirmation adds to its last report.

    `result`: the evaluators' values on test/, and test/count, test/confusion (K x K) and test/reliability (15 x 3).
    `predictions`: what the network says of single images (`records.predictions`). `notes`: what went wrong with those
    that are no test images, which costs the result nothing.
    """
    from tune_ssl.training.evaluation import confusion, predict, reliability

    part = open_test(trained.data.store)
    images = Images((Piece(part.images, part.rows, "test"),))
    on = LabeledSet(images, part.labels[part.rows])
    prediction = predict(trained.stage, trained.network, trained.data, on)
    counts_KK = confusion(prediction, on, trained.data.task.num_classes)
    bins_B3 = reliability(prediction, on).round(6)
    values: dict[str, Any] = trained.evaluate(on, "test")
    values |= {"test/confusion": counts_KK.tolist(), "test/reliability": bins_B3.tolist()}
    values |= {"test/count": len(on)}
    assert prediction.logits_NK is not None
    correct_N = prediction.logits_NK.argmax(dim=1).numpy() == on.labels
    single: dict[str, Any] = {"test": record_of_test(on.labels, correct_N), "pool": None}
    notes = []
    try:
        single["pool"] = record_of_pool(pool_of(trained))
    except Exception as error:
        single["pool_error"] = f"{type(error).__name__}: {first_line(error)}"
        notes = [f"single images were not looked at: {single['pool_error']}"]
    return {"result": values, "predictions": single, "notes": notes}


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
