"""What the driver costs at scale: `python -m benchmarks.driver_cost [TRIALS ...]`.

For each count a search of that many trials goes the whole real way (Optuna's studies, Ray's Tuner,
the records with their fsyncs), with a trainable that only reports: 5 reports of 16 metrics, and values
of which the pruner stops next to none. Each count has a process of its own. Seconds inside the driver's calls are put
down to Optuna (what its studies do), to our disk writes, to the rest of our code, or to Ray (all the rest of
the wall-clock, waiting for the workers included). The cost of a suggestion and of a report is given for the
first and for the last tenth of the trials: does it grow with the trials that have ended?

    python -m benchmarks.driver_cost 100 1000 10000 --sampler tpe --out figures.jsonl
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPORTS = 5
EXTRAS = [f"diag/extra_{i}" for i in range(14)]
METRIC = "val/mean_class_accuracy"
STUDY = """
fixed:
  data: {{dataset: digits, num_labels: 50}}
  method: {{name: supervised}}
  budget: {{steps: 50, eval_every: 10}}
search:
  optim.lr: {{log_uniform: [1e-4, 1e-1]}}
  optim.weight_decay: {{log_uniform: [1e-5, 1e-2]}}
  optim.ema_decay: {{uniform: [0, 0.9]}}
  method.labeled_view: {{choice: [weak, strong, none]}}
study: {{num_trials: {trials}, sampler: {sampler}, scheduler: {scheduler}, finalists: 1, seeds: [0]}}
"""


def simulated_trial(config: dict[str, Any]) -> None:
    """Five reports, each trial a little better than the one before it, and no training."""
    from ray import tune

    from tune_ssl.tuning.job import Job

    job = Job.from_config(config)
    for evaluation in range(1, REPORTS + 1):
        value = 0.5 + job.number * 1e-6 + evaluation * 0.01
        metrics = {METRIC: value, "loss/total": 1 - value, **dict.fromkeys(EXTRAS, value)}
        report = {
            "status": "finished" if evaluation == REPORTS else "running",
            "stage": "train",
            "step": 10 * evaluation,
            "evaluation": evaluation,
            "metrics": metrics,
            "result": {METRIC: value, "val/accuracy": value, "val/loss": 1 - value},
            "stand_in": None,
            "images_seen": 320 * evaluation,
            "seconds": 0.0,
            "split": job.split,
        }
        tune.report({"report": json.dumps(report)})


class Clock:
    """Wall and CPU seconds of this thread by kind; what runs inside another kind counts for its own."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: dict[str, list[float]] = defaultdict(list)  # wall of each
        self.open: list[str] = []
        self.since = (0.0, 0.0)

    def turn(self, kind: str | None) -> None:
        """The time since the last turn goes to the innermost open kind; then `kind` opens, or one closes."""
        now = (time.perf_counter(), time.thread_time())
        if self.open:
            self.wall[self.open[-1]] += now[0] - self.since[0]
            self.cpu[self.open[-1]] += now[1] - self.since[1]
        self.since = now
        if kind is None:
            self.open.pop()
        else:
            self.open.append(kind)

    def wrap(self, owner: Any, name: str, kind: str, series: str | None = None) -> None:
        """Time a function or method of `owner`.

        `series` gets the length of each call, and what of it is not spent in calls of another kind.
        """
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self.turn(kind)
            own = self.wall[kind]
            try:
                return inner(*arguments, **named)
            finally:
                self.turn(None)
                if series:
                    self.calls[series].append(time.perf_counter() - began)
                    self.calls[f"{series}, its own part"].append(self.wall[kind] - own)

        setattr(owner, name, timed)


def watch(clock: Clock) -> None:
    """Timers around what Ray calls of ours, and around what we call of Optuna and of the disk."""
    import optuna

    from tune_ssl.records import log
    from tune_ssl.tuning.live_table import LiveTable
    from tune_ssl.tuning.ray_adapters import (
        Caretaker,
        Room,
        StreamScheduler,
        StreamSearcher,
        WhenStopped,
    )
    from tune_ssl.tuning.stream import JobStream

    clock.wrap(StreamSearcher, "suggest", "ours", "asked for a job")
    clock.wrap(StreamSearcher, "on_trial_complete", "ours")
    clock.wrap(StreamScheduler, "on_trial_result", "ours", "report")
    clock.wrap(StreamScheduler, "choose_trial_to_run", "ours")
    clock.wrap(StreamScheduler, "on_trial_complete", "ours")
    clock.wrap(WhenStopped, "stop_all", "ours")
    for name in ("on_trial_complete", "on_checkpoint", "on_trial_error", "on_step_end"):
        clock.wrap(Caretaker, name, "ours")
    clock.wrap(Room, "on_step_end", "ours")
    clock.wrap(LiveTable, "on_step_end", "ours")
    clock.wrap(JobStream, "next", "ours", "suggestion")
    clock.wrap(JobStream, "end", "ours", "ending")
    clock.wrap(optuna.Study, "ask", "optuna", "ask")
    clock.wrap(optuna.Study, "tell", "optuna")
    clock.wrap(optuna.Trial, "report", "optuna")
    clock.wrap(optuna.Trial, "should_prune", "optuna", "should_prune")
    clock.wrap(log, "append_all", "disk", "append")
    clock.wrap(os, "fsync", "disk", "fsync")


