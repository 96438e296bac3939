"""Batches: images drawn by index, seen through their views, normalised, on the device.

Views are drawn for several steps at once (a *chunk*), because an operation on a batch costs much the
same for 32 small images as for 500. Order and augmentation have a random stream each, so that two
variants of a method see the same images in the same order whatever their views are.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from tune_ssl.base.spec import AS_PUBLISHED, DataSpec, ViewsSpec
from tune_ssl.data import pixels
from tune_ssl.data.augment import View, view
from tune_ssl.data.batch import Batch, Sample, Task
from tune_ssl.data.rows import EncodedImages
from tune_ssl.data.sets import Images, LabeledSet, Sets, UnlabeledSet, build_sets, split_of
from tune_ssl.data.splits import Split, stratified_rows
from tune_ssl.data.store import Store, prepare

CHUNK_PIXELS = 1 << 18  # pixel values of one channel that are augmented at once
START_LABELED, START_UNLABELED = 512, 2048  # images that a stage starts from, at least
START_EACH = 4  # likewise, for each class
EVALUATED_PIXELS = 1 << 19  # likewise, for an evaluation: 512 images of 32 x 32
FEATURE_ROWS = 4096  # rows of a frozen encoder's features that are evaluated at once
DEVICE_SHARE = 0.25  # of free GPU memory that the images may take
BLOCK_BYTES = 64 << 20  # of images that are copied to a GPU at once


AS_STORED = DataSpec()


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

    `spec` says what the network sees of the stored images, `views` how strong each view is. `statistics` are the
    channels' mean and deviation, the train part's own unless given. With `features` a stage sees those in the images'
    place.
    """

    def __init__(
        self,
        store: Store,
        split: Split,
        device: torch.device,
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
        spec: DataSpec = AS_STORED,
        views: ViewsSpec = AS_PUBLISHED,
    ) -> None:
        self.mean, self.std = statistics or (store.mean, store.std)
        super().__init__(self.mean, self.std, device)
        self.store, self.split, self.device = store, split, device
        self.sets: Sets = build_sets(store, split)
        self.task = store.task(spec)._replace(unlabeled=len(self.sets.unlabeled))
        self.flip = store.flip if spec.flip is None else spec.flip
        self.views = views
        self.precision = torch.float32  # of what is evaluated
        self.features: FeatureSource | None = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision in which networks are evaluated on these data."""
        if self.precision is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def view(self, name: str) -> View:
        side, channels = self.task.image_size, self.task.channels
        return view(
            name,
            image_size=side,
            channels=channels,
            flip=self.flip,
            stored=self.store.shape[1],
            views=self.views,
        )

    def plain(self, images: Tensor) -> Tensor:
        """Stored uint8 images (N, C, H, W) as the network sees them un-augmented, normalised."""
        return self.normalize(pixels.resize(images, self.task.size))

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
    views: ViewsSpec = AS_PUBLISHED,
    store: Store | None = None,
) -> Data:
    """The store (built if it is not there yet, unless given) and the split of `seed`. UserError for bad data.

    `statistics` says what images of so many channels are normalised with; None: their own.
    """
    store = store or _store(spec.of_images().model_dump_json())
    split = split_of(store, spec, seed)
    return Data(store, split, device, statistics(store.shape[0]), spec, views)


@lru_cache(maxsize=4)
def _store(images: str) -> Store:
    """The store of a DataSpec's JSON, found once in a process: naming a folder's store means listing all its files."""
    return prepare(DataSpec.model_validate_json(images))


class DeviceImages:
    """Images to gather from: on the device when they fit there, else from the store.

    `slow` says that gathering takes long enough to be worth a thread: files are decoded, or pixels go to a GPU.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if np.prod(images.shape) < DEVICE_SHARE * free:
                self.resident = _copied(images, device)
        encoded = any(isinstance(piece.images, EncodedImages) for piece in images.pieces)
        self.slow = self.resident is None and (encoded or device.type == "cuda")

    def __call__(self, positions: Tensor) -> Tensor:
        """uint8 (m, C, H, W) at `positions` (m,), a CPU tensor."""
        if self.resident is not None:
            return self.resident[positions.to(self.device, non_blocking=True)]
        found = torch.from_numpy(self.images.gather(positions.numpy()))
        if self.device.type == "cuda":
            return found.pin_memory().to(self.device, non_blocking=True)
        return found


