"""Single images, by what the confirmed networks of a condition's seeds say of them. No test image is among them.

A seed speaks of an image only where its network was not trained on that image's label: it is out-of-fold there.

confused     wrong predictions of validation images, by the pair of classes
suspects     images that have a label which the networks agree against: perhaps label errors
label_next   images without a label for any of the seeds, on which the networks disagree: worth a label

Of each image and seed the records hold the predicted class, its probability, and that of the given label; the other
probabilities are not kept. What that makes approximate is said where it counts.

Shapes: n images, S seeds, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.read.load import Runs
from tune_ssl.records.predictions import PARTS, Pool, Predictions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LEAST = 2  # seeds that must speak of an image before its label is doubted
MOST = 1000  # images of a method and condition in suspects and label_next
DIGITS = 9  # of a score, so that equal images are equal in whatever order their seeds are added up
CHUNK = 1 << 22  # values of a table (images, classes) that is made at once

OWN = ("run", "label", "method", "condition")
CONFUSED = str.split("part row given predicted pair_count seeds votes score")
SUSPECTS = str.split("part row given predicted seeds votes score")
LABEL_NEXT = str.split("part row predicted seeds votes score")


class Group(NamedTuple):
    """The confirmed seeds of one method in one condition."""

    run: str
    label: str
    method: str
    condition: str
    seeds: tuple[Predictions, ...]
    classes: int

    @property
    def own(self) -> dict[str, str]:
        return {key: getattr(self, key) for key in OWN}

    @property
    def pools(self) -> list[Pool]:
        return [one.pool for one in self.seeds if one.pool is not None]

    @property
    def accuracy(self) -> float:
        """Mean per-class accuracy on the test images, over the seeds; nan without any."""
        means = []
        for one in self.seeds:
            right = np.bincount(one.test_true, one.test_correct)
            there = np.bincount(one.test_true)
            means.append(
                float((right[there > 0] / there[there > 0]).mean()) if len(right) else math.nan
            )
        return float(np.mean(means)) if means else math.nan


def groups(runs: Runs) -> list[Group]:
    """The methods and conditions of which any network spoke of single images, in the order of the studies."""
    found = []
    for study in runs.studies:
        of: dict[str, list[Predictions]] = {}
        for one in runs.predictions.get(study.run, {}).values():
            of.setdefault(one.condition, []).append(one)
        for condition in (each["id"] for each in study.raw["conditions"]):
            seeds = tuple(sorted(of.get(condition, ()), key=lambda one: (one.seed, one.trial)))
            if any(one.pool is not None for one in seeds):
                about = (study.run, study.label, study.method, condition)
                found.append(Group(*about, seeds, _classes(study.num_classes, seeds)))
    return found


def best_groups(found: Iterable[Group]) -> list[Group]:
    """Of each condition the method with the best mean test accuracy: the one that a page has room for."""
    best: dict[str, Group] = {}
    for group in found:
        if group.condition not in best or not group.accuracy <= best[group.condition].accuracy:
            best[group.condition] = group
    return list(best.values())


def _classes(known: int, seeds: Sequence[Predictions]) -> int:
    pools = [one.pool for one in seeds if one.pool is not None]
    every = [*(one.test_true for one in seeds), *(p.predicted for p in pools)]
    return max([known, 2, *(int(values.max(initial=0)) + 1 for values in every)])


# ---- one line per image and seed ------------------------------------------------------------------


def votes(pools: Sequence[Pool]) -> pd.DataFrame:
    """All that is said: a row per image and seed with part, row, validation, given, predicted, confidence, own, seed.

    `own` is the probability of the given label. Images are in the order of their part and row.
    """
    columns: dict[str, list[NDArray[Any]]] = {
        "part": [pool.part for pool in pools],
        "row": [pool.row for pool in pools],
        "validation": [pool.validation for pool in pools],
        "given": [pool.given for pool in pools],
        "predicted": [pool.predicted for pool in pools],
        "confidence": [pool.confidence for pool in pools],
        "own": [pool.given_probability for pool in pools],
        "seed": [np.full(len(pool), number) for number, pool in enumerate(pools)],
    }
    table = pd.DataFrame({k: np.concatenate(v) if v else np.empty(0) for k, v in columns.items()})
    return table.sort_values(["part", "row", "seed"], ignore_index=True)


def confused(pools: Sequence[Pool]) -> pd.DataFrame:
    """CONFUSED: a row per wrongly predicted validation image and class, the most frequent pairs of classes first.

    `pair_count` counts the pair's wrong predictions over all seeds. `seeds` have the image for validation, `votes` of
    them predict this class, and `score` is their summed confidence divided by `seeds`: of a pair the surest errors
    come first.
    """
    every = votes(pools)
    every = every[every["validation"].astype(bool) & (every["given"] >= 0)]
    seeds = every.groupby(["part", "row"])["seed"].agg(seeds="size").reset_index()
    wrong = every[every["predicted"] != every["given"]]
    keys = ["part", "row", "given", "predicted"]
    table = wrong.groupby(keys)["confidence"].agg(["size", "sum"]).reset_index()
    table = table.merge(seeds, on=["part", "row"])
    table["votes"], table["score"] = table["size"], (table["sum"] / table["seeds"]).round(DIGITS)
    table["pair_count"] = table.groupby(["given", "predicted"])["votes"].transform("sum")
    order = ["pair_count", "given", "predicted", "score", "part", "row"]
    table = table.sort_values(order, ascending=[False, True, True, False, True, True])
    return _shown(table, CONFUSED)


def suspects(pools: Sequence[Pool]) -> pd.DataFrame:
    """SUSPECTS: images whose given label the networks agree against, the most doubtful first.

    Here are the images of which at least LEAST seeds speak, most of them for one other class, and whose normalized
    margin, as a mean over the seeds, is below 0: the probability of the given label less that of the most likely other
    class (Northcutt, Jiang and Chuang 2021, Confident Learning). They are ranked by `score`, the mean probability of
    the given label, the lowest first (self-confidence; Kuan and Mueller 2022, Model-agnostic label quality scoring).
    Equal ones go by the margin. `predicted` is the other class that most seeds predict, `votes` how many do.

    Approximate: where a network predicts the given label, the second class is not recorded, and is taken to have all
    that is left, as far as that is less than the first one. Probabilities are recorded to 1/255.
    """
    every = votes(pools)
    every = every[every["given"] >= 0]
    agrees = every["predicted"] == every["given"]
    second = np.where(
        agrees, np.minimum(every["confidence"], 1 - every["confidence"]), every["confidence"]
    )
    first = np.where(agrees, every["confidence"], every["own"])
    every = every.assign(margin=first - second, first=first)
    keys = ["part", "row", "given"]
    groups = every.groupby(keys)
    table = groups.agg(seeds=("seed", "size"), score=("first", "mean"), margin=("margin", "mean"))
    table = table.reset_index().round({"score": DIGITS, "margin": DIGITS})
    table = table[(table["seeds"] >= LEAST) & (table["margin"] < 0)]
    others = _most_voted(every[~agrees], keys)
    table = table.merge(others, on=keys)
    table = table[2 * table["votes"] > table["seeds"]]
    return _shown(table.sort_values(["score", "margin", "part", "row"]), SUSPECTS)


def label_next(pools: Sequence[Pool], classes: int) -> pd.DataFrame:
    """LABEL_NEXT: the images without a label that the networks know least about, spread over the classes.

    Here are those that no seed has a label of, neither for training nor for validation, and of which all seeds speak.
    Their given labels, where the data have them, are not looked at. `predicted` is the class with the highest mean
    probability and `votes` the seeds that predict it. `score`, in 0..1, is the mean of two entropies, each divided by
    the largest that it can be:

        H(P), P being the mean over the seeds of their probabilities   (Settles 2009, Active Learning Literature Survey)
        H(V), V being the share of the seeds that vote for each class  (Dagan and Engelson 1995; of one seed it is 0)

    Then each class in turn gives its first image, then each its second one: by score alone many would be alike.

    Approximate: of a seed's probabilities only the highest is recorded, and the others are taken to be equal.
    """
    every = votes(pools)
    count = len(pools)
    hidden = every[~every["validation"].astype(bool)]
    spoken = hidden.groupby(["part", "row"])["seed"].transform("size")
    hidden = hidden[spoken == count]
    n = len(hidden) // max(count, 1)
    predicted_nS = hidden["predicted"].to_numpy().reshape(n, max(count, 1)).astype(np.int64)
    confidence_nS = hidden["confidence"].to_numpy().reshape(n, max(count, 1))
    table = hidden[["part", "row"]].iloc[:: max(count, 1)].reset_index(drop=True)
    parts = [
        _least_known(predicted_nS[rows], confidence_nS[rows], classes)
        for rows in np.array_split(np.arange(n), max(1, math.ceil(n * classes / CHUNK)))
    ]
    table["predicted"], table["votes"], table["score"] = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    table["seeds"] = count
    table = table.sort_values(["score", "part", "row"], ascending=[False, True, True])
    table["turn"] = table.groupby("predicted").cumcount()
    table = table.sort_values(["turn", "score", "part", "row"], ascending=[True, False, True, True])
    return _shown(table, LABEL_NEXT)


def _least_known(
    predicted_nS: Ints, confidence_nS: Floats, classes: int
) -> tuple[Ints, Ints, Floats]:
    """(n,) each: the likeliest class, the seeds that predict it, and the score of `label_next`."""
    n, count = predicted_nS.shape
    rest_nS = (1 - confidence_nS) / (classes - 1)
    mean_nK = np.repeat(rest_nS.mean(axis=1)[:, None], classes, axis=1)
    votes_nK = np.zeros((n, classes))
    every = np.arange(n)
    for seed in range(count):
        chosen = predicted_nS[:, seed]
        mean_nK[every, chosen] += (confidence_nS[:, seed] - rest_nS[:, seed]) / count
        votes_nK[every, chosen] += 1
    likeliest = mean_nK.argmax(axis=1).astype(np.int64)
    unsure = _entropy(mean_nK) / math.log(classes)
    most = math.log(min(count, classes))
    disagree = _entropy(votes_nK / count) / most if most else np.zeros(n)
    return (
        likeliest,
        votes_nK[every, likeliest].astype(np.int64),
        ((unsure + disagree) / 2).round(DIGITS),
    )


def _entropy(shares_nK: Floats) -> Floats:
    """In nats, with 0 log 0 = 0."""
    logs = np.log(shares_nK, out=np.zeros_like(shares_nK), where=shares_nK > 0)
    found: Floats = -(shares_nK * logs).sum(axis=1)
    return found


def _most_voted(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Per image the class that most of these rows predict, and how many do; of equals the surer, then the smaller."""
    groups = table.groupby([*keys, "predicted"])["confidence"]
    found = pd.DataFrame({"votes": groups.size(), "sure": groups.sum().round(DIGITS)}).reset_index()
    found = found.sort_values(["votes", "sure", "predicted"], ascending=[False, False, True])
    return found.drop_duplicates(keys)[[*keys, "predicted", "votes"]]


def _shown(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    table = table.assign(part=[PARTS[int(part)] for part in table["part"]])
    whole = [name for name in columns if name not in ("part", "score")]
    return table[list(columns)].astype({name: np.int64 for name in whole}).reset_index(drop=True)


# ---- of all runs ----------------------------------------------------------------------------------


class Tables(NamedTuple):
    """The three tables of one method in one condition."""

    confused: pd.DataFrame
    suspects: pd.DataFrame
    label_next: pd.DataFrame


def tables_of(group: Group) -> Tables:
    pools = group.pools
    return Tables(
        confused(pools), suspects(pools).head(MOST), label_next(pools, group.classes).head(MOST)
    )


def pairs(table: pd.DataFrame, most: int) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The most frequent pairs of classes in `confused`, each with its rows."""
    groups = table.groupby(["given", "predicted"], sort=False)
    for number, (pair, rows) in enumerate(groups):
        if number == most:
            return
        yield pair, rows
