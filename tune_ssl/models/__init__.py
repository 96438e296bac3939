"""Encoders and heads. Networks load torch only when they are asked for by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import Problem, UserError, unknown

if TYPE_CHECKING:
    from tune_ssl.models.cvae import ConditionalVAE
    from tune_ssl.models.heads import (
        Classifier,
        ClusterClassifier,
        PerturbedClassifier,
        PredictorNetwork,
        ProbeNetwork,
        ProjectorNetwork,
        QueueNetwork,
        TargetNetwork,
        TransferClassifier,
        encoder_for,
        still_statistics,
    )
    from tune_ssl.models.teacher import Teacher

__all__ = [
    "ENCODERS",
    "TIMM",
    "Classifier",
    "ClusterClassifier",
    "ConditionalVAE",
    "PerturbedClassifier",
    "PredictorNetwork",
    "ProbeNetwork",
    "ProjectorNetwork",
    "QueueNetwork",
    "TargetNetwork",
    "Teacher",
    "TransferClassifier",
    "check_encoder",
    "encoder_for",
    "stem",
    "still_statistics",
]

ENCODERS = ("keras_cnn", "pixels", "resnet18", "resnet50", "small_cnn", "wrn_28_2")
TIMM = "timm:"
SMALL_IMAGE = 40  # pixels; up to here a 3x3 stem without pooling


def check_encoder(name: str) -> None:
    """UserError with the nearest name unless `name` is ours or a model that timm knows, with a tag of its or none."""
    if name.startswith(TIMM):
        import timm

        known = [TIMM + model for model in timm.list_models()]
        plain, _, tag = name.partition(".")
        tagged = [TIMM + model for model in timm.list_pretrained(f"{plain.removeprefix(TIMM)}.*")]
        if tag and plain in known and name not in tagged:
            raise UserError(Problem(unknown("timm model", name, [plain, *tagged]), "model.encoder"))
        if plain not in known:
            problem = unknown("timm model", name, known).split(" (known:")[0]
            raise UserError(Problem(problem + " (known: timm.list_models())", "model.encoder"))
    elif name not in ENCODERS:
        known = [*ENCODERS, TIMM + "<name>"]
        raise UserError(Problem(unknown("encoder", name, known), "model.encoder"))


def stem(choice: str, image_size: int) -> str:
    """`small` or `large`: the choice itself, or by image size where it is `auto`."""
    if choice != "auto":
        return choice
    return "small" if image_size <= SMALL_IMAGE else "large"


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = {"ConditionalVAE": "cvae", "Teacher": "teacher"}.get(name, "heads")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