def measure(folder: Path, trials: int, sampler: str, scheduler: str) -> dict[str, Any]:
    """One search of `trials` simulated trials; its figures."""
    from rich.console import Console

    from tune_ssl.records import log
    from tune_ssl.records.ledger import Ledger
    from tune_ssl.study.study import load_study
    from tune_ssl.tuning import run as road

    path = folder / "study.yaml"
    path.write_text(STUDY.format(trials=trials, sampler=sampler, scheduler=scheduler))
    clock = Clock()
    watch(clock)
    spent: dict[str, float] = {}
    train_all = road.train_all

    def timed(*arguments: Any) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        train_all(*arguments)
        spent.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)

    road.train_all, road.train_job = timed, simulated_trial
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere)
        run = road.run_study(
            load_study(path), name="simulated", runs=folder / "runs", confirm=False, console=console
        )
    ended = Ledger.read(run).ended
    reports = len(log.read(run / log.HISTORY))
    assert len(ended) == trials, f"only {len(ended)} of {trials} trials ended"
    times = sorted(event["time"] for event in ended.values())
    tenth = max(1, trials // 10)
    wall = spent["wall"]
    return {
        "trials": trials,
        "reports": reports,
        "sampler": sampler,
        "scheduler": scheduler,
        "wall": wall,
        "driver_cpu": spent["cpu"],
        "ours": clock.wall["ours"],
        "optuna": clock.wall["optuna"],
        "disk": clock.wall["disk"],
        "ray": wall - sum(clock.wall.values()),
        "cpu": dict(clock.cpu),
        "fsyncs": len(clock.calls["fsync"]),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "files": {str(p.relative_to(run)): p.stat().st_size for p in run.rglob("*") if p.is_file()},
        "tenths": {
            name: [1000 * statistics.mean(part) for part in _ends(calls)]
            for name, calls in clock.calls.items()
        },
        "trial_ms": [1000 * (part[-1] - part[0]) / max(1, tenth - 1) for part in _ends(times)],
    }


def _ends(values: list[float]) -> tuple[list[float], list[float]]:
    """The first and the last tenth."""
    tenth = max(1, len(values) // 10)
    return values[:tenth], values[-tenth:]


def shown(figures: dict[str, Any]) -> str:
    """The figures of one count, in lines."""
    trials, reports, wall = figures["trials"], figures["reports"], figures["wall"]

    def share(name: str) -> str:
        return f"{name} {figures[name]:.1f} s ({1000 * figures[name] / trials:.1f} ms per trial)"

    sizes = defaultdict(int)
    for name, size in figures["files"].items():
        sizes["ray/" if name.startswith("ray") else name] += size
    kept = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in sorted(sizes.items()))
    parts = [
        part for part in figures["tenths"].items() if not part[0].startswith(("append", "fsync"))
    ]
    tenths = [("a trial, end to end", figures["trial_ms"]), *parts]
    lines = [
        f"{trials:,} trials, {reports:,} reports, sampler {figures['sampler']}, scheduler {figures['scheduler']}",
        f"  wall {wall:.1f} s, {1000 * wall / trials:.1f} ms per trial, {1000 * wall / reports:.1f} ms per "
        f"report; the driver's CPU {figures['driver_cpu']:.1f} s, "
        f"{1000 * figures['driver_cpu'] / trials:.1f} ms per trial",
        "  of the wall: " + ", ".join(map(share, ("ours", "disk", "optuna", "ray"))),
        f"  fsyncs {figures['fsyncs']}: {figures['fsyncs'] / trials:.2f} per trial",
        f"  peak memory of the driver {figures['rss_mib']:.0f} MiB",
        f"  run folder: {kept}",
        "  ms in the first and in the last tenth: "
        + ", ".join(f"{name} {first:.1f} -> {last:.1f}" for name, (first, last) in tenths),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="*", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--scheduler", default="asha")
    parser.add_argument(
        "--out", type=Path, help="append each count's figures here, one JSON a line"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        figures = measure(asked.inside, asked.trials[0], asked.sampler, asked.scheduler)
        (asked.inside / "figures.json").write_text(json.dumps(figures))
        return
    for count in asked.trials:
        with tempfile.TemporaryDirectory(prefix="tune-ssl-driver-") as folder:
            command = [sys.executable, "-m", "benchmarks.driver_cost", str(count)]
            options = ["--sampler", asked.sampler, "--scheduler", asked.scheduler]
            subprocess.run([*command, *options, "--inside", folder], check=True)
            figures = json.loads(Path(folder, "figures.json").read_text())
        print(shown(figures), flush=True)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
