"""Step efficiency: time of the pure step / time of a full training step, on the same model and batch.

The pure step is the method's forward pass, backward pass and optimizer step on tensors that are
ready. The full step is all that the loop does between two evaluations: drawing, augmenting and
normalising the batch, weighting the terms, the NaN guard, weight averaging. Both are timed in turn,
block by block, so that a machine that slows down slows both. 1.0 is a loop that costs nothing.

    python -m benchmarks.step_efficiency
    python -m benchmarks.step_efficiency --only fixmatch
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tune_ssl.data.batch import Batch
from tune_ssl.data.loading import load_data
from tune_ssl.study.trial import TrialSpec, build_trial
from tune_ssl.training.device import pick_device
from tune_ssl.training.stepper import Stepper, to_channels_last

DIGITS = {"data": {"dataset": "digits", "num_labels": 50}}


def cases(cifar: str | None) -> dict[str, dict[str, Any]]:
    """Trial specs by name; without a CIFAR folder the digits are scaled up to CIFAR's size."""
    if cifar:
        data: dict[str, Any] = {"dataset": "folder", "root": cifar, "num_labels": 250}
    else:
        data = {"dataset": "digits", "num_labels": 250, "image_size": 32}
    fixmatch = {"method": {"name": "fixmatch"}, "model": {"encoder": "resnet18"}}
    small = {"batch_size": 8, "mu": 7}
    return {
        "digits small_cnn supervised": {**DIGITS, "method": {"name": "supervised"}},
        "digits small_cnn soft_kmeans": {**DIGITS, "method": {"name": "soft_kmeans"}},
        "digits small_cnn fixmatch": {
            "data": {"dataset": "digits", "num_labels": 50, "mu": 7},
            "method": {"name": "fixmatch"},
        },
        "32 px resnet18 fixmatch": {"data": {**data, **small}, **fixmatch},
        "96 px resnet18 fixmatch": {"data": {**data, **small, "image_size": 96}, **fixmatch},
        "32 px resnet18 supervised": {
            "data": data,
            "model": {"encoder": "resnet18"},
            "method": {"name": "supervised"},
        },
        "32 px resnet18 soft_kmeans": {
            "data": data,
            "model": {"encoder": "resnet18"},
            "method": {"name": "soft_kmeans"},
        },
    }


def measure(spec: TrialSpec, block: int, blocks: int) -> tuple[float, float, float]:
    """Medians over blocks: (ratio, pure seconds, full seconds) of one step."""
    pure_step, full = steps_of(spec)
    pures, fulls = in_turn((pure_step, full.advance), block, blocks, full.device)
    ratios = [pure / whole for pure, whole in zip(pures, fulls, strict=True)]
    return statistics.median(ratios), statistics.median(pures), statistics.median(fulls)


def steps_of(spec: TrialSpec) -> tuple[Callable[[], None], Stepper]:
    """The pure step of the spec's first stage, on a network of its own, and what takes its full steps."""
    device = pick_device(spec.compute.device)
    data = load_data(spec.data, spec.split_seed, device)
    stage = spec.stages()[0]

    def build() -> Stepper:
        torch.manual_seed(0)
        network = stage.build(data.task, spec.model, None).to(device)
        stepper = Stepper(spec, stage, network, data, 10**6, 0)
        stepper.start()
        return stepper

    full, pure = build(), build()
    return partial(pure_step, pure, pure.loader.next()), full


def pure_step(stepper: Stepper, batch: Batch) -> None:
    """Forward, backward and optimizer step, with a batch that is ready."""
    batch = batch._replace(
        labeled=tuple(map(to_channels_last, batch.labeled)),
        unlabeled=tuple(map(to_channels_last, batch.unlabeled)),
    )
    [(_, optimizer)] = stepper.optimizers.values()
    with stepper.autocast():
        losses = stepper.stage.step(stepper.network, batch).losses
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()


def in_turn(
    steps: Sequence[Callable[[], None]], block: int, blocks: int, device: torch.device
) -> list[list[float]]:
    """Of each step the seconds per call in each block, after one that does not count."""
    for step in steps:
        timed(step, block, device)
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(blocks):
        for step, own in zip(steps, seconds, strict=True):
            own.append(timed(step, block, device))
    return seconds


def timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Seconds per call over `count` calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", help="a folder dataset with 32 px colour images")
    parser.add_argument("--threads", type=int, default=1, help="as many as a trial has CPUs")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{pick_device('auto')}, {arguments.threads} thread(s); pure and full: steps per second")
    for name, raw in cases(arguments.cifar).items():
        if arguments.only not in name:
            continue
        spec = build_trial(raw)
        # Whole chunks of batches, so that each block carries its share of the augmentation.
        block = 4 if "32 px" in name else 2 if "96 px" in name else 120
        ratio, pure, full = measure(spec, block, arguments.blocks)
        rates = f"pure {1 / pure:8.2f}   full {1 / full:8.2f}"
        print(f"{name:32} efficiency {ratio:.3f}   {rates}", flush=True)


if __name__ == "__main__":
    main()
