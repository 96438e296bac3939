"""What a confirmed network says of images whose labels it was not trained on.

Which images are looked at depends on their numbers alone, so that the networks of all seeds look at the same ones,
but for those that a seed was trained on with their labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tune_ssl.data.sets import Images, Piece, UnlabeledSet
from tune_ssl.data.splits import Split
from tune_ssl.data.store import Store
from tune_ssl.records.predictions import PARTS, Ints, Pool

if TYPE_CHECKING:
    from tune_ssl.training.loop import Trained

MOST = 10_000  # images of a pool
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
FIRST = ("val", "train", "unlabeled")  # who gets what another part leaves


def pool_of(trained: Trained, most: int = MOST) -> Pool:
    """What the network says of at most `most` images that it was not trained on with their labels."""
    from tune_ssl.training.evaluation import predict

    data = trained.data
    rows, left_out = choose(data.store, data.split, most)
    parts = {"train": data.store.train, "val": data.store.val, "unlabeled": data.store.unlabeled}
    pieces, columns = [], []
    for number, name in enumerate(PARTS):
        part, own = parts[name], rows[name]
        if part is None or not len(own):
            continue
        pieces.append(Piece(part.images, own, name))
        held = (
            np.isin(own, data.split.validation)
            if name == "train"
            else np.full(len(own), name == "val")
        )
        columns.append((np.full(len(own), number), own, held, part.labels[own]))
    if not pieces:
        none, nothing = np.empty(0, np.int64), np.empty(0, np.float64)
        return Pool(none, none, none.astype(np.bool_), none, none, nothing, nothing, left_out)
    part_n, row_n, held_n, given_n = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    on = UnlabeledSet(Images(tuple(pieces)), given_n)
    logits_nK = predict(trained.stage, trained.network, data, on).logits_NK
    assert logits_nK is not None
    shares_nK = logits_nK.double().softmax(dim=1).numpy()
    if not np.isfinite(shares_nK).all():
        raise ValueError("a prediction is not finite")
    every = np.arange(len(given_n))
    predicted_n = shares_nK.argmax(axis=1).astype(np.int64)
    of_given_n = shares_nK[every, np.maximum(given_n, 0)] * (given_n >= 0)
    confidence_n = shares_nK[every, predicted_n]
    return Pool(part_n, row_n, held_n, given_n, predicted_n, confidence_n, of_given_n, left_out)


def choose(store: Store, split: Split, most: int = MOST) -> tuple[dict[str, Ints], int]:
    """Sorted rows of each part that a pool has, and how many images it leaves out.

    None of them was labeled in training. Each part gets a third of the places if it has so many images; what is left
    goes to the validation part, then to train, then to unlabeled.
    """
    hidden = np.setdiff1d(store.train.rows, split.labeled)
    own_part = store.val is not None and split.validation_part == "val"
    held = store.val.rows if store.val is not None and own_part else np.empty(0, np.int64)
    counts = {
        "val": len(held),
        "train": len(hidden),
        "unlabeled": len(store.unlabeled.labels) if store.unlabeled is not None else 0,
    }
    places = {name: min(counts[name], most // len(FIRST)) for name in FIRST}
    for name in FIRST:
        places[name] += min(counts[name] - places[name], most - sum(places.values()))
    rows = {name: np.sort(spread(counts[name])[: places[name]]) for name in ("val", "unlabeled")}
    rows["val"] = held[rows["val"]]
    order = spread(split.train_size)
    rows["train"] = np.sort(order[np.isin(order, hidden)][: places["train"]])
    return rows, sum(counts.values()) - sum(places.values())


def spread(count: int) -> Ints:
    """0..count-1 in an order of which every beginning is spread evenly: the same one for the same count.

    By the fractional parts of multiples of the golden ratio (Knuth 1998, The Art of Computer Programming 3, 6.4).
    """
    return np.argsort(np.arange(count, dtype=np.uint64) * GOLDEN, kind="stable").astype(np.int64)
