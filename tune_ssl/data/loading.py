"""Batches: images drawn by index, seen through their views, normalised, on the device.

Views are drawn for several steps at once (a *chunk*), because an operation on a batch costs much the
same for 32 small images as for 500. Order and augmentation have a random stream each, so that two
variants of a method see the same images in the same order whatever their views are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from tune_ssl.data.augment import View, view
from tune_ssl.data.batch import Batch, Task
from tune_ssl.data.sets import Images, LabeledSet, Sets, build_sets
from tune_ssl.data.splits import Split, make_split
from tune_ssl.data.store import Store, prepare
from tune_ssl.spec import DataSpec

CHUNK_PIXELS = 1 << 18  # pixel values of one channel that are augmented at once
PER_TRIAL = ("labeled_ratio", "num_labels", "split_seed")  # keys that no store depends on
START_PIXELS = 1 << 22  # likewise, for the images that a stage starts from
DEVICE_SHARE = 0.25  # of free GPU memory that the images may take


class Data:
    """A dataset as one trial sees it: its sets, the shape of its task, and how pixels become floats."""

    def __init__(self, store: Store, split: Split, device: torch.device) -> None:
        self.store, self.split, self.device = store, split, device
        self.sets: Sets = build_sets(store, split)
        _, channels, side, _ = self.sets.labeled.images.shape
        self.task = Task(len(store.class_names), channels, side)
        self._mean = torch.tensor(store.mean, device=device).view(1, -1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(store.std, device=device).view(1, -1, 1, 1) * 255)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 with mean 0 and deviation 1 in each channel of the train part."""
        return images.float().sub_(self._mean).mul_(self._scale)

    def view(self, name: str) -> View:
        _, channels, side = self.task
        return view(name, image_size=side, channels=channels, flip=self.store.flip)


def load_data(spec: DataSpec, seed: int, device: torch.device) -> Data:
    """The store (built if it is not there yet) and the split of `seed`. UserError for bad data."""
    store = _store(spec.model_copy(update=dict.fromkeys(PER_TRIAL)))
    split = make_split(
        store.train.labels, store.class_names, spec, seed=seed, has_val=store.val is not None
    )
    return Data(store, split, device)


@lru_cache(maxsize=4)
def _store(spec: DataSpec) -> Store:
    """The store, found once in a process: naming a folder's store means listing all its files."""
    return prepare(spec)


