"""What a trial costs beyond its training, in a search of 20 tiny trials with one at a time.

A trial's own seconds (from its last report) are training; the rest of the wall-clock between the
first trial's start and the last one's end is overhead: Ray, Optuna, the records, the checkpoints.
`over all` counts everything from the command to its end; `steady` leaves out the first trial, which
waits for a worker to import torch.

    python -m benchmarks.trial_overhead
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tune_ssl.records import log

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 50, batch_size: 8}
  method: {name: supervised}
  budget: {steps: 20, eval_every: 10}
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
study: {num_trials: 20, scheduler: none, max_concurrent: 1, seeds: [0]}
"""


def one_search(folder: Path, number: int) -> tuple[float, float]:
    """(seconds per trial beyond training over all, and steady: the median gap between trials)"""
    (folder / "tiny.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "tune_ssl.cli.main", "search", "tiny.yaml", "--no-confirm"]
    began = time.time()
    subprocess.run(
        [*command, "--no-report", "--name", f"tiny-{number}"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ},
    )
    wall = time.time() - began
    events = log.read(folder / "runs" / f"tiny-{number}" / log.TRIALS)
    ends = [e for e in events if e["event"] == log.FINISHED]
    assert len(ends) == 20, [e["event"] for e in events]
    over_all = (wall - sum(e["seconds"] for e in ends)) / len(ends)
    gaps = [b["time"] - a["time"] - b["seconds"] for a, b in pairwise(ends)]
    return over_all, statistics.median(gaps)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = [one_search(Path(folder), number) for number in range(3)]
    over_all, steady = (statistics.median(column) for column in zip(*figures, strict=True))
    print("20 trials of 20 steps, median of 3 searches; seconds per trial beyond its training")
    print(f"over all (start-up of Ray and torch included)  {over_all:.2f}")
    print(f"steady (from one trial's end to the next)      {steady:.3f}")


if __name__ == "__main__":
    main()
