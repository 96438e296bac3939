"""What it takes to go on with a large run: `python -m benchmarks.resume_cost [TRIALS] [REPORTS]`.

Writes a run folder of so many ended trials with so many reports of 16 metrics each (10,000 x 20 if absent), then
takes it up in a process of its own: seconds and peak memory until the first new suggestion. Without Ray.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METRIC = "val/mean_class_accuracy"
STUDY = """
fixed:
  data: {{dataset: digits, num_labels: 50}}
  method: {{name: supervised}}
  budget: {{steps: {steps}, eval_every: 10}}
search:
  optim.lr: {{log_uniform: [1e-4, 1e-1]}}
  optim.weight_decay: {{log_uniform: [1e-5, 1e-2]}}
  optim.ema_decay: {{uniform: [0, 0.9]}}
  method.labeled_view: {{choice: [weak, strong, none]}}
study: {{num_trials: {trials}, finalists: 1, seeds: [0]}}
"""


def write_run(folder: Path, trials: int, reports: int) -> Path:
    """A run folder in which so many trials have ended, a third of them after all their reports."""
    from tune_ssl.records import log
    from tune_ssl.runs.folder import create
    from tune_ssl.runs.splits import check_data
    from tune_ssl.study.study import load_study

    path = folder / "study.yaml"
    path.write_text(STUDY.format(steps=10 * reports, trials=trials + 1))
    study = load_study(path)
    run = create(study, check_data(study), folder / "runs", "large", "benchmarks.resume_cost")
    draw = random.Random(0)
    events: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for number in range(trials):
        trial = f"c0-t{number:04d}"
        about = {"phase": log.SEARCH, "trial": trial, "condition": "all"}
        config = {
            "optim.lr": 10 ** draw.uniform(-4, -1),
            "optim.weight_decay": 10 ** draw.uniform(-5, -2),
            "optim.ema_decay": draw.uniform(0, 0.9),
            "method.labeled_view": draw.choice(["weak", "strong", "none"]),
        }
        begun = {"number": number, "config": config, "seed": 1000, "digest": "0" * 12}
        events.append({"event": log.STARTED, **about, **begun})
        whole = number % 3 == 0
        last = reports if whole else max(1, draw.randrange(reports))
        value = 0.0
        for evaluation in range(1, last + 1):
            value = draw.random()
            metrics = {METRIC: value, **{f"diag/{i}": value for i in range(15)}}
            line = {"trial": trial, "stage": "train", "step": 10 * evaluation, "seconds": 1.0}
            history.append({**line, "metrics": metrics})
        ended = {"step": 10 * last, "value": value, "metrics": {METRIC: value}, "seconds": 1.0}
        events.append({"event": log.FINISHED if whole else log.STOPPED, **about, **ended})
    log.append_all(run / log.HISTORY, history)
    log.append_all(run / log.TRIALS, events)
    return run


def take_up(runs: Path) -> dict[str, float]:
    """Seconds of each part until the first new suggestion, and the peak memory."""
    marks = [time.perf_counter()]

    def mark() -> float:
        marks.append(time.perf_counter())
        return marks[-1] - marks[-2]

    from tune_ssl.records.ledger import Ledger
    from tune_ssl.runs.folder import reopen
    from tune_ssl.runs.splits import check_data
    from tune_ssl.tuning.run import open_run, searching
    from tune_ssl.tuning.stream import JobStream

    figures = {"imports": mark()}
    run, study = reopen(runs, "large")
    figures["study and check of the records"] = mark()
    ledger = Ledger.glance(run)
    figures["ledger"] = mark()
    context = open_run(run, study, check_data(study), ledger, print)
    figures["data and splits"] = mark()
    stream = JobStream(context, searching(context))
    figures["history and Optuna study"] = mark()
    job = stream.next()
    figures["suggestion"] = mark()
    assert job is not None and job.number == len(ledger.ended)
    figures["all"] = marks[-1] - marks[0]
    figures["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="?", type=int, default=10_000)
    parser.add_argument("reports", nargs="?", type=int, default=20)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(take_up(asked.inside)))
        return
    with tempfile.TemporaryDirectory(prefix="tune-ssl-resume-") as folder:
        run = write_run(Path(folder), asked.trials, asked.reports)
        size = sum(path.stat().st_size for path in run.iterdir()) / 2**20
        command = [sys.executable, "-m", "benchmarks.resume_cost", "--inside", str(run.parent)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"{asked.trials:,} trials, up to {asked.reports} reports each, {size:.0f} MiB of records")
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        print(f"{name:32}{value:10.2f}")


if __name__ == "__main__":
    main()
