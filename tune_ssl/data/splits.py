"""Which training images are labeled, which are held out for validation: pure numpy, the same on every machine.

Every choice is a prefix of one seeded order of the images, so with the same seed the labels of a
smaller budget are a subset of those of a larger one. So are the images of a class in a longer tail, and, of
unlabeled images that are more and more of other classes, those that are left.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import first_names

Ints = NDArray[np.int64]

ROUNDING = 1e-9  # by which a number of images may be below a whole one
HOLD_OUT_RATIO = 0.2
HOLD_OUT_SEED = 20_240_601  # never to change: it says which images are test images


@dataclass(frozen=True)
class Split:
    """Sorted int64 rows of the train part.

    `labeled` keep their label. `unlabeled` are all images of the training pool, the labeled ones
    included (as in FixMatch), unless `data.unlabeled_imbalance` or `data.unlabeled_mismatch` choose
    others. `validation` are held out; it is empty where `validation_part` is
    `val`, the dataset's own part. `train_size` is the number of images the split was made for.
    """

    labeled: Ints
    unlabeled: Ints
    validation: Ints
    validation_part: Literal["train", "val"]
    train_size: int

    @property
    def digest(self) -> str:
        """12 hex digits of the SHA-256 of all that the split says."""
        hasher = hashlib.sha256(f"{self.validation_part} {self.train_size}".encode())
        for rows in (self.labeled, self.unlabeled, self.validation):
            hasher.update(f" {len(rows)} ".encode() + rows.astype("<i8").tobytes())
        return hasher.hexdigest()[:12]

    def to_record(self) -> dict[str, Any]:
        """JSON-able; the unlabeled rows are left out where they are all but the validation rows."""
        every = np.array_equal(self.unlabeled, _others(self.train_size, self.validation))
        return {
            "train_size": self.train_size,
            "validation_part": self.validation_part,
            "labeled": self.labeled.tolist(),
            "validation": self.validation.tolist(),
            **({} if every else {"unlabeled": self.unlabeled.tolist()}),
            "digest": self.digest,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Split:
        """The split that `to_record` wrote; UserError if the record was changed since."""
        labeled, validation = (
            np.array(record[name], dtype=np.int64) for name in ("labeled", "validation")
        )
        size, part = record["train_size"], record["validation_part"]
        unlabeled = _others(size, validation)
        if "unlabeled" in record:
            unlabeled = np.array(record["unlabeled"], dtype=np.int64)
        split = cls(labeled, unlabeled, validation, part, size)
        if split.digest != record["digest"]:
            raise UserError(
                f"the saved split has digest {record['digest']}, but its rows have {split.digest}"
            )
        return split


def make_split(
    labels: Ints, class_names: Sequence[str], spec: DataSpec, *, seed: int, has_val: bool
) -> Split:
    """Draw the validation rows, then the labeled ones from what remains.

    With `N` images and `K` classes the draws from PCG64(seed) are, in this order: N keys and K class
    keys for the validation order, N keys and K class keys for the label order. All are drawn always,
    as raw 64-bit integers, whose stream numpy guarantees.

    - `labeled_ratio`, stratified: proportional to the classes (each count is the nearest whole
      number up to the exact total), but at least one per class.
    - `num_labels`, stratified: as equal as possible; which classes have one more is the seed's.
    - `random`: a plain permutation, for labels and validation.
    - `validation: within_budget`: validation images come out of the labels themselves, in each class
      the nearest whole number to `val_ratio` of them, at least one. The store's own validation part
      is then not used. Smaller budgets stay subsets of larger ones, in both parts.
    - `imbalance` R: the training pool has floor(n_1 R^(-(k - 1) / (K - 1))) images of class k, the first
      ones in the label order (long-tailed CIFAR of Cui et al. 2019, arXiv 1901.05555), with the largest
      n_1 that no class is too small for. Stratified labels are then proportional, `num_labels` too. What
      is held out for validation stays as it is.
    - `unlabeled_imbalance`: the same for the unlabeled images, without changing the labels.
    - `unlabeled_mismatch` F: of S unlabeled images round(F S) are of other classes, the first ones in the
      validation order; the rest is proportional to the classes of the task. S is what both could give
      alone, whatever F is (the class distribution mismatch of Oliver et al. 2018, arXiv 1804.09170, where F
      is a share of the classes).

    Args:
        labels: int64 (N,), in 0..K-1; -1 of an image of another class than the task's.
        class_names: the K names, for messages.
        seed: `data.split_seed`, or the trial's seed.
        has_val: the dataset brings its own validation part.

    Raises:
        UserError: the budget is larger than the pool, or leaves a class without a label; or the pool cannot be
            as unbalanced, or has no image of another class.
    """
    try:
        return _drawn(labels, class_names, spec, seed, has_val)
    except _Unbalanced as error:
        way = _way_out(labels, class_names, spec, seed, has_val)
        raise UserError(replace(p, text=p.text + way) for p in error.problems) from None


class _Unbalanced(UserError):
    """A budget that the classes' sizes do not allow, where another way of drawing may do."""


