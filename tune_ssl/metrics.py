"""Metrics over finished predictions, in numpy: what each logged number means.

N images, K classes. Labels are in [0, K); a negative label is a programming error and raises.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# What each evaluator measures on a set ("val/accuracy"), and which way is better where one is.
MEASURED: dict[str, dict[str, Literal["max", "min"] | None]] = {
    "classifier": {"accuracy": "max", "mean_class_accuracy": "max", "loss": "min"},
    "clusters": {
        "cluster_accuracy": "max",
        "cluster_class_accuracy": "max",
        "cluster_nmi": "max",
        "cluster_entropy": None,
        "largest_cluster_share": None,
    },
}

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]


def confusion_matrix(labels_N: Ints, predictions_N: Ints, num_classes: int) -> Ints:
    """(K, K) counts, rows are true classes. ValueError if a label is not in [0, K)."""
    if len(labels_N) and (labels_N.min() < 0 or labels_N.max() >= num_classes):
        raise ValueError(
            f"labels span [{labels_N.min()}, {labels_N.max()}], not [0, {num_classes})"
        )
    cells = np.bincount(labels_N * num_classes + predictions_N, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(confusion_KK: Ints) -> float:
    """Share of images on the diagonal; NaN without images."""
    total = confusion_KK.sum()
    return float(np.trace(confusion_KK) / total) if total else float("nan")


def mean_class_accuracy(confusion_KK: Ints) -> float:
    """Mean over the classes that occur of each one's recall (scikit-learn: balanced accuracy)."""
    counts = confusion_KK.sum(axis=1)
    present = counts > 0
    if not present.any():
        return float("nan")
    return float((np.diag(confusion_KK)[present] / counts[present]).mean())


def cluster_class_accuracy(confusion_KC: Ints) -> float:
    """Accuracy under the best one-to-one map of clusters to classes (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    total = confusion_KC.sum()
    if not total:
        return float("nan")
    rows, columns = linear_sum_assignment(confusion_KC, maximize=True)
    return float(confusion_KC[rows, columns].sum() / total)


def normalized_mutual_information(confusion_KC: Ints) -> float:
    """I(class; cluster) / mean(H(class), H(cluster)) in [0, 1]; 0 when either has one value.

    Source: Vinh et al. 2010 (JMLR 11), arithmetic normalisation as in scikit-learn.
    """
    joint = confusion_KC / max(confusion_KC.sum(), 1)
    of_class, of_cluster = joint.sum(axis=1), joint.sum(axis=0)
    outer = np.outer(of_class, of_cluster)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / outer[seen])).sum())
    normal = (entropy(of_class) + entropy(of_cluster)) / 2
    return information / normal if normal > 0 else 0.0


def entropy(probabilities_K: Floats) -> float:
    """-sum p log p in nats, with 0 log 0 = 0."""
    seen = probabilities_K[probabilities_K > 0]
    return float(-(seen * np.log(seen)).sum())
