"""How well a search finds the best of recorded configs, and what that costs: replays of whole learning curves.

    python -m benchmarks.search_quality record METHOD...    # trains, for half an hour on 2 cores; goes on where it was
    python -m benchmarks.search_quality                     # replays

`record` trains CONFIGS configs of a method's own search space, and its defaults, to their end with each of SEEDS on
digits with 20 labels, and keeps the validation value of each evaluation in benchmarks/curves.jsonl.gz.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import torch

from tune_ssl.search.rebuild import distribution
from tune_ssl.study.domains import domain
from tune_ssl.study.study import load_fixed
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.training.loop import Collapsed, Diverged, train

CURVES = Path(__file__).with_name("curves.jsonl.gz")
METHODS = ("supervised", "fixmatch", "soft_kmeans")
CONFIGS, SEEDS = 160, (0, 1, 2)
METRIC = "val/mean_class_accuracy"
FIXED = (
    *("data.dataset=digits", "data.num_labels=20", "data.batch_size=16", "data.mu=4"),
    *("budget.steps=200", "budget.eval_every=10", "budget.eval_images=all"),
)


def fixed_spec(method: str) -> TrialSpec:
    """What all recorded trials of a method have in common."""
    return load_fixed(None, [f"method.name={method}", *FIXED]).fixed


def space(method: str) -> dict[str, Any]:
    """key -> its domain, of what a comparison searches of the method"""
    from tune_ssl.methods import find_method

    return {key: domain(leaf) for key, leaf in find_method(method).searched.items()}


def configs(method: str) -> list[dict[str, Any]]:
    """The recorded configs: the method's defaults, and CONFIGS random ones."""
    kinds = {key: distribution(one) for key, one in space(method).items()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    nested = fixed_spec(method).model_dump()
    defaults = {}
    for key in kinds:
        value: Any = nested
        for part in key.split("."):
            value = value[part]
        defaults[key] = value
    return [defaults, *(study.ask(kinds).params for _ in range(CONFIGS))]


def curve(spec: TrialSpec) -> tuple[str, list[float]]:
    """How a training ends, and the validation value of each of its evaluations."""
    values: list[float] = []
    try:
        for report in train(spec, metric=METRIC):
            values.append(round(report.metrics[METRIC], 5))
    except Diverged:
        return "diverged", values
    except Collapsed:
        return "collapsed", values
    return "finished", values


def read_curves() -> list[dict[str, Any]]:
    with gzip.open(CURVES, "rt") as file:
        return [json.loads(line) for line in file]


def record(methods: list[str]) -> None:
    """Train what is not recorded yet of these methods; each trial is kept as soon as it has ended."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    have = read_curves() if CURVES.exists() else []
    known = {(one["method"], one["number"], one["seed"]) for one in have}
    for method, number, seed, config in _wanted(methods):
        if (method, number, seed) in known:
            continue
        began = time.perf_counter()
        ending, values = curve(override(fixed_spec(method), {**config, "seed": seed}))
        line = {
            "method": method,
            "number": number,
            "seed": seed,
            "config": config,
            "ending": ending,
            "values": values,
            "seconds": round(time.perf_counter() - began, 2),
        }
        with gzip.open(CURVES, "at") as file:
            file.write(json.dumps(line) + "\n")


def _wanted(methods: list[str]) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    for method in methods:
        for number, config in enumerate(configs(method)):
            for seed in SEEDS:
                yield method, number, seed, config


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        record(sys.argv[2:] or list(METHODS))
