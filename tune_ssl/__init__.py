"""tune-ssl: search, ablate and report semi-supervised image classification on Ray Tune.

What scripts and methods of your own need, all from here:

    from tune_ssl import load_study, train

    for report in train(load_study("search_spaces/fixmatch.yaml").fixed):
        print(report.step, report.metrics["val/accuracy"])

The names load what they need on first use: importing tune_ssl loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_ssl.base.spec import LossSpec, MethodSpec, ModelSpec, OptimPart, SupervisedLossSpec
    from tune_ssl.data.batch import Balance, Batch, Sample, Task
    from tune_ssl.methods.base import Method, Network, Prediction, Ratio, Stage, StepOutput
    from tune_ssl.models import Classifier
    from tune_ssl.study.study import load_study
    from tune_ssl.training.loop import train
    from tune_ssl.tuning.run import run_study

__version__ = "0.1.0"
__all__ = [
    "Balance",
    "Batch",
    "Classifier",
    "LossSpec",
    "Method",
    "MethodSpec",
    "ModelSpec",
    "Network",
    "OptimPart",
    "Prediction",
    "Ratio",
    "Sample",
    "Stage",
    "StepOutput",
    "SupervisedLossSpec",
    "Task",
    "load_study",
    "run_study",
    "train",
]
_HOMES = {
    "tune_ssl.base.spec": (
        "LossSpec",
        "MethodSpec",
        "ModelSpec",
        "OptimPart",
        "SupervisedLossSpec",
    ),
    "tune_ssl.data.batch": ("Balance", "Batch", "Sample", "Task"),
    "tune_ssl.methods.base": ("Method", "Network", "Prediction", "Ratio", "Stage", "StepOutput"),
    "tune_ssl.models": ("Classifier",),
    "tune_ssl.study.study": ("load_study",),
    "tune_ssl.training.loop": ("train",),
    "tune_ssl.tuning.run": ("run_study",),
}


if not TYPE_CHECKING:  # or a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