def _way_out(
    labels: Ints, class_names: Sequence[str], spec: DataSpec, seed: int, has_val: bool
) -> str:
    """What of `data` works instead, as the end of a sentence: it was tried."""
    every = {"split": "stratified", "validation": "split", "num_labels": None, "labeled_ratio": 1.0}
    whole = has_val or spec.validation != "split"
    pool = len(_drawn(labels, class_names, spec.model_copy(update=every), seed, whole).labeled)
    asked = spec.num_labels or round((spec.labeled_ratio or 1) * pool)
    ways: list[dict[str, Any]] = [{"split": "stratified"}]
    for share in (1, 1.5, 2, 4, 8, 16, 32):
        ratio = min(1.0, math.ceil(1e4 * share * asked / max(1, pool)) / 1e4)
        ways.append({"split": "stratified", "num_labels": None, "labeled_ratio": ratio})
    for way in ways:
        tried = spec.model_copy(update=way)
        if tried == spec:
            continue
        try:
            found = _drawn(labels, class_names, tried, seed, has_val)
        except UserError:
            continue
        count = len(found.labeled) + (len(found.validation) if spec.validation != "split" else 0)
        if "labeled_ratio" not in way:
            return f"; data.split=stratified takes {count}, of each class"
        return (
            f"; data.labeled_ratio={way['labeled_ratio']:g} takes {count} in the classes' own shares, at least one of "
            "each"
        )
    return ""


def _drawn(
    labels: Ints, class_names: Sequence[str], spec: DataSpec, seed: int, has_val: bool
) -> Split:
    """`make_split` itself."""
    bits = np.random.PCG64(seed)
    val_order = _Order.draw(bits, len(labels), len(class_names))
    label_order = _Order.draw(bits, len(labels), len(class_names))
    stratified = spec.split == "stratified"

    own_part = has_val and spec.validation == "split"
    validation = np.empty(0, dtype=np.int64)
    task = np.flatnonzero(labels >= 0)
    if spec.validation == "split" and not has_val:
        keys = val_order.at(task)
        order = keys.proportional(labels[task], keep_one=True) if stratified else keys.plain()
        validation = np.sort(task[order[: max(1, _nearest(spec.val_ratio * len(task)))]])
    rest = np.setdiff1d(task, validation)
    _refuse_empty(spec, labels[rest], class_names)

    pool = _long_tail(spec, "imbalance", labels, rest, label_order)
    counts = np.bincount(labels[pool], minlength=len(class_names))
    budget = _budget(spec, counts, class_names)
    keys = label_order.at(pool)
    if not stratified:
        order = keys.plain()
    elif spec.num_labels is not None and spec.imbalance == 1:
        order = keys.balanced(labels[pool])
    else:
        order = keys.proportional(labels[pool])
    chosen = pool[order[:budget]]

    if spec.validation == "within_budget":
        _refuse_thin(spec, labels[chosen], class_names, least=2)
        held = _within(labels[chosen], spec.val_ratio)
        validation, chosen = np.sort(chosen[held]), chosen[~held]
    _refuse_thin(spec, labels[chosen], class_names, least=1)
    if spec.unlabeled_imbalance is not None:
        pool = _long_tail(spec, "unlabeled_imbalance", labels, rest, label_order)
    unlabeled = np.setdiff1d(pool, validation)
    if spec.unlabeled_mismatch is not None:
        unlabeled = _mixed(spec.unlabeled_mismatch, labels, unlabeled, val_order)
    part: Literal["train", "val"] = "val" if own_part else "train"
    return Split(np.sort(chosen), unlabeled, validation, part, len(labels))