class Pixels:
    """Images to gather from: on the device when they fit there, else from the memory map."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if np.prod(images.shape) < DEVICE_SHARE * free:
                everything = images.gather(np.arange(len(images)))
                self.resident = torch.from_numpy(everything).to(device)

    def __call__(self, positions: Tensor) -> Tensor:
        """uint8 (m, C, H, W) at `positions` (m,), a CPU tensor."""
        if self.resident is not None:
            return self.resident[positions.to(self.device, non_blocking=True)]
        found = torch.from_numpy(self.images.gather(positions.numpy()))
        if self.device.type == "cuda":
            return found.pin_memory().to(self.device, non_blocking=True)
        return found


class Order:
    """An endless shuffled walk over `size` images: each one once, then a new order."""

    def __init__(self, size: int, generator: Generator) -> None:
        self.size, self.generator = size, generator
        self.permutation, self.position = torch.empty(0, dtype=torch.int64), 0

    def draw(self, count: int) -> Tensor:
        drawn = []
        while count > 0:
            if self.position >= len(self.permutation):
                self.permutation = torch.randperm(self.size, generator=self.generator)
                self.position = 0
            part = self.permutation[self.position : self.position + count]
            self.position += len(part)
            count -= len(part)
            drawn.append(part)
        return torch.cat(drawn)

    def state(self) -> dict[str, Any]:
        return {
            "permutation": self.permutation.clone(),
            "position": self.position,
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.permutation, self.position = state["permutation"].clone(), state["position"]
        self.generator.set_state(state["generator"])


class Loader:
    """Endless batches for one stage. `state` and `load` make a resumed run see the same batches."""

    def __init__(
        self,
        data: Data,
        spec: DataSpec,
        labeled_views: tuple[str, ...],
        unlabeled_views: tuple[str, ...],
        seed: int,
    ) -> None:
        labeled, unlabeled = data.sets.labeled, data.sets.unlabeled
        self.data = data
        self.labels = torch.from_numpy(labeled.labels.astype(np.int64))
        self.hidden = torch.from_numpy(unlabeled.hidden_labels.astype(np.int64))
        self.labeled_views = [data.view(name) for name in labeled_views]
        self.unlabeled_views = [data.view(name) for name in unlabeled_views]
        self.labeled_pixels = Pixels(labeled.images, data.device)
        self.unlabeled_pixels = Pixels(unlabeled.images, data.device)
        self.sizes = (spec.batch_size, spec.batch_size * spec.mu if unlabeled_views else 0)
        self.labeled_order = Order(len(labeled), stream(seed, 1))
        self.unlabeled_order = Order(len(unlabeled), stream(seed, 2))
        self.labeled_augmentation = stream(seed, 3)
        self.unlabeled_augmentation = stream(seed, 4)
        # The chunk depends on nothing of the method, so that labeled images are augmented alike.
        drawn = spec.batch_size * (1 + 2 * spec.mu) * data.task.image_size**2
        self.chunk_steps = max(1, CHUNK_PIXELS // drawn)
        self.start_stream = stream(seed, 5)
        self.chunk: list[Batch] = []
        self.taken = 0
        self.chunk_start = self._position()

    @property
    def images_per_step(self) -> int:
        """Distinct images drawn in one step, labeled and unlabeled."""
        return sum(self.sizes)

    def next(self) -> Batch:
        if self.taken >= len(self.chunk):
            self.chunk_start = self._position()
            self.chunk, self.taken = self._draw_chunk(), 0
        self.taken += 1
        return self.chunk[self.taken - 1]

    def sample(self, labeled: int = 512, unlabeled: int = 2048) -> Batch:
        """Random images of each set, un-augmented: what a stage starts from.

        Fewer where images are large, for they go through the network at once.
        """
        most = max(64, START_PIXELS // self.data.task.image_size**2)
        at_N = torch.randperm(len(self.labels), generator=self.start_stream)[: min(labeled, most)]
        at_U = torch.randperm(len(self.hidden), generator=self.start_stream)[: min(unlabeled, most)]
        return Batch(
            (self.data.normalize(self.labeled_pixels(at_N)),),
            self.labels[at_N].to(self.data.device),
            (self.data.normalize(self.unlabeled_pixels(at_U)),),
            self.hidden[at_U].to(self.data.device),
        )

    def state(self) -> dict[str, Any]:
        """Where the current chunk began, and how many of its batches were taken."""
        return {"chunk_start": self.chunk_start, "taken": self.taken}

    def load(self, state: dict[str, Any]) -> None:
        start = state["chunk_start"]
        self.labeled_order.load(start["labeled"])
        self.unlabeled_order.load(start["unlabeled"])
        self.labeled_augmentation.set_state(start["labeled_augmentation"])
        self.unlabeled_augmentation.set_state(start["unlabeled_augmentation"])
        self.chunk_start, self.chunk, self.taken = start, [], 0
        if state["taken"]:
            self.chunk, self.taken = self._draw_chunk(), state["taken"]

    def _position(self) -> dict[str, Any]:
        return {
            "labeled": self.labeled_order.state(),
            "unlabeled": self.unlabeled_order.state(),
            "labeled_augmentation": self.labeled_augmentation.get_state(),
            "unlabeled_augmentation": self.unlabeled_augmentation.get_state(),
        }

    def _draw_chunk(self) -> list[Batch]:
        steps, device = self.chunk_steps, self.data.device
        size_N, size_U = self.sizes
        at_N = self.labeled_order.draw(steps * size_N)
        labeled = self._views(
            self.labeled_pixels(at_N), self.labeled_views, size_N, self.labeled_augmentation
        )
        labels = self.labels[at_N].to(device).split(size_N)
        if not size_U:
            return [Batch(views, labels_N) for views, labels_N in zip(labeled, labels, strict=True)]
        at_U = self.unlabeled_order.draw(steps * size_U)
        unlabeled = self._views(
            self.unlabeled_pixels(at_U), self.unlabeled_views, size_U, self.unlabeled_augmentation
        )
        hidden = self.hidden[at_U].to(device).split(size_U)
        return [Batch(*parts) for parts in zip(labeled, labels, unlabeled, hidden, strict=True)]

    def _views(
        self, images: Tensor, views: list[View], size: int, generator: Generator
    ) -> list[tuple[Tensor, ...]]:
        """Per step, a tuple with one float tensor (size, C, H, W) for each view."""
        seen = [self.data.normalize(v(images, generator)).split(size) for v in views]
        return list(zip(*seen, strict=True))


def stream(seed: int, number: int) -> Generator:
    """A CPU generator of its own for each (seed, number)."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def in_chunks(data: Data, labeled: LabeledSet, size: int = 512) -> Iterator[Tensor]:
    """Un-augmented float images over a whole set, for evaluation; one chunk at a time in memory."""
    pixels = Pixels(labeled.images, torch.device("cpu"))
    for positions in torch.arange(len(labeled)).split(size):
        yield data.normalize(pixels(positions).to(data.device))
