"""The training loop: `train(spec)` yields a Report at every evaluation. It knows neither Ray nor any method.

for report in train(spec):
    print(report.step, report.metrics["val/mean_class_accuracy"])
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Container, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import nn

from tune_ssl.base.spec import digest
from tune_ssl.data.loading import Data, load_data, stream
from tune_ssl.data.sets import LabeledSet, UnlabeledSet
from tune_ssl.data.store import Store
from tune_ssl.methods import find_method
from tune_ssl.methods.base import Stage
from tune_ssl.models import TIMM
from tune_ssl.models.fit import check_fit
from tune_ssl.models.heads import encoded
from tune_ssl.models.weights import statistics
from tune_ssl.study.shared_pretraining import sees_no_label
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.device import pick_device, pick_precision, settings_of
from tune_ssl.training.encoder_cache import Shelf, load_weights, shelf_key
from tune_ssl.training.evaluation import evaluate, evaluate_one, outputs
from tune_ssl.training.features import FrozenFeatures
from tune_ssl.training.guard import Collapsed, Diverged, TooLong
from tune_ssl.training.rehearsal import compiler_failure, known_failure
from tune_ssl.training.stepper import Stepper

__all__ = ["Collapsed", "Diverged", "Report", "TooLong", "Trained", "train"]

RAW = "raw"  # as prefix: of the weights as the last step left them, without averaging
IMAGES = "val/images"  # how many an evaluation looked at
METRIC = "val/mean_class_accuracy"
EVALUATION_SHARE = 0.05  # of training's cost that evaluations on the way may add
LEAST_EVALUATED = 500  # validation images, of which a 95 % half-width is 6 points


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
    `seconds` that passed while another process trained what this trial reuses, `reused` the steps so far that
    another trial trained. `snapshot()` is all that
    `train(spec, resume=...)` needs; take it before asking for the next report. There is none where
    the weights are those of another trial's pretraining. `notes` say at a stage's end what taught nothing in it.
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
    reused: int
    trained: Trained
    snapshot: Callable[[], dict[str, Any]] | None
    notes: tuple[str, ...] = ()


def train(
    spec: TrialSpec,
    *,
    resume: dict[str, Any] | None = None,
    metric: str = METRIC,
    mode: str = "max",
    whole_at: Container[int] = (),
    store: Store | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> Generator[Report, None, None]:
    """Train `spec` stage by stage, yielding at every evaluation and at the end of each stage.

    `resume` is an earlier report's snapshot; a resumed CPU run is bit-identical to one that was
    never interrupted. `metric` and `mode` say what `budget.checkpoint: best` keeps. An evaluation on the way looks at
    `budget.eval_images` (`val/images` says at how many); at the end of a stage, for `checkpoint: best`, and at the
    evaluations `whole_at`, counted from 1, it looks at the whole validation set. `store` has the images, where they are
    pinned: else they are looked for as `spec.data` says. `on_step` is called after each step with its stage and number,
    and only looks on. Close it when you stop early: it may hold the lock of a
    pretrained network. torch's settings of `spec.compute` hold until then.

    Raises:
        Diverged: a loss term or the gradient is NaN or infinite.
        Collapsed: a diagnostic is under the floor that its stage states.
        TooLong: it has trained for more than `budget.max_minutes`; asked at each evaluation but the last.
        UserError: the data is missing, or cannot be split as asked; the encoder cannot be compiled here.
        ValueError: `resume` was written by another spec.
    """
    try:
        with settings_of(spec.compute):
            yield from _train(spec, resume, metric, mode, whole_at, store, on_step)
    except RuntimeError as error:
        known = compiler_failure(error, spec)
        if known is None:
            raise
        raise known from error


def _train(
    spec: TrialSpec,
    resume: dict[str, Any] | None,
    metric: str,
    mode: str,
    whole_at: Container[int],
    store: Store | None,
    on_step: Callable[[str, int], None] | None,
) -> Iterator[Report]:
    if resume is not None and resume["spec"] != digest(spec):
        raise ValueError(f"the checkpoint is of spec {resume['spec']}, not {digest(spec)}")
    before = resume or {}
    at_stage = before.get("stage", 0)
    clock = Clock(before.get("seconds", 0.0), before.get("waited", 0.0))

    # Data
    device = pick_device(spec.compute.device)
    known = partial(statistics, spec.model)
    data = load_data(spec.data, spec.split_seed, device, known, spec.views, store)
    data.precision = pick_precision(spec.compute, device)
    if spec.model.encoder.startswith(TIMM):  # not each takes images of each size
        check_fit(spec.model, data.task)

    network: nn.Module | None = None
    steps_before = evaluations_before = images_before = reused_steps = 0
    # The key of the shelf; None as soon as a stage has seen labels
    key = "" if spec.compute.cache else None
    stages, steps_of = spec.stages(), spec.stage_steps()
    kinds = find_method(spec.method.name).stage_types
    for index, stage in enumerate(stages):
        # The stage's network, whose initial weights depend on nothing but the seed and the stage: where a
        # pretraining is left out, what comes after it begins as it would have
        number = kinds.index(type(stage)) if type(stage) in kinds else index
        torch.manual_seed(
            spec.seed if number == 0 else stream(spec.seed, 100 + number).initial_seed()
        )
        network = stage.build(data.task, spec.model, network).to(device)
        seen = data
        if stage.on_features and is_frozen(network):
            encoder: Any = network.encoder
            features = FrozenFeatures(spec, encoder.eval(), data, key)
            clock.waits.append(features)
            seen = data.seen_as(features)
        steps, every = steps_of[stage.name], spec.budget.eval_every
        targets = [*range(every, steps, every), steps]
        key = (
            shelf_key(spec, stage, data, key) if key is not None and sees_no_label(stage) else None
        )
        shelf = Shelf(key, targets) if key else None
        if stage.fits:
            images_before += fit_at_once(stage, network, seen)
            steps_before, evaluations_before = steps_before + 1, evaluations_before + 1
            trained = Trained(stage, network, seen)
            result = trained.evaluate(seen.sets.validation, "val")
            yield Report(
                stage=stage.name,
                step=steps_before,
                evaluation=evaluations_before,
                last=index == len(stages) - 1,
                metrics={**result, IMAGES: len(seen.sets.validation)},
                result=result,
                stand_in=None,
                images_seen=images_before,
                seconds=clock.seconds,
                waited=clock.waited,
                reused=reused_steps,
                trained=trained,
                snapshot=None,
            )
            continue
        if index < at_stage:  # finished before the interruption: its weights are in the checkpoint
            steps_before += steps
            evaluations_before += len(targets)
            continue
        stepper = Stepper(spec, stage, network, seen, steps, steps_before)
        stepper.on_step = on_step
        some = seen.sets.validation.some(images_evaluated(spec, stepper))
        best = BestWeights(metric, mode) if spec.budget.checkpoint == "best" else None
        if resume is not None and index == at_stage:
            images_before, reused_steps = resume["images_before"], resume.get("reused", 0)
            stepper.load(resume["stepper"])
            if best:
                best.load(resume["best"])
        elif type(stage).start is not Stage.start:  # else nothing depends on data
            stepper.start()

        try:
            for means, reused in train_or_reuse(stepper, targets, shelf, clock):
                reused_steps += reused
                # Evaluate
                evaluation = evaluations_before + ceil(stepper.step / every)
                whole = stepper.step == steps or best or evaluation in whole_at
                on = seen.sets.validation if whole else some
                trained = Trained(stage, stepper.averaged, seen)
                result = trained.evaluate(on, "val")
                metrics = {**means, **result, IMAGES: len(on)}
                if stepper.averaged is not stepper.network and not reused:
                    name = metric.partition("/")[2]
                    raw = evaluate_one(name, stage, stepper.network, seen, on)
                    metrics |= {} if raw is None else {f"{RAW}/{name}": raw}
                if best:
                    best.offer(stepper.averaged, result)
                    if stepper.step == steps:
                        result = best.restore(stepper.averaged) or result

                # Report
                stand_in = metrics.get(f"val/{stage.stand_in}")  # more is better
                spent = {"seconds": clock.seconds, "waited": clock.waited}
                progress = {"stage": index, "images_before": images_before, **spent}
                progress["reused"] = reused_steps

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
                    evaluation=evaluation,
                    last=stepper.step == steps and index == len(stages) - 1,
                    metrics=metrics,
                    result=result,
                    stand_in=-stand_in if stand_in and mode == "min" else stand_in,
                    images_seen=images_before + stepper.images_seen,
                    **spent,
                    reused=reused_steps,
                    trained=trained,
                    snapshot=None if reused else snapshot,
                    notes=tuple(stepper.idle()) if stepper.step == steps else (),
                )
                limit = spec.budget.max_minutes
                ends = stepper.step == steps and index == len(stages) - 1
                if limit and not ends and clock.seconds - clock.waited > 60 * limit:
                    raise TooLong(limit, steps_before + stepper.step)
        except (Diverged, Collapsed, TooLong) as error:
            error.images_seen = images_before + stepper.images_seen
            error.seconds, error.waited = clock.seconds, clock.waited
            error.reused = reused_steps
            raise
        except ValueError as error:
            raise known_failure(error, spec) or error from error
        network = stepper.averaged.requires_grad_(True)
        steps_before += steps
        evaluations_before += len(targets)
        images_before += stepper.images_seen


def is_frozen(network: nn.Module) -> bool:
    """Whether the network stands on an encoder of which nothing is trained, and which has weights to compute with."""
    encoder = getattr(network, "encoder", None)
    weights = [*encoder.parameters()] if isinstance(encoder, nn.Module) else []
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def images_evaluated(spec: TrialSpec, stepper: Stepper) -> int:
    """Validation images of an evaluation on the way.

    A step costs about three passes of each image that goes through the network, an evaluation one. Features cost
    nothing: then all are looked at.
    """
    wanted = spec.budget.eval_images
    if wanted == "all" or stepper.loader.on_features:
        return sys.maxsize
    if isinstance(wanted, int):
        return wanted
    between = 3 * spec.budget.eval_every * stepper.loader.views_per_step
    return max(LEAST_EVALUATED, round(EVALUATION_SHARE * between))


def fit_at_once(stage: Stage[Any], network: nn.Module, data: Data) -> int:
    """Fit a stage that is not trained in steps; returns how many images it saw."""
    sets, split = data.sets, data.split
    unlabeled: UnlabeledSet | None = sets.unlabeled if stage.unlabeled_views else None
    labeled_ND = encoded_set(network, data, sets.labeled)
    labels_N = torch.from_numpy(sets.labeled.labels)
    if unlabeled is None:
        stage.fit(network, labeled_ND, labels_N, labeled_ND[:0])
        return len(labeled_ND)
    unlabeled_UD = encoded_set(network, data, unlabeled)
    own = np.isin(split.unlabeled, split.labeled)  # the labeled images are in the pool too
    fresh = np.ones(len(unlabeled), bool)
    fresh[: len(own)] = ~own
    stage.fit(network, labeled_ND, labels_N, unlabeled_UD[torch.from_numpy(fresh)])
    return len(labeled_ND) + int(fresh.sum())


def encoded_set(network: Any, data: Data, on: LabeledSet | UnlabeledSet) -> torch.Tensor:
    """The frozen encoder's output (N, D) for all un-augmented images of a set, on the CPU."""
    network.eval()
    parts = outputs(partial(encoded, network.encoder), data, on)
    return torch.cat([part.float().cpu() for part in parts])