def _copied(images: Images, device: torch.device) -> Tensor:
    """All images on the device, a block at a time: on the way they take no second room in main memory."""
    out = torch.empty(images.shape, dtype=torch.uint8, device=device)
    size = max(1, BLOCK_BYTES // prod(images.shape[1:]))
    for start in range(0, len(images), size):
        rows = np.arange(start, min(start + size, len(images)))
        out[start : start + size] = torch.from_numpy(images.gather(rows)).to(device)
    return out


class EndlessShuffle:
    """An endless shuffled walk over `size` images: each one once, then a new order.

    A step that ends one walk and begins the next has no image twice, as long as there are enough.
    """

    def __init__(self, size: int, generator: Generator) -> None:
        self.size, self.generator = size, generator
        self.permutation, self.position = torch.empty(0, dtype=torch.int64), 0

    def draw(self, count: int, steps: int = 1) -> Tensor:
        """Positions (steps x count,), step by step."""
        return torch.cat([self._step(count) for _ in range(steps)])

    def _step(self, count: int) -> Tensor:
        drawn: list[Tensor] = []
        while count > 0:
            if self.position >= len(self.permutation):
                self.permutation, self.position = self._next(drawn[-1:], count), 0
            part = self.permutation[self.position : self.position + count]
            self.position += len(part)
            count -= len(part)
            drawn.append(part)
        return torch.cat(drawn) if drawn else self.permutation[:0]

    def _next(self, before: list[Tensor], count: int) -> Tensor:
        """A new order, whose first `count` images are none of the step's own before them."""
        order = torch.randperm(self.size, generator=self.generator)
        if not before or count + len(before[0]) > self.size:
            return order
        first = order[~torch.isin(order, before[0])][:count]
        return torch.cat([first, order[~torch.isin(order, first)]])

    def state(self) -> dict[str, Any]:
        return {
            "permutation": self.permutation.clone(),
            "position": self.position,
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.permutation, self.position = state["permutation"].clone(), state["position"]
        self.generator.set_state(state["generator"])


class BalancedShuffle:
    """An endless walk in which each class comes equally often: its own shuffled walk gives the image.

    Counts within a step differ by at most 1; which classes have one more is a shuffled walk of its own.
    """

    def __init__(self, labels: Tensor, generator: Generator) -> None:
        self.generator = generator
        self.rows = [(labels == k).nonzero()[:, 0] for k in labels.unique().tolist()]
        self.turns = EndlessShuffle(len(self.rows), generator)
        self.walks = [EndlessShuffle(len(rows), generator) for rows in self.rows]

    def draw(self, count: int, steps: int = 1) -> Tensor:
        """Positions (steps x count,), step by step."""
        whole, rest = divmod(count, len(self.rows))
        every = torch.arange(len(self.rows)).repeat(whole)
        chosen = torch.cat(
            [torch.cat([every, self.turns._step(rest)]) for _ in range(steps)]
        ).tolist()
        return torch.stack([self.rows[k][self.walks[k]._step(1)[0]] for k in chosen])

    def state(self) -> dict[str, Any]:
        return {"turns": self.turns.state(), "walks": [walk.state() for walk in self.walks]}

    def load(self, state: dict[str, Any]) -> None:
        for walk, own in zip(self.walks, state["walks"], strict=True):
            walk.load(own)
        self.turns.load(state["turns"])


@dataclass(frozen=True)
class _Ahead:
    """Images that a thread gathers for the next chunk: where the order stood before, which ones, and the pixels."""

    before: dict[str, Any]
    steps: int
    positions: Tensor
    images: Future[Tensor]


class Drawn(NamedTuple):
    """One half of a step: a float tensor (m, C, H, W), or features (m, D), for each view, labels and positions (m,)."""

    views: tuple[Tensor, ...]
    labels: Tensor
    positions: Tensor


def joined(labeled: Drawn, unlabeled: Drawn) -> Batch:
    """A step's batch of its two halves."""
    return Batch(
        labeled.views, labeled.labels, unlabeled.views, unlabeled.labels, ids_U=unlabeled.positions
    )


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
        balanced: bool = False,
    ) -> None:
        self.data, self.size, self.on = data, size if views else 0, on.images
        labels = on.labels if isinstance(on, LabeledSet) else on.hidden_labels
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.views = [data.view(name) for name in views]
        device = data.device if data.features is None else torch.device("cpu")
        self.images = DeviceImages(on.images, device)
        self.order = (
            BalancedShuffle(self.labels, order)
            if balanced
            else EndlessShuffle(len(self.labels), order)
        )
        self.augmentation = augmentation
        self.ahead: _Ahead | None = None

    def draw(self, steps: int) -> list[Drawn]:
        """What each of the next steps gets."""
        if not self.size:
            none = self.labels[:0].to(self.data.device)
            return [Drawn((), none, none)] * steps
        features = self.data.features
        if features is not None:
            at = self.order.draw(self.size, steps)
            whole = [features.draw(self.on, v.name, at, self.augmentation) for v in self.views]
        else:
            at, images = self._images(steps)
            whole = [self.data.normalize(view(images, self.augmentation)) for view in self.views]
        seen = zip(*(view.split(self.size) for view in whole), strict=True)
        own = (rows.to(self.data.device).split(self.size) for rows in (self.labels[at], at))
        return [Drawn(*drawn) for drawn in zip(seen, *own, strict=True)]

    def _images(self, steps: int) -> tuple[Tensor, Tensor]:
        """Positions and pixels of the next steps; where gathering is slow, a thread has begun with it a chunk ago."""
        if not self.images.slow:
            at = self.order.draw(self.size, steps)
            return at, self.images(at)
        if self.ahead is not None and self.ahead.steps != steps:
            self.order.load(self.ahead.before)
            self.ahead = None
        ahead = self.ahead or self._begun(steps)
        self.ahead = self._begun(steps)
        return ahead.positions, ahead.images.result()

    def _begun(self, steps: int) -> _Ahead:
        before = self.order.state()
        at = self.order.draw(self.size, steps)
        return _Ahead(before, steps, at, _gatherer().submit(self.images, at))

    def chunks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented images, or features, at `rows` and their labels, some at a time: never one alone."""
        most = FEATURE_ROWS if self.data.features is not None else chunk_size(self.data.task)
        for at in rows.tensor_split(max(1, min(ceil(len(rows) / most), len(rows) // 2))):
            labels, features = self.labels[at].to(self.data.device), self.data.features
            if features is not None:
                yield features.plain(self.on, at), labels
            else:
                yield self.data.plain(self.images(at)), labels

    def state(self) -> dict[str, Any]:
        order = self.order.state() if self.ahead is None else self.ahead.before
        return {"order": order, "augmentation": self.augmentation.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        self.ahead = None
        self.order.load(state["order"])
        self.augmentation.set_state(state["augmentation"])


@lru_cache(maxsize=1)
def _gatherer() -> ThreadPoolExecutor:
    """The threads that gather ahead: one for each half of a batch."""
    return ThreadPoolExecutor(2, "gather")


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
            data,
            data.sets.labeled,
            labeled_views,
            size,
            stream(seed, 1),
            stream(seed, 3),
            balanced=spec.balanced,
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

    def sample(self) -> Sample:
        """Un-augmented images of each set, in chunks: what a stage starts from.

        START_EACH labeled images of every class at least, and START_LABELED in all, where there are so many. Without
        labeled views none is labeled: what sees no label must not depend on how many there are.
        """
        labeled, unlabeled = self.labeled, self.unlabeled
        classes = labeled.data.task.num_classes
        chosen = torch.empty(0, dtype=torch.int64)
        if labeled.views:
            count = max(START_LABELED, START_EACH * classes)
            chosen = torch.from_numpy(stratified_rows(labeled.labels.numpy(), count))
        count = max(START_UNLABELED, START_EACH * classes) if unlabeled.views else 0
        others = torch.randperm(len(unlabeled.labels) if count else 0, generator=self.start_stream)
        return Sample(
            lambda: labeled.chunks(chosen),
            lambda: (images for images, _ in unlabeled.chunks(others[:count])),
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
        return [joined(*halves) for halves in both]


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
        yield data.plain(images(positions).to(data.device))
