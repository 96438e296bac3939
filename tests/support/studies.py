"""Searches whose trials only report, for tests of what decides about them: a whole one takes a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import log10
from pathlib import Path
from typing import Any

from tests.support.runs import run_here
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.splits import check_data
from tune_ssl.study.study import load_study
from tune_ssl.tuning.job import BROKEN, Job
from tune_ssl.tuning.run import ablating, open_run, searching
from tune_ssl.tuning.stream import JobStream

METRIC, STAND_IN = "val/mean_class_accuracy", "val/probe_accuracy"
EVERY = 5  # steps between two reports
STUDY = """
fixed:
  data: {dataset: digits}
  method: {name: supervised}
  budget: {steps: 45, eval_every: 5}
conditions:
  data.num_labels: [20, 40]
search:
  optim.lr: {log_uniform: [1e-4, 1e-1]}
  model.feature_dim: {int: [8, 64]}
  method.labeled_view: {choice: [weak, strong, none]}
study: {num_trials: 8, grace_period: 0.1, finalists: 2, finalist_seeds: [1001], seeds: [0, 1]}
"""

Reports = Iterator[dict[str, Any]]


def begun(folder: Path, body: str = STUDY, name: str = "r") -> Path:
    """A run folder in which nothing has run yet."""
    return run_here(folder, body, name, dry=True)


def stream_of(
    run: Path,
    told: list[str] | None = None,
    confirm: bool = True,
    ablation: bool = False,
    again: bool = False,
) -> JobStream:
    """The stream of a run, as a driver that takes it up opens it; what the user is told goes to `told`."""
    study = load_study(run.parents[1] / "study.yaml")
    tell = print if told is None else told.append
    context = open_run(run, study, check_data(study), Ledger.read(run), tell)
    return JobStream(context, ablating(context) if ablation else searching(context, confirm, again))


def value(job: Job, evaluation: int) -> float:
    """Better with a higher rate, a little other on each seed, and better over time."""
    rate = job.spec["optim"]["lr"]
    return 0.9 + 0.1 * log10(rate) + 0.001 * (job.seed % 10) + 0.01 * evaluation


def reports(job: Job) -> Reports:
    """All that a trial tells from its beginning to its end, one for each EVERY steps of its stages."""
    budget = job.spec["budget"]["steps"]
    stages = budget if isinstance(budget, dict) else {"train": budget}
    step, end = 0, sum(stages.values())
    for number, (stage, steps) in enumerate(stages.items(), start=1):
        key = METRIC if number == len(stages) else STAND_IN
        for _ in range(0, steps, EVERY):
            step += EVERY
            evaluation = step // EVERY
            found = value(job, evaluation)
            yield {
                "status": "running" if step < end else log.FINISHED,
                "stage": stage,
                "step": step,
                "evaluation": evaluation,
                "metrics": {key: found},
                "result": {key: found},
                "stand_in": found if key == STAND_IN else None,
                "seconds": 0.1 * evaluation,
                "images_seen": 8 * step,
                "split": job.split,
            }


def broken(
    cause: str = "RuntimeError: this device is broken", place: str = "a", again: bool = False
) -> dict[str, Any]:
    """The report of an attempt that an exception ended; `again`: another one may help."""
    about = {"reason": f"Traceback\n{cause}", "cause": cause}
    return {"status": BROKEN, "again": again, "place": place, **about}


def play(
    stream: JobStream,
    slots: int = 1,
    until: Callable[[], bool] = lambda: False,
    work: Callable[[Job], Reports] = reports,
) -> deque[Job]:
    """Trials report in turn at so many places, to the end or until that holds; what runs then."""
    running: deque[tuple[Job, Reports]] = deque()
    while not until():
        while len(running) < slots and (job := stream.next()):
            running.append((job, work(job)))
        if not running:
            break
        job, left = running.popleft()
        report = next(left)
        if not stream.report(job, log.plain(report)):
            if report["status"] == BROKEN:
                stream.recover(job)
                left = work(job)
            running.append((job, left))
    return deque(job for job, _ in running)


def after(count: int) -> Callable[[], bool]:
    """`until` for `play`: so many reports later."""
    left = [count + 1]

    def over() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return over