def _long_tail(spec: DataSpec, key: str, labels: Ints, rows: Ints, order: _Order) -> Ints:
    """Of `rows`, sorted, each class's first ones in the order: as many as the ratio `data.<key>` leaves it."""
    ratio = getattr(spec, key)
    if ratio == 1:
        return rows
    sizes = np.bincount(labels[rows])
    place = np.linspace(0, 1, len(sizes))
    largest = (sizes * ratio**place).min()
    if largest * (1 + ROUNDING) < ratio:
        most = math.floor((sizes[:-1] ** (1 / (1 - place[:-1]))).min())
        text = f"is {ratio:g}, but must be at most {most}: with the images of the training pool the last class has none"
        raise UserError(Problem(text, key=f"data.{key}"))
    counts = np.floor(largest * ratio**-place + ROUNDING).astype(np.int64)
    kept: Ints = rows[_ranks(labels[rows], order.keys[rows]) < counts[labels[rows]]]
    return kept


def _mixed(share: float, labels: Ints, own: Ints, order: _Order) -> Ints:
    """Sorted rows of which a share is of other classes and the rest of `own`, as many for every share."""
    others = np.flatnonzero(labels < 0)
    if not len(others):
        text = f"is {share}, but all images of the training pool are of data.classes"
        raise UserError(Problem(text, key="data.unlabeled_mismatch"))
    size = min(len(own), len(others))
    count = _nearest(share * size)
    inside = own[order.at(own).proportional(labels[own])[: size - count]]
    outside = others[order.at(others).plain()[:count]]
    return np.sort(np.concatenate([inside, outside]))


def hold_out(labels: Ints) -> tuple[Ints, Ints]:
    """Rows of the (train, test) parts for a dataset without a test part: a fixed stratified 20 %."""
    order = _Order.draw(np.random.PCG64(HOLD_OUT_SEED), len(labels), int(labels.max()) + 1)
    spare = len(labels) - len(np.unique(labels))  # a class's last image stays
    count = min(_nearest(HOLD_OUT_RATIO * len(labels)), spare)
    test = order.proportional(labels, keep_one=True)[:count]
    test = np.sort(test)
    return _others(len(labels), test), test


def stratified_rows(labels: Ints, count: int) -> Ints:
    """`count` sorted rows of N labels in the classes' shares: always the same ones, and a prefix of a larger count's.

    All rows where `count` is at least N.
    """
    order = _Order.draw(np.random.PCG64(HOLD_OUT_SEED), len(labels), int(labels.max(initial=0)) + 1)
    return np.sort(order.proportional(labels)[:count])


@dataclass(frozen=True)
class _Order:
    """Random keys (uint64) of images and classes, from which every order follows."""

    keys: NDArray[np.uint64]  # (N,)
    class_keys: NDArray[np.uint64]  # (K,)

    @classmethod
    def draw(cls, bits: np.random.PCG64, images: int, classes: int) -> _Order:
        return cls(bits.random_raw(images), bits.random_raw(classes))

    def at(self, rows: Ints) -> _Order:
        return _Order(self.keys[rows], self.class_keys)

    def plain(self) -> Ints:
        return np.argsort(self.keys, kind="stable")

    def balanced(self, labels: Ints) -> Ints:
        """One image of each class, then a second one of each, and so on."""
        return np.lexsort((self.class_keys[labels], _ranks(labels, self.keys)))

    def proportional(self, labels: Ints, *, keep_one: bool = False) -> Ints:
        """Each class's first image, then by share of the class: every prefix is stratified.

        This is the Webster / Sainte-Lague apportionment: unlike the largest remainder, a class never
        loses a seat when the total grows. With `keep_one`, the last image of each class comes last.
        """
        rank = _ranks(labels, self.keys)
        size = np.bincount(labels)[labels]
        tier = np.where(rank == 0, 0, 1)
        if keep_one:
            tier[rank == size - 1] = 2
        return np.lexsort((self.class_keys[labels], (rank + 0.5) / size, tier))


