"""What runs in a Ray worker: one job is trained, and every report of it goes to the driver.

torch loads in the worker only: the driver, which imports this module too, never waits for it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from tune_ssl.base.errors import UserError, first_line
from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import digest
from tune_ssl.data.store import pinned_store
from tune_ssl.methods.plugins import restore_plugins
from tune_ssl.records import log
from tune_ssl.storage import places
from tune_ssl.storage.checkpoints import STATE
from tune_ssl.study.trial import TrialSpec, build_trial
from tune_ssl.training import out_of_memory
from tune_ssl.tuning.job import BROKEN, REPORT, Job

if TYPE_CHECKING:
    import torch

    from tune_ssl.training import loop
else:
    torch = LazyModule("torch")
    loop = LazyModule("tune_ssl.training.loop")

SCRATCH = "tune-ssl-worker-"

Finish = Callable[["loop.Trained"], dict[str, Any]]
Keep = Callable[["loop.Trained", Path], dict[str, Any]]


def train_job(config: dict[str, Any]) -> None:
    """The function trainable of every phase. A confirmation measures test data too."""
    job = Job.from_config(config)
    if job.phase != log.CONFIRM:
        return run_job(job)
    from tune_ssl.tuning.test_data import keep, measure_test

    run_job(job, finish=measure_test, keep=partial(keep, job) if job.keep else None)


def run_job(job: Job, finish: Finish | None = None, keep: Keep | None = None) -> None:
    """Train one job. What goes wrong in it is reported; it is raised only for Ray to try once more.

    `finish` adds to the last report: to its `result` and its `notes`, and what else it returns beside them. `keep` adds
    to that report too, and what it writes into the folder goes with it as a checkpoint.
    """
    # Ray gives up a worker whose last trial's thread is not over by then, and the next trial with it
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
    torch.set_num_threads(max(1, int(job.cpus)))
    devices = ray.get_gpu_ids() if ray.is_initialized() else []
    if ray.is_initialized() and not devices:  # it was given none: a cluster's Ray shows all
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    freeze_libraries()
    try:
        _train_and_report(job, finish, keep)
    except (loop.Diverged, loop.Collapsed, loop.TooLong) as error:
        spent = {
            name: getattr(error, name)
            for name in ("step", "images_seen", "seconds", "waited", "reused")
        }
        endings = {loop.Diverged: log.DIVERGED, loop.Collapsed: log.COLLAPSED}
        status = endings.get(type(error), log.STOPPED)
        _send({"status": status, "reason": str(error), **spent})
    except (out_of_memory.TooLarge, UserError) as error:  # another attempt would not help
        _send({"status": log.FAILED, "reason": str(error), "place": _place(devices)})
    except Exception as error:
        # The driver stops a trial that another attempt would not help, and we do not come back.
        reason = traceback.format_exc(limit=-8)
        about = {"reason": reason, "place": _place(devices), **kind_of(error)}
        _send({"status": BROKEN, **about})
        raise
    finally:  # the worker is reused: leave nothing of this trial behind
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _place(devices: list[Any]) -> str:
    """Where a trial ran: the node, and the GPUs that it was given."""
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return " ".join([node, *map(str, devices)])


def kind_of(error: Exception) -> dict[str, Any]:
    """`cause`: which failure it is, so that the same one is known again; `again`: may it pass by itself?

    A mistake in code repeats itself; what a disk, a network or a device did may not.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    passing = isinstance(error, (OSError, RuntimeError, MemoryError, EOFError))
    mistake = isinstance(error, (NotImplementedError, RecursionError))
    return {
        "cause": f"{type(error).__name__}: {first_line(error)}{place}",
        "again": passing and not mistake,
    }


@cache
def freeze_libraries() -> None:
    """Once in a worker: the collector need not look through torch and Ray after every trial."""
    sweep_scratch()
    importlib.import_module("tune_ssl.training.loop")
    gc.collect()
    gc.freeze()


def _train_and_report(job: Job, finish: Finish | None, keep: Keep | None) -> None:
    restore_plugins(job.plugins)
    data = build_trial(job.spec).data
    store = pinned_store(data, job.store, job.data) if job.data else None

    def attempt(spec: TrialSpec) -> None:
        state = _newest_state(job, digest(spec))
        if state is not None:  # the driver may have died before it took the checkpoint's own report
            _send(json.loads(state["report"]))
        reports = loop.train(
            spec,
            resume=state,
            metric=job.metric,
            mode=job.mode,
            whole_at=job.whole_at,
            store=store,
        )
        with contextlib.closing(
            reports
        ):  # a stopped trial's thread may be parked: free what it holds
            _send_each(reports, spec, job, finish, keep)

    spec = build_trial(job.spec)
    less = out_of_memory.smaller(spec)
    ran_out = not isinstance(less, str) and _newest_state(job, digest(less)) is not None
    out_of_memory.with_retry(attempt, spec, ran_out=ran_out)


