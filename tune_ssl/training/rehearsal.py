"""One real step and one evaluation of each stage on a few images: whether a spec trains, before anything does.

`known_failure` says in one line what else would be a traceback, in a rehearsal as in training.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.data.loading import load_data
from tune_ssl.data.sets import Sets, UnlabeledSet
from tune_ssl.data.store import Store
from tune_ssl.methods.base import Stage
from tune_ssl.models import TIMM
from tune_ssl.models.fit import check_fit
from tune_ssl.models.weights import statistics
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.device import pick_device, pick_precision, settings_of
from tune_ssl.training.evaluation import evaluate
from tune_ssl.training.guard import Collapsed, Diverged
from tune_ssl.training.out_of_memory import REMEDY, out_of_memory
from tune_ssl.training.stepper import Stepper

FEW = 64  # images of a set, at least; more where a step needs them
EVALUATED = 8

ONE_VALUE = "Expected more than 1 value per channel"  # torch's BatchNorm
TOO_SMALL = ("Calculated padded input size", "Output size is too small", "Kernel size can't be")


def rehearse(spec: TrialSpec, store: Store) -> None:
    """Build each stage's network, take one optimizer step with it, and evaluate it on some validation images.

    Raises:
        UserError: what training would fail with, in one line.
    """
    with settings_of(spec.compute):
        _rehearse(spec, store)


def _rehearse(spec: TrialSpec, store: Store) -> None:
    device = pick_device(spec.compute.device)
    data = load_data(
        spec.data, spec.split_seed, device, partial(statistics, spec.model), spec.views, store
    )
    data.precision = pick_precision(spec.compute, device)
    if spec.model.encoder.startswith(TIMM):
        check_fit(spec.model, data.task)
    few = copy.copy(data)
    few.sets = _some(data.sets, max(FEW, spec.data.batch_size * spec.data.mu))
    torch.manual_seed(spec.seed)
    network: nn.Module | None = None
    for stage in spec.stages():
        try:
            network = stage.build(data.task, spec.model, network).to(device)
            if stage.fits:
                continue
            if stage.contrasts:  # against all images that there are
                Stepper(spec, stage, network, data, 1, 0)
            stepper = Stepper(spec, stage, network, few, 1, 0)
            if type(stage).start is not Stage.start:
                stepper.start()
            stepper.advance()
            stepper.take_means()
            evaluate(stage, stepper.averaged, few, few.sets.validation)
            network = stepper.averaged.requires_grad_(True)
        except Collapsed:  # of a network that has not learned anything yet
            network = stepper.averaged.requires_grad_(True)
        except Diverged as error:
            raise UserError(Problem(f"cannot train: {error}", f"stage {stage.name}")) from None
        except Exception as error:
            known = known_failure(error, spec)
            if known is None:
                text = f"cannot train: {type(error).__name__}: {first_line(error)}"
                known = UserError(Problem(text, f"stage {stage.name}"))
            raise known from error


def compiler_failure(error: Exception, spec: TrialSpec) -> UserError | None:
    """The line for a network that torch cannot compile on this machine."""
    if not spec.compute.compile:
        return None
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    why = first_line(getattr(error, "inner_exception", error)).rstrip(".")
    text = f"is true, but torch.compile fails on this machine: {why}; false trains without it"
    return UserError(Problem(text, "compute.compile"))


def known_failure(error: Exception, spec: TrialSpec) -> UserError | None:
    """The line that a failure of a step deserves, where it is known what causes it."""
    if isinstance(error, UserError):
        return error
    if compiler := compiler_failure(error, spec):
        return compiler
    says = str(error)
    if ONE_VALUE in says:
        parts = spec.compute.accumulate
        text = f"is {spec.data.batch_size}, but {spec.model.encoder} normalises by batches: it needs at least 2 images"
        if parts > 1:
            text += f" in each of {parts} parts (compute.accumulate)"
        return UserError(Problem(text, "data.batch_size"))
    if any(text in says for text in TOO_SMALL):
        text = f"is {spec.model.encoder}, for which images of {_side(spec)} are too small"
        return UserError(Problem(text, "model.encoder"))
    if out_of_memory(error):
        return UserError(Problem(f"out of memory: {first_line(error).rstrip('.')}; {REMEDY}"))
    return None


def _side(spec: TrialSpec) -> str:
    size = spec.data.image_size
    return f"{size} px" if size else "this size (data.image_size)"


def _some(sets: Sets, count: int) -> Sets:
    """A few images of each set."""
    rows: Any = np.arange(min(count, len(sets.unlabeled)))
    unlabeled = UnlabeledSet(sets.unlabeled.images.at(rows), sets.unlabeled.hidden_labels[rows])
    return Sets(sets.labeled.some(count), unlabeled, sets.validation.some(EVALUATED))