def train_or_reuse(
    stepper: Stepper, targets: list[int], shelf: Shelf | None, clock: Clock
) -> Iterator[tuple[dict[str, float], int]]:
    """At each of the steps `targets`: the means since the last one, and how many steps another trial trained for it.

    With a shelf, one process trains, and the others wait for the weights that it puts there.
    """
    with contextlib.ExitStack() as held:
        kept = None
        if shelf and stepper.step < stepper.steps:
            kept = shelf.open()
            if kept is None:
                held.enter_context(shelf.lock())
                clock.waits.append(shelf)
                kept = shelf.open()  # now it may be complete, by whoever had the lock
        if kept:
            held.close()
        for target in targets:
            if target <= stepper.step:  # before an interruption
                continue
            before = stepper.step
            if kept:
                means = load_weights(kept[target], stepper.averaged)
                stepper.step = target
            else:
                means = stepper.advance_to(target)
                if shelf:
                    shelf.put(target, stepper.averaged, means)
            yield means, target - before if kept else 0


@dataclass
class Clock:
    """The seconds of a trial, its earlier attempts included, and those it `waited` for what another one trains.

    `waits` are the caches that this attempt has asked, each of which says how long it `waited`.
    """

    before: float
    waited_before: float
    began: float = field(default_factory=time.perf_counter)
    waits: list[Shelf | FrozenFeatures] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    @property
    def waited(self) -> float:
        return self.waited_before + sum(cache.waited for cache in self.waits)


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
