"""Metrics over finished predictions and features, in numpy: what each logged number means.

N images, K classes, D feature dimension, M labeled images in a bank, Q queries. Labels are in
[0, K); a negative label is a programming error and raises. Predictions or features that are not
finite never look good: they make a measure NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist, squareform
from sklearn import metrics as scikit_learn

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]

CHUNK = 2**20  # similarities held at once: 4 MB; selecting neighbours takes at most ~16 times that


def check_labels(labels_N: Ints, num_classes: int) -> None:
    if len(labels_N) and (labels_N.min() < 0 or labels_N.max() >= num_classes):
        raise ValueError(
            f"labels span [{labels_N.min()}, {labels_N.max()}], not [0, {num_classes})"
        )


def at_least_one(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name} is {number}, not at least 1")


def confusion_matrix(labels_N: Ints, predictions_N: Ints, num_classes: int) -> Ints:
    """(K, K) counts, rows are true classes. ValueError if a label is not in [0, K)."""
    check_labels(labels_N, num_classes)
    if not len(labels_N):
        return np.zeros((num_classes, num_classes), np.int64)
    counts_KK: Ints = scikit_learn.confusion_matrix(
        labels_N, predictions_N, labels=np.arange(num_classes)
    )
    return counts_KK


def accuracy(labels_N: Ints, predictions_N: Ints) -> float:
    """Share of right predictions; NaN without images."""
    return float((labels_N == predictions_N).mean()) if len(labels_N) else float("nan")


def macro_scores(labels_N: Ints, predictions_N: Ints) -> tuple[float, float, float]:
    """Precision, recall and F1, each the mean over the classes that occur in the labels.

    The recall is `mean_class_accuracy` (balanced accuracy). A class that is never predicted has
    precision 0. All are NaN without images.
    """
    if not len(labels_N):
        return float("nan"), float("nan"), float("nan")
    precision, recall, f1, _ = scikit_learn.precision_recall_fscore_support(
        labels_N, predictions_N, labels=np.unique(labels_N), average="macro", zero_division=0
    )
    return float(precision), float(recall), float(f1)


def top_k_accuracy(logits_NK: Floats, labels_N: Ints, k: int) -> float:
    """Share of images, in [0, 1], whose class is among the k largest of (N, K) logits.

    k is capped at K. Of equal logits the lower class ranks first, as with argmax: k = 1 is
    `accuracy`. A NaN is never among the largest. NaN without images; ValueError if k < 1 or a
    label is not in [0, K). (scikit-learn ranks the higher of equal classes first, refuses NaN, and
    has no top-k of two classes.)
    """
    check_labels(labels_N, logits_NK.shape[1])
    at_least_one("k", k)
    if not len(labels_N):
        return float("nan")
    own_N1 = np.take_along_axis(logits_NK, labels_N[:, None], axis=1)
    lower_NK = np.arange(logits_NK.shape[1]) < labels_N[:, None]
    rank_N = ((logits_NK > own_N1) | ((logits_NK == own_N1) & lower_NK)).sum(axis=1)
    return float(((rank_N < k) & ~np.isnan(own_N1[:, 0])).mean())


def reliability(probabilities_NK: Floats, labels_N: Ints, bins: int = 15) -> Floats:
    """(bins, 3): of each bin of the confidence its images, the sum of their confidences, and how many are right.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 2. The confidence is the largest of an image's
    (K,) probabilities, its class the first such; the bins (l, r] are equally wide. ValueError if a
    label is not in [0, K), bins < 1, or a value is no probability (logits given by mistake).
    """
    check_labels(labels_N, probabilities_NK.shape[1])
    at_least_one("bins", bins)
    if len(labels_N) and (probabilities_NK.min() < 0 or probabilities_NK.max() > 1 + 1e-3):
        span = f"[{probabilities_NK.min():g}, {probabilities_NK.max():g}]"  # rounding is forgiven
        raise ValueError(f"probabilities span {span}, not [0, 1]")
    confidence_N = probabilities_NK.max(axis=1).astype(np.float64).clip(0, 1)
    right_N = probabilities_NK.argmax(axis=1) == labels_N
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    bin_N = np.searchsorted(inner, confidence_N, side="left")
    columns = (np.ones(len(labels_N)), confidence_N, right_N.astype(np.float64))
    return np.stack([np.bincount(bin_N, weights=c, minlength=bins) for c in columns], axis=1)


def expected_calibration_error(probabilities_NK: Floats, labels_N: Ints, bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins of the confidence, weighted by images; in [0, 1].

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3, over the bins of `reliability`, which says
    what is a ValueError. NaN without images or with a NaN.
    """
    if not len(labels_N) or np.isnan(probabilities_NK).any():
        check_labels(labels_N, probabilities_NK.shape[1])
        at_least_one("bins", bins)
        return float("nan")
    bins_B3 = reliability(probabilities_NK, labels_N, bins)
    return float(np.abs(bins_B3[:, 2] - bins_B3[:, 1]).sum() / len(labels_N))


