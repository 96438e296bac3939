"""The training loop: `train(spec)` yields a Report at every evaluation. It knows neither Ray nor any method.

for report in train(spec):
    print(report.step, report.metrics["val/mean_class_accuracy"])
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import nn

from tune_ssl.base.spec import digest
from tune_ssl.data.loading import Data, load_data, stream
from tune_ssl.data.sets import LabeledSet
from tune_ssl.methods.base import Stage
from tune_ssl.study.shared_pretraining import sees_no_label
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.device import pick_device
from tune_ssl.training.encoder_cache import Shelf, load_weights, shelf_key
from tune_ssl.training.evaluation import evaluate
from tune_ssl.training.guard import Collapsed, Diverged
from tune_ssl.training.stepper import Stepper

__all__ = ["Collapsed", "Diverged", "Report", "Trained", "train"]

METRIC = "val/mean_class_accuracy"


@dataclass(frozen=True)
class Trained:
    """A stage with the (averaged) weights of one evaluation, and the data they were trained on."""

    stage: Stage[Any]
    network: nn.Module
    data: Data

    def evaluate(self, on: LabeledSet, prefix: str) -> dict[str, float]:
        values = evaluate(self.stage, self.network, self.data, on)
        return {f"{prefix}/{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Report:
    """What is known at one evaluation.

    `step`, `evaluation` (from 1) and `images_seen` run on over the stages. On the `last` report, `trained`
    and `result` are the weights and validation values that the checkpoint rule chose. `stand_in` is
    what to compare trials on, in the study's mode, while `result` lacks its metric. `waited` are those of the
    `seconds` that passed while another process trained what this trial reuses. `snapshot()` is all that
    `train(spec, resume=...)` needs; take it before asking for the next report. There is none where
    the weights are those of another trial's pretraining.
    """

    stage: str
    step: int
    evaluation: int
    last: bool
    metrics: dict[str, float]
    result: dict[str, float]
    stand_in: float | None
    images_seen: int
    seconds: float
    waited: float
    trained: Trained
    snapshot: Callable[[], dict[str, Any]] | None


def train(
    spec: TrialSpec,
    *,
    resume: dict[str, Any] | None = None,
    metric: str = METRIC,
    mode: str = "max",
) -> Generator[Report, None, None]:
    """Train `spec` stage by stage, yielding at every evaluation and at the end of each stage.

    `resume` is an earlier report's snapshot; a resumed CPU run is bit-identical to one that was
    never interrupted. `metric` and `mode` say what `budget.checkpoint: best` keeps. Close it when you
    stop early: it may hold the lock of a pretrained network.

    Raises:
        Diverged: a loss term or the gradient is NaN or infinite.
        Collapsed: a diagnostic is under the floor that its stage states.
        UserError: the data is missing, or cannot be split as asked.
        ValueError: `resume` was written by another spec.
    """
    if resume is not None and resume["spec"] != digest(spec):
        raise ValueError(f"the checkpoint is of spec {resume['spec']}, not {digest(spec)}")
    before = resume or {}
    at_stage = before.get("stage", 0)
    clock = Clock(before.get("seconds", 0.0), before.get("waited", 0.0))

    # Data
    device = pick_device(spec.compute.device)
    data = load_data(spec.data, spec.split_seed, device)

    network: nn.Module | None = None
    steps_before = evaluations_before = images_before = 0
    # The key of the shelf; None as soon as a stage has seen labels
    key = "" if spec.compute.cache else None
    stages, steps_of = spec.stages(), spec.stage_steps()
    for index, stage in enumerate(stages):
        # The stage's network, whose initial weights depend on nothing but the seed
        torch.manual_seed(
            spec.seed if index == 0 else stream(spec.seed, 100 + index).initial_seed()
        )
        network = stage.build(data.task, spec.model, network).to(device)
        steps, every = steps_of[stage.name], spec.budget.eval_every
        targets = [*range(every, steps, every), steps]
        key = (
            shelf_key(spec, stage, data, key) if key is not None and sees_no_label(stage) else None
        )
        shelf = Shelf(key, targets) if key else None
        if index < at_stage:  # finished before the interruption: its weights are in the checkpoint
            steps_before += steps
            evaluations_before += len(targets)
            continue
        stepper = Stepper(spec, stage, network, data, steps, steps_before)
        best = BestWeights(metric, mode) if spec.budget.checkpoint == "best" else None
        if resume is not None and index == at_stage:
            images_before = resume["images_before"]
            stepper.load(resume["stepper"])
            if best:
                best.load(resume["best"])
        else:
            stepper.start()

        try:
            for means, reused in train_or_reuse(stepper, targets, shelf, clock):
                # Evaluate
                trained = Trained(stage, stepper.averaged, data)
                result = trained.evaluate(data.sets.validation, "val")
                metrics = {**means, **result}
                if best:
                    best.offer(stepper.averaged, result)
                    if stepper.step == steps:
                        result = best.restore(stepper.averaged) or result

                # Report
                stand_in = metrics.get(f"val/{stage.stand_in}")  # more is better
                spent = {"seconds": clock.seconds, "waited": clock.waited}
                progress = {"stage": index, "images_before": images_before, **spent}

                def snapshot(
                    stepper: Stepper = stepper,
                    best: BestWeights | None = best,
                    progress: Any = progress,
                ) -> dict[str, Any]:
                    kept = best.state() if best else None
                    spec_and_state = {"spec": digest(spec), "stepper": stepper.state()}
                    return {**progress, **spec_and_state, "best": kept}

                yield Report(
                    stage=stage.name,
                    step=steps_before + stepper.step,
                    evaluation=evaluations_before + ceil(stepper.step / every),
                    last=stepper.step == steps and index == len(stages) - 1,
                    metrics=metrics,
                    result=result,
                    stand_in=-stand_in if stand_in and mode == "min" else stand_in,
                    images_seen=images_before + stepper.images_seen,
                    **spent,
                    trained=trained,
                    snapshot=None if reused else snapshot,
                )
        except (Diverged, Collapsed) as error:
            error.images_seen = images_before + stepper.images_seen
            error.seconds, error.waited = clock.seconds, clock.waited
            raise
        network = stepper.averaged.requires_grad_(True)
        steps_before += steps
        evaluations_before += len(targets)
        images_before += stepper.images_seen


def train_or_reuse(
    stepper: Stepper, targets: list[int], shelf: Shelf | None, clock: Clock
) -> Iterator[tuple[dict[str, float], bool]]:
    """At each of the steps `targets`: the means since the last one, and whether another trial trained them.

    With a shelf, one process trains, and the others wait for the weights that it puts there.
    """
    with contextlib.ExitStack() as held:
        kept = None
        if shelf and stepper.step < stepper.steps:
            kept = shelf.open()
            if kept is None:
                held.enter_context(shelf.lock())
                clock.waited += shelf.waited
                kept = shelf.open()  # now it may be complete, by whoever had the lock
        if kept:
            held.close()
        for target in targets:
            if target <= stepper.step:  # before an interruption
                continue
            if kept:
                means = load_weights(kept[target], stepper.averaged)
                stepper.step = target
            else:
                means = stepper.advance_to(target)
                if shelf:
                    shelf.put(target, stepper.averaged, means)
            yield means, kept is not None


@dataclass
class Clock:
    """The seconds of a trial, its earlier attempts included; `waited` are those for another's pretraining."""

    before: float
    waited: float
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began


class BestWeights:
    """Keeps the weights with the best validation value of a stage (the first one of equals)."""

    def __init__(self, metric: str, mode: str) -> None:
        self.metric, self.sign = metric, 1 if mode == "max" else -1
        self.values: dict[str, float] = {}
        self.weights: dict[str, Any] = {}

    def offer(self, network: nn.Module, values: dict[str, float]) -> None:
        value = values.get(self.metric)
        if value is None or value != value:
            return
        if not self.values or self.sign * value > self.sign * self.values[self.metric]:
            self.values = values
            self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def restore(self, network: nn.Module) -> dict[str, float]:
        if self.weights:
            network.load_state_dict(self.weights)
        return self.values

    def state(self) -> dict[str, Any]:
        return {"values": self.values, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        self.values, self.weights = state["values"], state["weights"]
