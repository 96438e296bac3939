"""What runs in a Ray worker: one job is trained, and every report of it goes to the driver.

torch loads in the worker only: the driver, which imports this module too, never waits for it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from tune_ssl import records
from tune_ssl.jobs import CHECKPOINT, Job
from tune_ssl.lazy import LazyModule
from tune_ssl.plugins import restore_plugins
from tune_ssl.scheduler import REPORT
from tune_ssl.trial import build_trial

if TYPE_CHECKING:
    import torch

    from tune_ssl import training
else:
    torch = LazyModule("torch")
    training = LazyModule("tune_ssl.training")

Finish = Callable[["training.Trained"], dict[str, Any]]
Keep = Callable[["training.Trained", Path], dict[str, Any]]


def search_trial(config: dict[str, Any]) -> None:
    """The function trainable of a search."""
    run_job(Job.from_config(config))


def run_job(job: Job, finish: Finish | None = None, keep: Keep | None = None) -> None:
    """Train one job. Whatever goes wrong in it is reported as its ending and never raised.

    `finish` adds to the last report's result; the confirmation measures test data there. `keep` adds
    to that report itself, and what it writes into the folder goes with it as a checkpoint.
    """
    torch.set_num_threads(max(1, int(job.cpus)))
    freeze_libraries()
    try:
        _train_and_report(job, finish, keep)
    except (training.Diverged, training.Collapsed) as error:
        diverged = isinstance(error, training.Diverged)
        spent = {name: getattr(error, name) for name in ("step", "images_seen", "seconds")}
        status = records.DIVERGED if diverged else records.COLLAPSED
        _send({"status": status, "reason": str(error), **spent})
    except Exception:
        _send({"status": records.FAILED, "reason": traceback.format_exc(limit=-8)})
    finally:  # the worker is reused: leave nothing of this trial behind
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@cache
def freeze_libraries() -> None:
    """Once in a worker: the collector need not look through torch and Ray after every trial."""
    importlib.import_module("tune_ssl.training")
    gc.collect()
    gc.freeze()


def _train_and_report(job: Job, finish: Finish | None, keep: Keep | None) -> None:
    restore_plugins(job.plugins)
    spec = build_trial(job.spec)
    state = _newest_state(job)
    if state is not None:  # the driver may have died before it took the checkpoint's own report
        _send(json.loads(state["report"]))
    reports = training.train(spec, resume=state, metric=job.metric, mode=job.mode)
    with contextlib.closing(reports):  # a stopped trial's thread may be parked: free what it holds
        _send_each(reports, job, finish, keep)


def _send_each(
    reports: Iterable[training.Report], job: Job, finish: Finish | None, keep: Keep | None
) -> None:
    written = time.monotonic()
    for report in reports:
        if report.last:
            more = finish(report.trained) if finish else {}
            plain = _plain(report) | {"status": records.FINISHED, "result": report.result | more}
            with tempfile.TemporaryDirectory(prefix="tune-ssl-") as folder:
                plain |= keep(report.trained, Path(folder)) if keep else {}
                whole = any(Path(folder).iterdir())
                _send(plain, tune.Checkpoint.from_directory(folder) if whole else None)
        elif report.snapshot and time.monotonic() - written >= job.checkpoint_seconds:
            with tempfile.TemporaryDirectory(prefix="tune-ssl-") as folder:
                plain = _plain(report)
                state = report.snapshot() | {"report": json.dumps(records.plain(plain))}
                torch.save(state, Path(folder) / CHECKPOINT)
                _send(plain, tune.Checkpoint.from_directory(folder))
            written = time.monotonic()
        else:
            _send(_plain(report))


def _plain(report: training.Report) -> dict[str, Any]:
    return {
        "status": "running",
        "stage": report.stage,
        "step": report.step,
        "evaluation": report.evaluation,
        "metrics": report.metrics,
        "result": report.result,
        "stand_in": report.stand_in,
        "images_seen": report.images_seen,
        "seconds": report.seconds,
        "split": report.trained.data.split.digest,
    }


def _send(report: dict[str, Any], checkpoint: tune.Checkpoint | None = None) -> None:
    tune.report({REPORT: json.dumps(records.plain(report))}, checkpoint=checkpoint)


def _newest_state(job: Job) -> dict[str, Any] | None:
    """The newest checkpoint that can be read: Ray's after a retry, else the killed driver's."""
    candidates = [Path(path) for path in job.resume_from]
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        candidates.insert(0, Path(checkpoint.path) / CHECKPOINT)
    for path in candidates:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError):
            continue  # torn by the crash: an older one, or the beginning
        if state.get("spec") == job.digest:
            return state
    return None
