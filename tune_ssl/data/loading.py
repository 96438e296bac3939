"""Batches: images drawn by index, seen through their views, normalised, on the device.

Views are drawn for several steps at once (a *chunk*), because an operation on a batch costs much the
same for 32 small images as for 500. Order and augmentation have a random stream each, so that two
variants of a method see the same images in the same order whatever their views are.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from tune_ssl.base.spec import DataSpec
from tune_ssl.data.augment import View, view
from tune_ssl.data.batch import Batch, Task
from tune_ssl.data.sets import Images, LabeledSet, Sets, UnlabeledSet, build_sets
from tune_ssl.data.splits import Split, make_split
from tune_ssl.data.store import Store, prepare

CHUNK_PIXELS = 1 << 18  # pixel values of one channel that are augmented at once
PER_TRIAL = ("labeled_ratio", "num_labels", "split_seed")  # keys that no store depends on
START_PIXELS = 1 << 22  # likewise, for the images that a stage starts from
EVALUATED_PIXELS = 1 << 19  # likewise, for an evaluation: 512 images of 32 x 32
FEATURE_ROWS = 4096  # rows of a frozen encoder's features that are evaluated at once
DEVICE_SHARE = 0.25  # of free GPU memory that the images may take


class Normalizer:
    """How pixels become floats and back; `mean` and `std` (C,) are of the train part, in 0..1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device).view(1, -1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(std, device=device).view(1, -1, 1, 1) * 255)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 with mean 0 and deviation 1 in each channel of the train part."""
        return images.float().sub_(self._mean).mul_(self._scale)

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`, as people look at it: float (N, C, H, W) -> uint8, cut to 0..255."""
        values = images.float().div(self._scale).add_(self._mean).nan_to_num_()
        return values.round_().clamp_(0, 255).to(torch.uint8)


class FeatureSource(Protocol):
    """What gives a frozen encoder's outputs in the images' place (`training.features`)."""

    def draw(self, images: Images, view: str, positions: Tensor, generator: Generator) -> Tensor:
        """Features (m, D) of the images at `positions` (m,), each of one of its kept versions of that view."""
        ...

    def plain(self, images: Images, positions: Tensor) -> Tensor:
        """Features (m, D) of the un-augmented images at `positions` (m,)."""
        ...