def cluster_class_accuracy(confusion_KC: Ints) -> float:
    """Accuracy under the best one-to-one map of clusters to classes (Hungarian algorithm)."""
    total = confusion_KC.sum()
    if not total:
        return float("nan")
    rows, columns = linear_sum_assignment(confusion_KC, maximize=True)
    return float(confusion_KC[rows, columns].sum() / total)


def normalized_mutual_information(labels_N: Ints, clusters_N: Ints) -> float:
    """I(class; cluster) / mean(H(class), H(cluster)) in [0, 1]; 0 when either has one value.

    Source: Vinh et al. 2010 (JMLR 11), by scikit-learn, for which one cluster of one class is 1.
    """
    if len(np.unique(clusters_N)) < 2:
        return 0.0
    return float(scikit_learn.normalized_mutual_info_score(labels_N, clusters_N))


def entropy(probabilities_K: Floats) -> float:
    """-sum p log p in nats, with 0 log 0 = 0."""
    seen = probabilities_K[probabilities_K > 0]
    return float(-(seen * np.log(seen)).sum())


def some_rows(number: int, most: int) -> Ints:
    """All row numbers, or `most` evenly spaced ones from 0 on: floor(i * number / most)."""
    at_least_one("most", most)
    chosen = min(number, most)
    return np.arange(chosen, dtype=np.int64) * number // max(chosen, 1)


def distances_between(rows_MD: Floats) -> Floats:
    """Euclidean, (M, M), from differences: between equal rows exactly 0, which x.x - 2x.y is not."""
    distances_MM: Floats = squareform(pdist(rows_MD))
    return distances_MM


def silhouette(distances_MM: Floats, clusters_M: Ints) -> float:
    """Mean silhouette in [-1, 1], higher is better: how much nearer is one's own cluster?

    Source: Rousseeuw 1987, by scikit-learn: (b - a) / max(a, b) with a the mean distance to one's
    own cluster, b that to the nearest other one; 0 for a cluster of one. Any integers (M,) for
    clusters. NaN with fewer than 2 clusters, as many clusters as rows, or distances not finite.
    """
    several = 2 <= len(np.unique(clusters_M)) < len(clusters_M)
    if not several or not np.isfinite(distances_MM).all():
        return float("nan")
    return float(scikit_learn.silhouette_score(distances_MM, clusters_M, metric="precomputed"))


def dunn_index(distances_MM: Floats, clusters_M: Ints) -> float:
    """Least distance between points of two clusters / largest diameter of one; in [0, inf).

    Source: Dunn 1974, higher is better; a diameter is the largest distance within. It hangs on
    single points. Any integers (M,) for clusters. NaN with fewer than 2 clusters, where all
    diameters are 0, or with distances not finite.
    """
    if len(np.unique(clusters_M)) < 2 or not np.isfinite(distances_MM).all():
        return float("nan")
    same_MM = clusters_M[:, None] == clusters_M
    diameter = distances_MM[same_MM].max()
    return float(distances_MM[~same_MM].min() / diameter) if diameter else float("nan")


