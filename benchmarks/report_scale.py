"""What a report costs at scale: `python -m benchmarks.report_scale [TRIALS ...]`.

For each count of search trials a run folder is made (100 reports of 30 metrics each, 4 conditions,
10 confirmed seeds), then loaded and rendered in fresh processes. Prints the file sizes, the seconds of
loading alone and of the whole report (on the clock, and of CPU: other work on the machine slows the
clock only), the peak memory of that process, and the page's size.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPORTS, METRICS, CONDITIONS, SEEDS = 100, 30, 4, 10
METRIC = "val/mean_class_accuracy"
NAMED = [METRIC, "val/accuracy", "val/loss", "loss/total", "loss/supervised", "loss/cluster"]
NAMED += ["weight/supervised", "weight/cluster", "diag/mask_rate", "diag/cluster_entropy", "lr"]
NAMES = [*NAMED, *(f"val/extra_{i}" for i in range(METRICS - len(NAMED)))]
SEARCH = {
    "optim.lr": {"log_uniform": [1e-4, 1e-1]},
    "losses.cluster.weight": {"log_uniform": [0.01, 10]},
    "losses.cluster.ramp_up": {"uniform": [0, 0.8]},
    "method.labeled_view": {"choice": ["weak", "strong"]},
}
CHILD = """
import resource, sys, time
from pathlib import Path
began = time.perf_counter()
if sys.argv[1] == "load":
    from analysis.read.load import load_runs
    load_runs([sys.argv[2]])
else:
    from analysis.report.report import write_report
    write_report([sys.argv[2]], Path(sys.argv[3]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="*", type=int, default=[100, 1_000, 10_000])
    print("trials  records | load: wall    CPU  peak GiB | report: wall    CPU  peak GiB    page")
    for count in parser.parse_args().trials:
        with tempfile.TemporaryDirectory(prefix="tune-ssl-scale-") as folder:
            run = write_run(Path(folder) / "run", count)
            size = sum(path.stat().st_size for path in run.glob("*.jsonl")) / 2**20
            load = measured("load", run)
            whole = measured("report", run, Path(folder) / "out")
            page = (Path(folder) / "out" / "index.html").stat().st_size / 2**20
        print(f"{count:6,d} {size:5.0f} MiB | {load}   | {whole} {page:5.1f} MiB", flush=True)


def measured(what: str, *arguments: Path) -> str:
    """Seconds on the clock, seconds of CPU, and peak GiB of a fresh process, imports included."""
    command = [sys.executable, "-c", CHILD, what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, cpu, peak = map(float, done.stdout.split()[-3:])
    return f"{wall:9.1f}s {cpu:6.1f}s {peak:9.2f}"


def write_run(run: Path, count: int) -> Path:
    """A run folder with `count` search trials over four conditions, as a search would leave it."""
    from ruamel.yaml import YAML

    rng = random.Random(0)
    run.mkdir()
    conditions = [f"data.num_labels={labels}" for labels in (20, 50, 100, 200)[:CONDITIONS]]
    with open(run / "study.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(described(conditions, count), file)
    with (
        open(run / "trials.jsonl", "w", encoding="utf-8") as events,
        open(run / "history.jsonl", "w", encoding="utf-8") as history,
        open(run / "splits.jsonl", "w", encoding="utf-8") as splits,
    ):
        for number in range(count):
            index = number % CONDITIONS
            trial = f"c{index}-t{number // CONDITIONS:04d}"
            write_trial(events, history, rng, trial, conditions[index], "search", number, 1000)
        for index, condition in enumerate(conditions):
            config = {"optim.lr": 0.01}
            locked = {"event": "locked", "phase": "confirm", "trial": f"c{index}-t0000"}
            rest = {"digest": "d", "config": config, "value": 0.9, "rule": "", "ties": 0}
            put(events, condition=condition, half_width=0.1, **locked, **rest)
            for seed in range(SEEDS):
                put(splits, condition=condition, seed=seed, digest=f"s{seed}")
                name = f"c{index}-confirm-s{seed}"
                write_trial(events, history, rng, name, condition, "confirm", seed, seed)
    return run


def described(conditions: list[str], count: int) -> dict:
    """What study.yaml says."""
    return {
        **{"schema": 1, "name": "scale", "method": "kmeans", "metric": METRIC, "mode": "max"},
        **{"created": "2026-01-01T00:00:00", "command": "tune-ssl search", "source": "s.yaml"},
        "dataset": {"name": "digits", "digest": "d", "classes": [str(i) for i in range(10)]},
        "conditions": [
            {"id": c, "values": {}, "labels": int(c.split("=")[1]), "validation": 300}
            for c in conditions
        ],
        "study": {"search": SEARCH, "study": {"num_trials": count // CONDITIONS, "seeds": SEEDS}},
    }


def write_trial(
    events,
    history,
    rng: random.Random,
    trial: str,
    condition: str,
    phase: str,
    number: int,
    seed: int,
) -> None:
    """One trial: an early stop for half of the search, a few that diverge."""
    config = {
        "optim.lr": 10 ** rng.uniform(-4, -1),
        "losses.cluster.weight": 10 ** rng.uniform(-2, 1),
        "losses.cluster.ramp_up": rng.uniform(0, 0.8),
        "method.labeled_view": rng.choice(["weak", "strong"]),
    }
    about = {"phase": phase, "trial": trial, "condition": condition}
    put(events, event="started", number=number, config=config, seed=seed, digest="d", **about)
    metrics: dict = {}
    for step in range(1, REPORTS + 1):
        metrics = {name: rng.random() for name in NAMES}
        put(history, trial=trial, stage="train", step=step, metrics=metrics, seconds=0.1 * step)
    ending = "finished"
    if phase == "search" and number % 2:
        ending = "stopped_early" if number % 20 != 1 else "diverged"
    result = {
        METRIC: metrics[METRIC],
        "test/accuracy": 0.9,
        "test/mean_class_accuracy": rng.random(),
    }
    rest = {"step": REPORTS, "seconds": 10.0, "images_seen": 6400, "reason": None}
    value = metrics[METRIC] if ending == "finished" else None
    put(events, event=ending, value=value, metrics=result, **rest, **about)


def put(file, **record) -> None:
    file.write(json.dumps({"schema": 1, "time": time.time(), **record}) + "\n")


if __name__ == "__main__":
    main()
