"""How well one GPU is used: after `--minutes` nothing more is begun, and 8 are enough. In small, on a CPU, a minute.

1. Each view: images a second, and copies to the device in a call (counted on the `meta` device).
2. FixMatch and SimCLR: the share of a step that is the network's forward and backward pass and the optimizer, steps a
   second, copies in a step, peak memory; beside the same network, losses and batch behind a DataLoader with PIL and
   torchvision. All three kinds of step are timed in turn, block by block.
3. What the `compute` keys are worth: full steps of FixMatch under each.

The images are noise in colour, written as a folder, so that nothing is downloaded.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --minutes 3 --workers 8
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from benchmarks.step_efficiency import in_turn, pure_step, steps_of, timed
from benchmarks.transfers import CountedTransfers
from tune_ssl.data.augment import VIEW_NAMES, view
from tune_ssl.data.batch import Batch
from tune_ssl.data.loading import Data, Loader, load_data, stream
from tune_ssl.data.sets import Images
from tune_ssl.study.trial import TrialSpec, build_trial, override
from tune_ssl.training.device import pick_device, settings_of
from tune_ssl.training.stepper import Stepper

CLASSES, OF_CLASS = 10, 100
FIXMATCH, SIMCLR = {"name": "fixmatch"}, {"name": "simclr"}
LARGE: dict[str, dict[str, Any]] = {
    "FixMatch wrn_28_2 32 px, 64 + 448": {
        "data": {"image_size": 32, "batch_size": 64, "mu": 7},
        "model": {"encoder": "wrn_28_2"},
        "method": FIXMATCH,
    },
    "SimCLR resnet18 32 px, 512": {
        "data": {"image_size": 32, "batch_size": 64, "mu": 8},
        "model": {"encoder": "resnet18"},
        "method": SIMCLR,
    },
    "SimCLR resnet18 96 px, 256": {
        "data": {"image_size": 96, "batch_size": 32, "mu": 8},
        "model": {"encoder": "resnet18"},
        "method": SIMCLR,
    },
}
SMALL: dict[str, dict[str, Any]] = {
    "FixMatch small_cnn 32 px, 8 + 56": {
        "data": {"image_size": 32, "batch_size": 8, "mu": 7},
        "method": FIXMATCH,
    },
    "SimCLR small_cnn 32 px, 64": {
        "data": {"image_size": 32, "batch_size": 8, "mu": 8},
        "method": SIMCLR,
    },
}
KEYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "cudnn_benchmark": {"compute.cudnn_benchmark": True},
    "fp32": {"compute.precision": "fp32"},
    "fp32, tf32": {"compute.precision": "fp32", "compute.tf32": True},
    "compile": {"compute.compile": True},
}


def write_images(folder: Path) -> None:
    """A folder of noise, 96 px a side: root/train/<class>/."""
    draw = np.random.default_rng(0)
    for label in range(CLASSES):
        own = folder / "train" / f"class_{label}"
        own.mkdir(parents=True)
        for index in range(OF_CLASS):
            pixels = draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(own / f"{index}.png", compress_level=1)


# ---- the peer: images one by one, in worker processes -------------------------------------------


def peer_views(spec: TrialSpec, data: Data) -> dict[str, Any]:
    """The views of the two methods as torchvision has them, for PIL images."""
    size = data.task.image_size
    last = [T.ToTensor(), T.Normalize(data.mean, data.std)]
    moved = [T.RandomHorizontalFlip(), T.RandomCrop(size, size // 8, padding_mode="reflect")]
    cutout = T.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1, 1))
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    blur = [T.RandomApply([T.GaussianBlur(size // 20 * 2 + 1)], 0.5)] if size >= 96 else []
    crop = [T.RandomResizedCrop(size), T.RandomHorizontalFlip()]
    return {
        "weak": T.Compose([*moved, *last]),
        "randaugment": T.Compose([*moved, T.RandAugment(2), *last, cutout]),
        "contrastive": T.Compose([*crop, jitter, T.RandomGrayscale(0.2), *blur, *last]),
    }


class PeerImages(Dataset[tuple[Any, ...]]):
    """Each image as PIL has it, seen once through each view."""

    def __init__(self, images: Images, labels: Any, views: list[Any]) -> None:
        self.pixels = images.gather(np.arange(len(images))).transpose(0, 2, 3, 1)
        self.labels, self.views = labels.astype(np.int64), views

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = Image.fromarray(self.pixels[index])
        return *(see(image) for see in self.views), self.labels[index]


def endless(images: PeerImages, size: int, workers: int) -> Iterator[list[Tensor]]:
    if not images.views:
        while True:
            yield [torch.empty(0, dtype=torch.int64)]
    sampler = torch.utils.data.RandomSampler(images, replacement=True, num_samples=10**8)
    yield from DataLoader(
        images,
        batch_size=size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


class Peer:
    """Full steps of the same stage and network, fed by DataLoaders."""

    def __init__(self, spec: TrialSpec, stepper: Stepper, workers: int) -> None:
        self.stepper, loader = stepper, stepper.loader
        data, views = loader.labeled.data, peer_views(spec, loader.labeled.data)
        labeled, unlabeled = data.sets.labeled, data.sets.unlabeled
        self.halves = [
            endless(PeerImages(images, labels, [views[v.name] for v in half.views]), size, workers)
            for half, images, labels, size in (
                (loader.labeled, labeled.images, labeled.labels, spec.data.batch_size),
                (
                    loader.unlabeled,
                    unlabeled.images,
                    unlabeled.hidden_labels,
                    spec.data.batch_size * spec.data.mu,
                ),
            )
        ]

    def step(self) -> None:
        device = self.stepper.device
        parts = [[t.to(device, non_blocking=True) for t in next(half)] for half in self.halves]
        (*labeled, labels), (*unlabeled, hidden) = parts
        pure_step(self.stepper, Batch(tuple(labeled), labels, tuple(unlabeled), hidden))


# ---- what is printed ----------------------------------------------------------------------------


def print_views(device: torch.device, count: int) -> None:
    print("views: images a second, copies to the device in a call")
    for size in (32, 96):
        shape = (count * 32 // size, 3, size, size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        for name in VIEW_NAMES:
            chosen = view(name, image_size=size, channels=3, flip=True)
            with CountedTransfers() as counted:
                chosen(torch.empty(shape, dtype=torch.uint8, device="meta"), stream(0, 1))
            [seconds] = in_turn([partial(chosen, images, stream(0, 1))], 3, 5, device)
            rate = len(images) / statistics.median(seconds)
            copies = counted.transfers
            print(f"  {size:3} px {name:22} {rate:12,.0f}   {copies}", flush=True)


def print_steps(name: str, spec: TrialSpec, block: int, blocks: int, workers: int) -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    pure, full = steps_of(spec)
    memory = ""
    if full.device.type == "cuda":
        timed(full.advance, block, full.device)
        memory = f"   peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    peer = Peer(spec, steps_of(spec)[1], workers)
    seconds = in_turn((pure, full.advance, peer.step), block, blocks, full.device)
    rates = [1 / statistics.median(own) for own in seconds]
    shares = [a / b for a, b in zip(seconds[0], seconds[1], strict=True)]
    print(f"{name}: efficiency {statistics.median(shares):.3f}{memory}")
    print(
        f"  steps a second: pure {rates[0]:.2f}   full {rates[1]:.2f}   DataLoader {rates[2]:.2f}"
    )
    print(f"  copies in a step: {copies_in_a_step(full, block)}", flush=True)


def copies_in_a_step(full: Stepper, steps: int) -> str:
    """As the profiler sees them; on a CPU those that batches would need, counted on the `meta` device."""
    if full.device.type != "cuda":
        spec, stage, meta = full.spec, full.stage, torch.device("meta")
        data = load_data(spec.data, spec.split_seed, meta)
        loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, spec.seed)
        with CountedTransfers() as counted:
            loader.next()
        return f"none; on a GPU its batches would take {counted.transfers} for every {loader.block_steps} steps"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        timed(full.advance, steps, full.device)
    names = [event.name for event in seen.events() or ()]
    there, back = (sum(kind in name for name in names) / steps for kind in ("HtoD", "DtoH"))
    return f"{there:.2f} to the GPU, {back:.2f} back"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6, help="after which nothing is begun")
    parser.add_argument("--workers", type=int, default=None, help="of each DataLoader")
    arguments = parser.parse_args()
    began, device = time.monotonic(), pick_device("auto")
    on_gpu = device.type == "cuda"
    workers = arguments.workers
    if workers is None:
        workers = (os.cpu_count() or 2) // 2 if on_gpu else 0
    where = torch.cuda.get_device_name(device) if on_gpu else "a CPU, in small"
    print(f"{where}; torch {torch.__version__}; {workers} workers for each DataLoader")
    block, blocks = (24, 5) if on_gpu else (2, 5)
    if not on_gpu:
        torch.set_num_threads(1)

    def late(what: str) -> bool:
        if time.monotonic() - began < 60 * arguments.minutes:
            return False
        print(f"{what}: left out, {arguments.minutes:g} minutes are over (--minutes)")
        return True

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNE_SSL_CACHE"] = f"{folder}/cache"
        write_images(Path(folder) / "images")
        root = {"dataset": "folder", "root": f"{folder}/images", "num_labels": 100}
        cases = {
            name: build_trial({**case, "data": {**case["data"], **root}})
            for name, case in (LARGE if on_gpu else SMALL).items()
        }
        print_views(device, 4096 if on_gpu else 128)
        for name, spec in cases.items():
            if not late(name):
                print_steps(name, spec, block, blocks, workers)
        name, spec = next(iter(cases.items()))
        for key, values in KEYS.items() if on_gpu else ():
            if late(key):
                continue
            chosen = override(spec, values)
            with settings_of(chosen.compute):
                _, full = steps_of(chosen)
                [seconds] = in_turn((full.advance,), block, blocks, device)
            print(f"{name}, {key}: {1 / statistics.median(seconds):.2f} steps a second", flush=True)


if __name__ == "__main__":
    main()