def _send_each(
    reports: Iterable[loop.Report],
    spec: TrialSpec,
    job: Job,
    finish: Finish | None,
    keep: Keep | None,
) -> None:
    written = time.monotonic()
    for report in reports:
        plain = _plain(report) | {"accumulate": spec.compute.accumulate}
        if report.last:
            more = finish(report.trained) if finish else {}
            result, notes = more.pop("result", {}), more.pop("notes", [])
            plain |= {"status": log.FINISHED, "result": report.result | result, **more}
            if notes:
                plain["notes"] = [*plain.get("notes", []), *notes]
            _send_with(plain, partial(keep, report.trained) if keep else None, "model_error")
        elif report.snapshot and time.monotonic() - written >= job.checkpoint_seconds:
            state = report.snapshot() | {"report": json.dumps(log.plain(plain))}
            _send_with(plain, partial(_save, state), "note")
            written = time.monotonic()
        else:
            _send(plain)


def _save(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(state, folder / STATE)
    return {}


def _send_with(
    report: dict[str, Any], fill: Callable[[Path], dict[str, Any]] | None, excuse: str
) -> None:
    """Send a report with what `fill` writes into a folder as its checkpoint, and adds to it.

    Where a disk does not take it the report goes alone, and says so under the key `excuse`: a trial
    is worth more than its checkpoint.
    """
    if fill is None:
        return _send(report)
    more: dict[str, Any] = {}
    end = time.monotonic() + (places.WAIT if excuse == "model_error" else 0)  # it is made only once
    try:
        with scratch() as folder:
            more = fill(folder)
            if not any(folder.iterdir()):
                return _send(report | more)
            while True:
                try:
                    return _send(report | more, tune.Checkpoint.from_directory(folder))
                except OSError:
                    if time.monotonic() > end:
                        raise
                time.sleep(2)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
        why = f"{type(error).__name__}: {first_line(error)}"
        excuses = {excuse: f"a checkpoint was not written: {why}"}
    _send(report | more | excuses)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder for the time of the block."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def sweep_scratch() -> None:
    """Delete what killed workers left behind: a checkpoint is on its way for seconds, not for an hour."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)


def _plain(report: loop.Report) -> dict[str, Any]:
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
        "waited": report.waited,
        "reused": report.reused,
        "split": report.trained.data.split.digest,
        **({"notes": list(report.notes)} if report.notes else {}),
    }


def _send(report: dict[str, Any], checkpoint: tune.Checkpoint | None = None) -> None:
    tune.report({REPORT: json.dumps(log.plain(report))}, checkpoint=checkpoint)


def _folders(checkpoint: tune.Checkpoint) -> list[str]:
    """The checkpoint's folder and those of older ones beside it, newest first: one may be torn."""
    from pyarrow.fs import FileSelector

    newest = str(checkpoint.path)
    parent = newest.rpartition("/")[0]
    older: list[str] = []
    with contextlib.suppress(OSError):
        found = checkpoint.filesystem.get_file_info(FileSelector(parent))
        folders = (f"{parent}/{info.base_name}" for info in found if not info.is_file)
        older = sorted(f for f in folders if f"{parent}/checkpoint_" <= f < newest)
    return [newest, *reversed(older)]


def _newest_state(job: Job, spec: str) -> dict[str, Any] | None:
    """The newest checkpoint of that spec that can be read: Ray's after a retry, else the killed driver's."""
    candidates: list[Callable[[], bytes]] = [
        partial(places.read_checkpoint, path) for path in job.resume_from
    ]
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        candidates[:0] = [
            partial(places.read_with_retries, checkpoint.filesystem, f"{folder}/{STATE}")
            for folder in _folders(checkpoint)
        ]
    away: OSError | None = None
    for read in candidates:
        try:
            file = io.BytesIO(read())
        except FileNotFoundError:
            continue
        except OSError as error:
            away = error
            continue
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # torn by the crash, or zeros: an older one, or the beginning
            continue
        if isinstance(state, dict) and state.get("spec") == spec:
            return state
    if away is not None:  # to begin again would lose what may be there
        raise away
    return None