def _ranks(labels: Ints, keys: NDArray[np.uint64] | Ints) -> Ints:
    """(N,): the place of each image among those of its class, by key."""
    order = np.lexsort((keys, labels))
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - starts[labels[order]]
    return ranks


def _within(labels: Ints, ratio: float) -> NDArray[np.bool_]:
    """Which of the labeled images, in drawing order, are for validation; it never depends on later ones."""
    rank = _ranks(labels, np.arange(len(labels)))

    def held(m: Ints) -> Ints:  # of the first m of a class
        nearest = np.floor(ratio * m + 0.5).astype(np.int64)
        return np.where(m < 2, 0, np.minimum(np.maximum(nearest, 1), m - 1))

    return held(rank + 1) > held(rank)


def _budget(spec: DataSpec, counts: Ints, class_names: Sequence[str]) -> int:
    """Labels in all; UserError where the pool, with `counts` images per class, cannot give them."""
    pool, classes = int(counts.sum()), len(class_names)
    budget = pool
    if spec.num_labels is not None:
        budget = spec.num_labels
    elif spec.labeled_ratio is not None:
        budget = _nearest(spec.labeled_ratio * pool)
    key, value = _asked(spec)
    if budget > pool:
        tail = f" with data.imbalance={spec.imbalance:g}" if spec.imbalance > 1 else ""
        text = f"is {value}, but the training pool has only {pool} images{tail}"
        raise UserError(Problem(text, key=key))
    each = 2 if spec.validation == "within_budget" else 1
    if budget < each * classes:
        least: float = each * classes
        if least > pool:
            text = f"is '{spec.validation}', which takes {least} labels, but the pool has {pool} images"
            raise UserError(Problem(text, key="data.validation"))
        if spec.num_labels is None:
            least = math.ceil(1e4 * least / pool) / 1e4
        what = "one label" if each == 1 else "one label and one validation image"
        text = f"is {value}, but must be at least {least} ({what} for each of {classes} classes)"
        raise UserError(Problem(text, key=key))
    if spec.num_labels is not None and spec.split == "stratified" and spec.imbalance == 1:
        share = -(-budget // classes)  # of every class, for which have one more is the seed's
        short = [
            f"{class_names[k]} has {counts[k]}" for k in np.flatnonzero(counts < share).tolist()
        ]
        if short:
            text = (
                f"is {value}, which takes up to {share} images per class, but in the training pool "
                f"{first_names(short)}; at most {classes * int(counts.min())} can be balanced"
            )
            raise _Unbalanced(Problem(text, key=key))
    return budget


def _refuse_empty(spec: DataSpec, labels: Ints, class_names: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    empty = [class_names[k] for k in np.flatnonzero(counts == 0).tolist()]
    if empty:
        text = f"is {spec.val_ratio}, but leaves no training image of {first_names(empty)}"
        raise UserError(Problem(text, key="data.val_ratio"))


def _refuse_thin(spec: DataSpec, labels: Ints, class_names: Sequence[str], *, least: int) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    thin = [class_names[k] for k in np.flatnonzero(counts < least).tolist()]
    if thin:
        key, value = _asked(spec)
        lack = "without a label" if least == 1 else "with fewer than 2 labels"
        text = f"is {value}, but leaves {first_names(thin)} {lack}; it takes more labels"
        raise _Unbalanced(Problem(text, key=key))


def _asked(spec: DataSpec) -> tuple[str, object]:
    if spec.num_labels is not None:
        return "data.num_labels", spec.num_labels
    return "data.labeled_ratio", 1.0 if spec.labeled_ratio is None else spec.labeled_ratio


def _others(size: int, rows: Ints) -> Ints:
    rest = np.ones(size, dtype=np.bool_)
    rest[rows] = False
    return np.flatnonzero(rest)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
