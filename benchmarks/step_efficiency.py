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
from collections.abc import Callable
from typing import Any

import torch

from tune_ssl.data.loading import load_data
from tune_ssl.study.trial import TrialSpec, build_trial
from tune_ssl.training.device import pick_device
from tune_ssl.training.optimizers import build_optimizers
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
    device = pick_device("auto")
    data = load_data(spec.data, spec.split_seed, device)
    stage = spec.stages()[0]

    def build() -> Stepper:
        torch.manual_seed(0)
        network = stage.build(data.task, spec.model, None).to(device)
        stepper = Stepper(spec, stage, network, data, 10**6, 0)
        stepper.start()
        return stepper

    full, pure = build(), build()
    batch = pure.loader.next()
    batch = batch._replace(
        labeled=tuple(map(to_channels_last, batch.labeled)),
        unlabeled=tuple(map(to_channels_last, batch.unlabeled)),
    )
    [(_, optimizer)] = build_optimizers(spec.optim, stage, pure.network).values()

    def pure_step() -> None:
        with pure.autocast():
            losses = stage.step(pure.network, batch).losses
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    for step in (pure_step, full.advance):
        timed(step, block, device)
    ratios, pures, fulls = [], [], []
    for _ in range(blocks):
        pures.append(timed(pure_step, block, device))
        fulls.append(timed(full.advance, block, device))
        ratios.append(pures[-1] / fulls[-1])
    return statistics.median(ratios), statistics.median(pures), statistics.median(fulls)


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
