"""What a trial trains on: a labeled set and an unlabeled set are different types. Nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.rows import ImageRows, take
from tune_ssl.data.splits import Split, make_split, stratified_rows
from tune_ssl.data.store import Store

Ints = NDArray[np.int64]
Uint8s = NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Rows `indices` (n,) of `images`, uint8 (N, C, H, W) by row: the store's part of that name."""

    images: ImageRows
    indices: Ints
    part: str = "train"


@dataclass(frozen=True)
class Images:
    """The pieces' rows, one after the other; positions run over all of them."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(len(piece.indices) for piece in self.pieces)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, H, W)"""
        channels, height, width = self.pieces[0].images.shape[1:]
        return len(self), channels, height, width

    def gather(self, positions: Ints) -> Uint8s:
        """uint8 (m, C, H, W): a copy of the images at `positions` (m,), in that order."""
        out = np.empty((len(positions), *self.shape[1:]), dtype=np.uint8)
        start = 0
        for piece in self.pieces:
            stop = start + len(piece.indices)
            here = (positions >= start) & (positions < stop)
            if here.any():
                out[here] = take(piece.images, piece.indices[positions[here] - start])
            start = stop
        if len(positions) and not 0 <= positions.min() <= positions.max() < start:
            raise IndexError(f"positions must be in 0..{start - 1}")
        return out

    def at(self, positions: Ints) -> Images:
        """The images at increasing `positions`, as images of their own; nothing is copied."""
        starts = np.cumsum([0, *(len(piece.indices) for piece in self.pieces)])
        return Images(
            tuple(
                replace(
                    piece, indices=piece.indices[positions[(positions >= a) & (positions < b)] - a]
                )
                for piece, a, b in zip(self.pieces, starts, starts[1:], strict=False)
            )
        )


@dataclass(frozen=True)
class LabeledSet:
    """Images with the labels (n,) a loss or a metric may see: all >= 0, else ValueError."""

    images: Images
    labels: Ints

    def __post_init__(self) -> None:
        _same_length(self.images, self.labels)
        if len(self.labels) and self.labels.min() < 0:
            raise ValueError(f"a labeled set has label {self.labels.min()}, but all must be >= 0")

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, count: int) -> LabeledSet:
        """`count` of its images in the classes' shares, always the same ones; itself where it has no more."""
        if count >= len(self):
            return self
        rows = stratified_rows(self.labels, count)
        return LabeledSet(self.images.at(rows), self.labels[rows])


@dataclass(frozen=True)
class UnlabeledSet:
    """Images only. `hidden_labels` (n,) are for diagnostics, never for training; -1 where unknown."""

    images: Images
    hidden_labels: Ints

    def __post_init__(self) -> None:
        _same_length(self.images, self.hidden_labels)

    def __len__(self) -> int:
        return len(self.hidden_labels)


@dataclass(frozen=True)
class Sets:
    """The three sets of a trial."""

    labeled: LabeledSet
    unlabeled: UnlabeledSet
    validation: LabeledSet


def split_of(store: Store, spec: DataSpec, seed: int) -> Split:
    """`make_split` of the store's train part. UserError where unlabeled images' classes count, but are not known."""
    if store.unlabeled is not None and spec.unlabeled_mismatch is not None:
        own = len(store.unlabeled.labels)
        text = (
            f"is {spec.unlabeled_mismatch}, but the dataset has {own} unlabeled images of its own, whose classes are "
            "not known"
        )
        raise UserError(Problem(text, key="data.unlabeled_mismatch"))
    return make_split(
        store.train.labels, store.class_names, spec, seed=seed, has_val=store.val is not None
    )


def build_sets(store: Store, split: Split) -> Sets:
    """The split's rows of `store`; the unlabeled set also has the store's own unlabeled part.

    Raises ValueError if the split was made for a train part of another size.
    """
    train = store.train
    if split.train_size != len(train.labels):
        raise ValueError(
            f"the split is for {split.train_size} images, but the store has {len(train.labels)}"
        )

    def rows(indices: Ints) -> LabeledSet:
        return LabeledSet(Images((Piece(train.images, indices),)), train.labels[indices])

    pieces, hidden = [Piece(train.images, split.unlabeled)], [train.labels[split.unlabeled]]
    if store.unlabeled is not None:
        extra = len(store.unlabeled.labels)
        pieces.append(Piece(store.unlabeled.images, np.arange(extra), "unlabeled"))
        hidden.append(store.unlabeled.labels)
    unlabeled = UnlabeledSet(Images(tuple(pieces)), np.concatenate(hidden))

    if split.validation_part == "train":
        return Sets(rows(split.labeled), unlabeled, rows(split.validation))
    if store.val is None:
        raise ValueError("the split validates on the part 'val', but the store has none")
    held = store.val.rows
    images = Images((Piece(store.val.images, held, "val"),))
    validation = LabeledSet(images, store.val.labels[held])
    return Sets(rows(split.labeled), unlabeled, validation)


def _same_length(images: Images, labels: Ints) -> None:
    if len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images, but {len(labels)} labels")
