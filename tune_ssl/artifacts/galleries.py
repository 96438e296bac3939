"""Galleries: rows of images that show what a trained network sees, each row one small PNG.

They decide nothing. Neighbours are looked for among validation images, never among test images.

Shapes: Q queries, k neighbours of each, N validation images, n images in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tune_ssl.artifacts.thumbnails import strip
from tune_ssl.data.loading import SetLoader, joined, stream
from tune_ssl.data.sets import LabeledSet
from tune_ssl.training.evaluation import predict
from tune_ssl.training.loop import Trained
from tune_ssl.training.metrics import class_agreement, nearest_neighbours, some_rows

ROW_LENGTH = 8  # images
QUERIES, NEIGHBOURS = 4, 5
PICTURES, NEAREST = "pictures", "neighbours"
TITLES = {
    PICTURES: "Training images and what the method makes of them",
    NEAREST: "Validation images and the nearest others in feature space",
}

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Images side by side in a PNG (base64) of `width` pixels: n equally wide cells, a caption for each.

    Without captions the title says what all of them are.
    """

    title: str
    png: str
    width: int
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Rows of images below each other; `values` are numbers about them. `error` says why there are none."""

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Neighbours:
    """Row numbers in the validation set `on`: queries (Q,) and the `nearest_Qk` of each.

    `agreement` is `metrics.class_agreement` at the same k over all N validation images.
    """

    on: LabeledSet
    queries_Q: Ints
    nearest_Qk: Ints
    agreement: float

    @property
    def k(self) -> int:
        return len(self.nearest_Qk.T)

    def rows(self) -> list[Ints]:
        """Per query: its own row number, then its neighbours'."""
        return [
            np.array([q, *near]) for q, near in zip(self.queries_Q, self.nearest_Qk, strict=True)
        ]

    def agreements(self) -> list[float]:
        """Per query: the share of its neighbours that have its class."""
        same_Qk = self.on.labels[self.nearest_Qk] == self.on.labels[self.queries_Q, None]
        return [float(share) for share in same_Qk.mean(axis=1)]


def make_galleries(trained: Trained, seed: int) -> list[Gallery]:
    """All galleries of a trained network. One that cannot be made is there with its error."""
    makers: dict[str, Callable[[], Gallery | None]] = {
        PICTURES: lambda: pictures(trained, seed),
        NEAREST: lambda: neighbours(trained),
    }
    made = []
    for name, make in makers.items():
        try:
            gallery = make()
        except Exception as error:  # a picture less, where the result is all that counts
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            gallery = Gallery(name, TITLES[name], error=text)
        if gallery is not None:
            made.append(gallery)
    return made


def pictures(trained: Trained, seed: int) -> Gallery | None:
    """The stage's own pictures of some training images; None where it makes none."""
    found = _pictures(trained, seed)
    if not found:
        return None
    rows = []
    for title, images in found.items():
        pixels = trained.data.denormalize(images[:ROW_LENGTH]).cpu().numpy()
        rows.append(Row(str(title), *strip(pixels)))
    return Gallery(PICTURES, TITLES[PICTURES], tuple(rows))


@torch.no_grad()
def _pictures(trained: Trained, seed: int) -> dict[str, torch.Tensor]:
    """`Stage.pictures` of ROW_LENGTH images of each set; the same ones for the same seed."""
    stage, network, data = trained.stage, trained.network, trained.data
    loaders = (
        SetLoader(data, on, views, ROW_LENGTH, stream(seed, order), stream(seed, order + 1))
        for on, views, order in (
            (data.sets.labeled, stage.labeled_views, 50),
            (data.sets.unlabeled, stage.unlabeled_views, 52),
        )
    )
    labeled, unlabeled = (loader.draw(1)[0] for loader in loaders)
    training = network.training
    network.eval()
    try:
        with torch.random.fork_rng([data.device] if data.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return stage.pictures(network, joined(labeled, unlabeled))
    finally:
        network.train(training)


def neighbours(trained: Trained) -> Gallery | None:
    """Some validation images with the nearest others in feature space; None where there is one image."""
    if len(trained.data.sets.validation) < 2:
        return None
    found = find_neighbours(trained, QUERIES, NEIGHBOURS)
    classes = trained.data.store.class_names
    rows = []
    for members in found.rows():
        names = tuple(classes[label] for label in found.on.labels[members])
        rows.append(Row(names[0], *strip(found.on.images.gather(members)), names))
    values = {"class_agreement": found.agreement, "k": found.k, "images": len(found.on)}
    return Gallery(NEAREST, TITLES[NEAREST], tuple(rows), values)


def find_neighbours(trained: Trained, queries: int, k: int) -> Neighbours:
    """By cosine similarity of features, each query's k nearest other validation images.

    Both numbers are capped by the images there are. ValueError where a feature is not finite.
    """
    on = trained.data.sets.validation
    features_ND = predict(trained.stage, trained.network, trained.data, on).features_ND.numpy()
    queries_Q = choose_queries(on.labels, queries)
    nearest_Qk = nearest_neighbours(features_ND, queries_Q, k)
    return Neighbours(on, queries_Q, nearest_Qk, class_agreement(features_ND, on.labels, k))


def choose_queries(labels_N: Ints, count: int) -> Ints:
    """Row numbers of `count` images (of all, where there are fewer), of as many classes as possible.

    Each class's first image comes before any second one; where not all classes have room, evenly
    spaced ones are taken. The choice depends on nothing but the labels.
    """
    turn_N = np.empty(len(labels_N), np.int64)  # how many of its class came before
    for label in np.unique(labels_N):
        own = labels_N == label
        turn_N[own] = np.arange(own.sum())
    chosen: list[int] = []
    for turn in range(count):
        rows = np.flatnonzero(turn_N == turn)
        if len(chosen) == count or not len(rows):
            break
        rows = rows[labels_N[rows].argsort(kind="stable")]
        chosen += rows[some_rows(len(rows), count - len(chosen))].tolist()
    return np.array(chosen, np.int64)