class Data(Normalizer):
    """A dataset as one trial sees it: its sets, the shape of its task, and how pixels become floats.

    `statistics` are the channels' mean and deviation, the train part's own unless given. With `features` a stage
    sees those in the images' place.
    """

    def __init__(
        self,
        store: Store,
        split: Split,
        device: torch.device,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.mean, self.std = statistics or (store.mean, store.std)
        super().__init__(self.mean, self.std, device)
        self.store, self.split, self.device = store, split, device
        self.sets: Sets = build_sets(store, split)
        self.task = store.task
        self.precision = torch.float32  # of what is evaluated
        self.features: FeatureSource | None = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision in which networks are evaluated on these data."""
        if self.precision is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def view(self, name: str) -> View:
        side, channels = self.task.image_size, self.task.channels
        return view(name, image_size=side, channels=channels, flip=self.store.flip)

    def seen_as(self, features: FeatureSource) -> Data:
        """The same data, of which a stage sees a frozen encoder's features."""
        other = copy.copy(self)
        other.features = features
        return other


def load_data(
    spec: DataSpec,
    seed: int,
    device: torch.device,
    statistics: Callable[[int], tuple[Sequence[float], Sequence[float]] | None] = lambda channels: (
        None
    ),
) -> Data:
    """The store (built if it is not there yet) and the split of `seed`. UserError for bad data.

    `statistics` says what images of so many channels are normalised with; None: their own.
    """
    store = _store(spec.model_copy(update=dict.fromkeys(PER_TRIAL)))
    split = make_split(
        store.train.labels, store.class_names, spec, seed=seed, has_val=store.val is not None
    )
    return Data(store, split, device, statistics(store.shape[0]))


@lru_cache(maxsize=4)
def _store(spec: DataSpec) -> Store:
    """The store, found once in a process: naming a folder's store means listing all its files."""
    return prepare(spec)


class DeviceImages:
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


class EndlessShuffle:
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


class SetLoader:
    """The labeled or the unlabeled half of the batches: `size` images a step, seen through `views`."""

    def __init__(
        self,
        data: Data,
        on: LabeledSet | UnlabeledSet,
        views: tuple[str, ...],
        size: int,
        order: Generator,
        augmentation: Generator,
    ) -> None:
        self.data, self.size, self.on = data, size if views else 0, on.images
        labels = on.labels if isinstance(on, LabeledSet) else on.hidden_labels
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.views = [data.view(name) for name in views]
        device = data.device if data.features is None else torch.device("cpu")
        self.images = DeviceImages(on.images, device)
        self.order, self.augmentation = EndlessShuffle(len(self.labels), order), augmentation

    def draw(self, steps: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """Per step: a float tensor (size, C, H, W), or features (size, D), for each view, and the labels (size,)."""
        if not self.size:
            return [((), self.labels[:0].to(self.data.device))] * steps
        at = self.order.draw(steps * self.size)
        labels, features = self.labels[at].to(self.data.device), self.data.features
        if features is not None:
            whole = [features.draw(self.on, v.name, at, self.augmentation) for v in self.views]
        else:
            images = self.images(at)
            whole = [self.data.normalize(view(images, self.augmentation)) for view in self.views]
        seen = [view.split(self.size) for view in whole]
        return list(zip(zip(*seen, strict=True), labels.split(self.size), strict=True))

    def sample(self, most: int, generator: Generator) -> tuple[tuple[Tensor], Tensor]:
        """At most `most` random images, un-augmented, and their labels."""
        at = torch.randperm(len(self.labels) if most else 0, generator=generator)[:most]
        labels, features = self.labels[at].to(self.data.device), self.data.features
        if features is not None:
            return (features.plain(self.on, at),), labels
        return (self.data.normalize(self.images(at)),), labels

    def state(self) -> dict[str, Any]:
        return {"order": self.order.state(), "augmentation": self.augmentation.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        self.order.load(state["order"])
        self.augmentation.set_state(state["augmentation"])


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
        size = spec.batch_size
        self.labeled = SetLoader(
            data, data.sets.labeled, labeled_views, size, stream(seed, 1), stream(seed, 3)
        )
        self.unlabeled = SetLoader(
            data,
            data.sets.unlabeled,
            unlabeled_views,
            size * spec.mu,
            stream(seed, 2),
            stream(seed, 4),
        )
        self.start_stream = stream(seed, 5)
        # The chunk depends on nothing of the method, so that labeled images are augmented alike.
        area = prod(data.task.size)
        self.chunk_steps = max(1, CHUNK_PIXELS // (size * (1 + 2 * spec.mu) * area))
        self.most = max(64, START_PIXELS // area)
        self.chunk: list[Batch] = []
        self.taken = 0
        self.chunk_start = self._position()

    @property
    def images_per_step(self) -> int:
        """Distinct images drawn in one step, labeled and unlabeled."""
        return self.labeled.size + self.unlabeled.size

    @property
    def views_per_step(self) -> int:
        """Images that go through the network in one step: each once for each of its views."""
        both = (self.labeled, self.unlabeled)
        return sum(half.size * len(half.views) for half in both)

    @property
    def on_features(self) -> bool:
        """Whether a frozen encoder's features stand in the images' place."""
        return self.labeled.data.features is not None

    def next(self) -> Batch:
        if self.taken >= len(self.chunk):
            self.chunk_start = self._position()
            self.chunk, self.taken = self._draw_chunk(), 0
        self.taken += 1
        return self.chunk[self.taken - 1]

    def sample(self, labeled: int = 512, unlabeled: int = 2048) -> Batch:
        """Random images of each set, un-augmented: what a stage starts from.

        Fewer where images are large, for they go through the network at once. Without labeled views
        none is labeled: what sees no label must not depend on how many there are.
        """
        labeled = min(labeled, self.most) if self.labeled.views else 0
        views, labels_N = self.labeled.sample(labeled, self.start_stream)
        return Batch(
            views, labels_N, *self.unlabeled.sample(min(unlabeled, self.most), self.start_stream)
        )

    def state(self) -> dict[str, Any]:
        """Where the current chunk began, and how many of its batches were taken."""
        return {"chunk_start": self.chunk_start, "taken": self.taken}

    def load(self, state: dict[str, Any]) -> None:
        start = state["chunk_start"]
        self.labeled.load(start["labeled"])
        self.unlabeled.load(start["unlabeled"])
        self.chunk_start, self.chunk, self.taken = start, [], 0
        if state["taken"]:
            self.chunk, self.taken = self._draw_chunk(), state["taken"]

    def _position(self) -> dict[str, Any]:
        return {"labeled": self.labeled.state(), "unlabeled": self.unlabeled.state()}

    def _draw_chunk(self) -> list[Batch]:
        both = zip(
            self.labeled.draw(self.chunk_steps),
            self.unlabeled.draw(self.chunk_steps),
            strict=True,
        )
        return [Batch(*labeled, *unlabeled) for labeled, unlabeled in both]


def stream(seed: int, number: int) -> Generator:
    """A CPU generator of its own for each (seed, number)."""
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


def chunk_size(task: Task) -> int:
    """How many images have EVALUATED_PIXELS; at least one."""
    return max(1, EVALUATED_PIXELS // prod(task.size))


def in_chunks(data: Data, on: Images, size: int | None = None) -> Iterator[Tensor]:
    """Un-augmented float images, or their features, one chunk at a time in memory: for evaluation.

    A chunk has `size` images; if absent, as many as have EVALUATED_PIXELS.
    """
    every = torch.arange(len(on))
    if data.features is not None:
        for positions in every.split(size or FEATURE_ROWS):
            yield data.features.plain(on, positions)
        return
    images = DeviceImages(on, torch.device("cpu"))
    for positions in every.split(size or chunk_size(data.task)):
        yield data.normalize(images(positions).to(data.device))
