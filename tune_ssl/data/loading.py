"""Batches: images drawn by index, seen through their views, normalised, on the device.

Views are made for several steps at once (a *chunk*), because an operation on a batch costs much the
same for 32 small images as for 500; on a GPU for 10,000. Random numbers are drawn for a *block* of steps, the
same on every device; a chunk is one block, on a GPU as many as fill it. All that a chunk needs goes to
the device in one copy for each half of the batch, and on a GPU a thread prepares it beside the chunk before.
Order and augmentation have a random stream each, so that two
variants of a method see the same images in the same order whatever their views are.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from tune_ssl.data.transfer import Tensors, Transfer, to_device

BLOCK_PIXELS = 1 << 18  # pixel values of one channel whose augmentation is drawn at once
GPU_PIXELS = 1 << 22  # likewise, that are augmented at once on a GPU: about 0.2 GB on the way
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

    `slow` says that what a chunk needs is worth a thread: files are decoded, or it goes to a GPU.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if np.prod(images.shape) < DEVICE_SHARE * free:
                self.resident = _copied(images, device)
        encoded = any(isinstance(piece.images, EncodedImages) for piece in images.pieces)
        self.slow = encoded or device.type == "cuda"

    def __call__(self, positions: Tensor) -> Tensor:
        """uint8 (m, C, H, W) at `positions` (m,), a CPU tensor."""
        return self.found(to_device(self.needed(positions), self.device))

    def needed(self, positions: Tensor) -> Tensor:
        """What must go to the device: the images at `positions`, or where they are there already, the positions."""
        if self.resident is not None:
            return positions
        return torch.from_numpy(self.images.gather(positions.numpy()))

    def found(self, sent: Tensor) -> Tensor:
        """The images, of what was sent."""
        return sent if self.resident is None else self.resident[sent]


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
            "permutation": self.permutation,  # never written to
            "position": self.position,
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.permutation, self.position = state["permutation"], state["position"]
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
    """The next chunk, which a thread prepares: where the streams stood before, how long it is, and what was sent."""

    before: dict[str, Any]
    size: tuple[int, int]
    sent: Future[Transfer]


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

    def draw(self, steps: int, blocks: int = 1) -> list[Drawn]:
        """What each of the next steps gets.

        `blocks` times as many steps, seen as if each block had been asked for by itself.
        """
        if not self.size:
            none = torch.empty(0, dtype=torch.int64, device=self.data.device)
            return [Drawn((), none, none)] * (steps * blocks)
        if self.data.features is not None:
            return [step for _ in range(blocks) for step in self._feature_steps(steps)]
        (first, *rows), *plans = self._next(steps, blocks).arrived()
        images, left = self.images.found(first), iter(plans)
        whole = [
            self.data.normalize(view.apply(images, [next(left) for _ in view.ops]))
            for view in self.views
        ]
        return self._steps(whole, rows)

    def skip(self, steps: int, blocks: int) -> None:
        """Go on as if so many steps had been drawn."""
        for _ in range(blocks if self.size else 0):
            if self.data.features is not None:
                self._feature_steps(steps)
            else:
                self._block(steps)

    def _steps(self, whole: list[Tensor], rows: Sequence[Tensor]) -> list[Drawn]:
        """Step by step, of what several steps see, and their labels and positions."""
        seen = zip(*(view.split(self.size) for view in whole), strict=True)
        own = (of_all.split(self.size) for of_all in rows)
        return [Drawn(*drawn) for drawn in zip(seen, *own, strict=True)]

    def _feature_steps(self, steps: int) -> list[Drawn]:
        features = self.data.features
        assert features is not None
        at = self.order.draw(self.size, steps)
        whole = [features.draw(self.on, view.name, at, self.augmentation) for view in self.views]
        [rows] = Transfer([(self.labels[at], at)], self.data.device).arrived()
        return self._steps(whole, rows)

    def _block(self, steps: int) -> tuple[Tensor, list[list[Tensors]]]:
        """Positions for some steps, and what each view draws for them."""
        at = self.order.draw(self.size, steps)
        channels, height, width = self.on.shape[1:]
        shape = len(at), channels, height, width
        return at, [view.draw(shape, self.augmentation) for view in self.views]

    def _sent(self, steps: int, blocks: int) -> Transfer:
        """All that the next steps need, on its way: images or their positions, labels, what the views planned."""
        positions, draws = zip(*[self._block(steps) for _ in range(blocks)], strict=True)
        at = torch.cat(positions)
        of_views = zip(self.views, zip(*draws, strict=True), strict=True)
        plans = [own for view, of_view in of_views for own in view.plan(of_view)]
        needed = self.images.needed(at), self.labels[at], at
        return Transfer([needed, *plans], self.images.device)

    def _next(self, steps: int, blocks: int) -> Transfer:
        """What the next steps need; where that takes long, a thread has begun with it a chunk ago."""
        if not self.images.slow:
            return self._sent(steps, blocks)
        if self.ahead is not None and self.ahead.size != (steps, blocks):
            self.load(self.state())
        sent = self.ahead.sent.result() if self.ahead is not None else self._sent(steps, blocks)
        self.ahead = None
        before = self.state()
        future = _gatherer().submit(self._sent, steps, blocks)
        self.ahead = _Ahead(before, (steps, blocks), future)
        return sent

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
        if self.ahead is not None:
            return self.ahead.before
        return {"order": self.order.state(), "augmentation": self.augmentation.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        if self.ahead is not None:
            wait([self.ahead.sent])  # it draws from the same streams
            self.ahead = None
        self.order.load(state["order"])
        self.augmentation.set_state(state["augmentation"])


@lru_cache(maxsize=1)
def _gatherer() -> ThreadPoolExecutor:
    """The threads that prepare chunks: one for each half of a batch."""
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
        # A block depends on nothing of the method, so that labeled images are augmented alike.
        step_pixels = size * (1 + 2 * spec.mu) * prod(data.task.size)
        self.block_steps = max(1, BLOCK_PIXELS // step_pixels)
        most = GPU_PIXELS // step_pixels if data.device.type == "cuda" else 1
        self.blocks = max(1, most // self.block_steps)
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
        # The chunk may have been another device's, with more blocks.
        whole, taken = divmod(state["taken"], self.block_steps)
        self.labeled.skip(self.block_steps, whole)
        self.unlabeled.skip(self.block_steps, whole)
        self.chunk_start, self.chunk, self.taken = self._position(), [], 0
        if taken:
            self.chunk, self.taken = self._draw_chunk(), taken

    def _position(self) -> dict[str, Any]:
        return {"labeled": self.labeled.state(), "unlabeled": self.unlabeled.state()}

    def _draw_chunk(self) -> list[Batch]:
        both = zip(
            self.labeled.draw(self.block_steps, self.blocks),
            self.unlabeled.draw(self.block_steps, self.blocks),
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
    for positions in every.split(size or chunk_size(data.task)):
        found = torch.from_numpy(on.gather(positions.numpy()))
        yield data.plain(to_device(found, data.device))