def knn_scores(
    bank_MD: Floats,
    labels_M: Ints,
    queries_ND: Floats,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Floats:
    """(N, K) shares of the votes of each query's k nearest bank rows; rows sum to 1.

    Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4: each neighbour votes
    exp(cosine similarity / temperature) for its class. Divided here by the query's total, which
    changes no order and cannot overflow. k is capped at M; of similarities equal in float32
    the earlier row counts. A row of zeros has similarity 0 to all. All NaN if any feature is not finite;
    ValueError for an empty bank, a label not in [0, K), k < 1 or a temperature not above 0.
    """
    check_labels(labels_M, num_classes)
    at_least_one("bank rows", len(bank_MD))
    at_least_one("k", k)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, not above 0")
    if not (np.isfinite(bank_MD).all() and np.isfinite(queries_ND).all()):
        return np.full((len(queries_ND), num_classes), np.nan)
    scores_NK = np.empty((len(queries_ND), num_classes))
    bank_MD, queries_ND = unit_rows(bank_MD), unit_rows(queries_ND)
    for chunk in chunks(len(queries_ND), len(bank_MD)):
        similarities_BM = queries_ND[chunk] @ bank_MD.T
        nearest_Bk = largest(similarities_BM, min(k, len(bank_MD)))
        near_Bk = np.take_along_axis(similarities_BM, nearest_Bk, axis=1).astype(np.float64)
        votes_Bk = np.exp((near_Bk - near_Bk[:, :1]) / temperature)  # the nearest votes 1
        cells_Bk = np.arange(len(votes_Bk))[:, None] * num_classes + labels_M[nearest_Bk]
        sums = np.bincount(cells_Bk.ravel(), votes_Bk.ravel(), len(votes_Bk) * num_classes)
        scores_NK[chunk] = sums.reshape(-1, num_classes) / votes_Bk.sum(axis=1, keepdims=True)
    return scores_NK


def nearest_neighbours(features_ND: Floats, queries_Q: Ints, k: int) -> Ints:
    """(Q, k) row numbers of each query's nearest other rows of (N, D), most similar first.

    Queries (Q,) are row numbers themselves and never among their own neighbours; k is capped at
    N - 1. By cosine similarity, a row of zeros has 0 to all; of those equal in float32 the earlier
    row comes first. ValueError if k < 1, a query is not in [0, N), or a feature is not finite.
    """
    at_least_one("k", k)
    rows = len(features_ND)
    if len(queries_Q) and (queries_Q.min() < 0 or queries_Q.max() >= rows):
        raise ValueError(f"queries span [{queries_Q.min()}, {queries_Q.max()}], not [0, {rows})")
    if not np.isfinite(features_ND).all():
        raise ValueError("features are not finite")
    k = min(k, max(rows - 1, 0))
    nearest_Qk = np.empty((len(queries_Q), k), np.int64)
    features_ND = unit_rows(features_ND)
    for chunk in chunks(len(queries_Q), rows):
        queries_B = queries_Q[chunk]
        similarities_BN = features_ND[queries_B] @ features_ND.T
        similarities_BN[np.arange(len(queries_B)), queries_B] = -np.inf
        nearest_Qk[chunk] = largest(similarities_BN, k)
    return nearest_Qk


def class_agreement(features_ND: Floats, labels_N: Ints, k: int) -> float:
    """Mean over rows of the share of their `nearest_neighbours` that have their class; in [0, 1].

    Features (N, D), labels (N,). NaN with fewer than 2 rows or features not finite; ValueError if
    k < 1 or a label is negative.
    """
    at_least_one("k", k)
    check_labels(labels_N, int(labels_N.max(initial=0)) + 1)
    if len(labels_N) < 2 or not np.isfinite(features_ND).all():
        return float("nan")
    nearest_Nk = nearest_neighbours(features_ND, np.arange(len(labels_N)), k)
    return float((labels_N[nearest_Nk] == labels_N[:, None]).mean())


def unit_rows(rows_ND: Floats) -> Floats:
    """Rows of length 1, in float32, whatever their size was; a row of zeros stays zero."""
    largest_N1 = np.abs(rows_ND).max(axis=1, keepdims=True, initial=0)
    scaled_ND = (rows_ND / np.where(largest_N1 > 0, largest_N1, 1)).astype(np.float32)
    lengths_N1 = np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    return scaled_ND / np.where(lengths_N1 > 0, lengths_N1, 1)


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows with at most CHUNK cells each, or one row."""
    size = max(CHUNK // max(columns, 1), 1)
    return (slice(start, start + size) for start in range(0, rows, size))


def largest(values_BM: Floats, k: int) -> Ints:
    """(B, k) columns of each row's k largest values, largest first, of equal ones the earlier."""
    if k == 0:
        return np.empty((len(values_BM), 0), np.int64)
    first = values_BM.shape[1] - k
    least_B1 = np.partition(values_BM, first, axis=1)[:, first, None]
    chosen_BM = values_BM >= least_B1
    tied = chosen_BM.sum(axis=1) > k
    if tied.any():
        equal = values_BM[tied] == least_B1[tied]
        room = k - (values_BM[tied] > least_B1[tied]).sum(axis=1, keepdims=True)
        chosen_BM[tied] &= ~equal | (equal.cumsum(axis=1, dtype=np.int32) <= room)
    columns_Bk = np.nonzero(chosen_BM)[1].reshape(-1, k)
    order_Bk = (-np.take_along_axis(values_BM, columns_Bk, axis=1)).argsort(axis=1, kind="stable")
    return np.take_along_axis(columns_Bk, order_Bk, axis=1)
