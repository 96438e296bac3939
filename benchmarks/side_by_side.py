"""One search by tune-ssl, by stock Ray Tune and by plain Optuna: CPU beyond training, finished trials, best value.

The supervised method on digits with 20 labels, 40 trials, one at a time, of the same space, rungs by each one's own
rule. `CPU` is that of the command and all below it, less what the trials trained, over the trials.

    python -m benchmarks.side_by_side SEEDS       # some minutes each
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.slot_share import Meter

TRIALS, STEPS, EVERY = 40, 60, 6
METRIC = "val/mean_class_accuracy"
STUDY = f"""
fixed:
  data: {{dataset: digits, num_labels: 20, batch_size: 16}}
  method: {{name: supervised}}
  budget: {{steps: {STEPS}, eval_every: {EVERY}, eval_images: all}}
search:
  optim.lr: {{log_uniform: [3e-4, 3e-2]}}
  optim.weight_decay: {{log_uniform: [1e-5, 1e-1]}}
  method.labeled_view: {{choice: [none, weak, strong]}}
study: {{num_trials: {TRIALS}, max_concurrent: 1, seeds: [0], finalists: 1}}
"""


def reports_of(config: dict[str, Any]) -> Any:
    from tune_ssl.study.study import load_fixed
    from tune_ssl.study.trial import override
    from tune_ssl.training.loop import train

    spec = load_fixed(os.environ["STUDY"]).fixed
    return train(override(spec, {**config, "seed": int(os.environ["SEED"])}), metric=METRIC)


def ray_trial(config: dict[str, Any]) -> None:
    import torch
    from ray import tune

    torch.set_num_threads(1)
    began = time.process_time()
    for report in reports_of(config):
        tune.report({METRIC: report.metrics[METRIC], "cpu": time.process_time() - began})


def stock_ray(seed: int) -> dict[str, Any]:
    """OptunaSearch and ASHAScheduler with reused actors, else as they come."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    space = {
        "optim.lr": tune.loguniform(3e-4, 3e-2),
        "optim.weight_decay": tune.loguniform(1e-5, 1e-1),
        "method.labeled_view": tune.choice(["none", "weak", "strong"]),
    }
    tuner = tune.Tuner(
        tune.with_resources(ray_trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=TRIALS,
            max_concurrent_trials=1,
            search_alg=OptunaSearch(seed=seed),
            scheduler=ASHAScheduler(max_t=STEPS // EVERY),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    )
    ends = [result.metrics for result in tuner.fit()]
    finished = [m[METRIC] for m in ends if m["training_iteration"] == STEPS // EVERY]
    return {
        "finished": len(finished),
        "best": max(finished),
        "trained": sum(m["cpu"] for m in ends),
    }


def plain_optuna(seed: int) -> dict[str, Any]:
    """TPE and successive halving as they come, in one process."""
    import optuna
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trained = 0.0

    def objective(trial: optuna.Trial) -> float:
        nonlocal trained
        config = {
            "optim.lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
            "optim.weight_decay": trial.suggest_float("wd", 1e-5, 1e-1, log=True),
            "method.labeled_view": trial.suggest_categorical("view", ["none", "weak", "strong"]),
        }
        began = time.process_time()
        try:
            for number, report in enumerate(reports_of(config), start=1):
                trial.report(report.metrics[METRIC], number)
                if not report.last and trial.should_prune():
                    raise optuna.TrialPruned
        finally:
            trained += time.process_time() - began
        return float(report.metrics[METRIC])

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(),
    )
    study.optimize(objective, n_trials=TRIALS)
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    return {"finished": len(done), "best": study.best_value, "trained": trained}


def ours(folder: Path, seed: int) -> dict[str, Any]:
    from tune_ssl.records import log
    from tune_ssl.records.ledger import Ledger

    command = [
        sys.executable,
        "-m",
        "tune_ssl.cli.main",
        "search",
        os.environ["STUDY"],
        "--name",
        "a",
    ]
    more = [f"study.tuning_seed={os.environ['SEED']}", "--no-confirm", "--no-report"]
    subprocess.run([*command, *more], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    ends = Ledger.read(folder / "runs" / "a").ended.values()
    done = [end["value"] for end in ends if end["event"] == log.FINISHED]
    return {"finished": len(done), "best": max(done), "trained": sum(e["seconds"] for e in ends)}


def measured(kind: str, seed: int) -> dict[str, Any]:
    """The figures of one search in a process of its own, with the CPU of all processes below it."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study.yaml"
        study.write_text(STUDY)
        own = {"STUDY": str(study), "SEED": str(1000 + 7 * seed), "RAY_AIR_NEW_OUTPUT": "0"}
        environment = {**os.environ, **own}
        command = [sys.executable, "-m", "benchmarks.side_by_side", kind, str(seed), folder]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        meter = Meter(process.pid)
        out, _ = process.communicate()
        meter.over.set()
        meter.thread.join()
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        cpu = meter.samples[-1][1]
    return {**found, "cpu": cpu, "beyond": (cpu - found["trained"]) / TRIALS}


def main() -> None:
    if sys.argv[1] in ("tune-ssl", "ray", "optuna"):
        kind, seed, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
        calls = {"tune-ssl": lambda: ours(folder, seed), "ray": lambda: stock_ray(seed)}
        print(json.dumps(calls.get(kind, lambda: plain_optuna(seed))()))
        return
    rows: dict[str, list[dict[str, Any]]] = {"tune-ssl": [], "ray": [], "optuna": []}
    for seed in range(int(sys.argv[1])):
        for kind, own in rows.items():
            own.append(measured(kind, seed))
            print(seed, kind, own[-1], flush=True)
    for kind, own in rows.items():
        middle = {key: round(statistics.median(row[key] for row in own), 4) for key in own[0]}
        print(f"{kind}, medians of {len(own)}: {middle}")


if __name__ == "__main__":
    main()
