"""The training loop: `train(spec)` yields a Report at every evaluation. It knows neither Ray nor any method.

for report in train(spec):
    print(report.step, report.metrics["val/mean_class_accuracy"])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import nn

from tune_ssl.data.loading import Data, load_data
from tune_ssl.data.sets import LabeledSet
from tune_ssl.evaluation import evaluate
from tune_ssl.methods import find_method
from tune_ssl.methods.base import Stage
from tune_ssl.spec import digest
from tune_ssl.stepping import Diverged, Stepper, pick_device
from tune_ssl.trial import TrialSpec

__all__ = ["Diverged", "Report", "Trained", "train"]

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

    `step`, `evaluation` (from 1) and `images_seen` run on over the stages. On the `last` report, `trained` and `result`
    are the weights and validation values that the checkpoint rule chose. `snapshot()` is all that
    `train(spec, resume=...)` needs; take it before asking for the next report.
    """

    stage: str
    step: int
    evaluation: int
    last: bool
    metrics: dict[str, float]
    result: dict[str, float]
    images_seen: int
    seconds: float
    trained: Trained
    snapshot: Callable[[], dict[str, Any]]


def train(
    spec: TrialSpec,
    *,
    resume: dict[str, Any] | None = None,
    metric: str = METRIC,
    mode: str = "max",
) -> Iterator[Report]:
    """Train `spec` stage by stage, yielding at every evaluation and at the end of each stage.

    `resume` is an earlier report's snapshot; a resumed CPU run is bit-identical to one that was
    never interrupted. `metric` and `mode` say what `budget.checkpoint: best` keeps.

    Raises:
        Diverged: a loss term or the gradient is NaN or infinite.
        UserError: the data is missing, or cannot be split as asked.
        ValueError: `resume` was written by another spec.
    """
    at_stage, images_seen, seconds_before = 0, 0, 0.0
    if resume is not None:
        if resume["spec"] != digest(spec):
            raise ValueError(f"the checkpoint is of spec {resume['spec']}, not {digest(spec)}")
        at_stage, images_seen = resume["stage"], resume["images_seen"]
        seconds_before = resume["seconds"]
    began = time.perf_counter()

    # Data, and the random stream that initial weights come from
    device = pick_device(spec.compute.device)
    data = load_data(spec.data, spec.split_seed, device)
    torch.manual_seed(spec.seed)

    steps_before, evaluations_before, network = 0, 0, None
    every = spec.budget.eval_every
    steps_of = spec.stage_steps()
    for index, stage in enumerate(find_method(spec.method.name).stages(spec.method)):
        steps = steps_of[stage.name]
        network = stage.build(data.task, spec.model, network).to(device)
        if index < at_stage:  # finished before the interruption: its weights are in the checkpoint
            steps_before += steps
            evaluations_before += ceil(steps / every)
            continue
        stepper = Stepper(spec, stage, network, data, steps, steps_before)
        best = Best(metric, mode) if spec.budget.checkpoint == "best" else None
        if resume is not None and index == at_stage:
            stepper.load(resume["stepper"])
            if best:
                best.load(resume["best"])
        else:
            stepper.start()

        while stepper.step < steps:
            # One optimizer step
            images_seen += stepper.loader.images_per_step
            try:
                stepper.advance()
                if stepper.step % every and stepper.step < steps:
                    continue
                means = stepper.take_means()
            except Diverged as error:
                error.images_seen = images_seen
                error.seconds = seconds_before + time.perf_counter() - began
                raise

            # Evaluate
            trained = Trained(stage, stepper.averaged, data)
            result = trained.evaluate(data.sets.validation, "val")
            metrics = {**means, **result}
            if best:
                best.offer(stepper.averaged, result)
                if stepper.step == steps:
                    result = best.restore(stepper.averaged)

            # Report
            seconds = seconds_before + time.perf_counter() - began
            progress = {"stage": index, "images_seen": images_seen, "seconds": seconds}

            def snapshot(
                stepper: Stepper = stepper, best: Best | None = best, progress: Any = progress
            ) -> dict[str, Any]:
                kept = best.state() if best else None
                return {**progress, "spec": digest(spec), "stepper": stepper.state(), "best": kept}

            last = stepper.step == steps and index == len(steps_of) - 1
            step = steps_before + stepper.step
            evaluation = evaluations_before + ceil(stepper.step / every)
            yield Report(
                stage.name,
                step,
                evaluation,
                last,
                metrics,
                result,
                images_seen,
                seconds,
                trained,
                snapshot,
            )
        network = stepper.averaged.requires_grad_(True)
        steps_before += steps
        evaluations_before += ceil(steps / every)


class Best:
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
