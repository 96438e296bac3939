"""Evaluators by name: each reads a stage's outputs for one labeled set and returns plain numbers.

A stage names the evaluators it wants; keys come back without a prefix ("accuracy"), and the caller
says on which set they were measured ("val/accuracy", "test/accuracy"). What each measures, and which
way is better, stands in `methods.measures.MEASURED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tune_ssl.data.loading import Data, in_chunks
from tune_ssl.data.sets import LabeledSet
from tune_ssl.methods import measures
from tune_ssl.methods.base import Prediction, Stage
from tune_ssl.training import metrics


@dataclass(frozen=True)
class Subject:
    """A network on one labeled set, which is looked at once for all evaluators."""

    stage: Stage[Any]
    network: nn.Module
    data: Data
    on: LabeledSet

    @property
    def num_classes(self) -> int:
        return self.data.task.num_classes

    @cached_property
    def prediction(self) -> Prediction:
        return predict(self.stage, self.network, self.data, self.on)

    @cached_property
    def labeled(self) -> Prediction:
        """Outputs for the trial's own labeled images: all the labels that kNN and probe may see."""
        return predict(self.stage, self.network, self.data, self.data.sets.labeled)


Evaluator = Callable[[Subject], dict[str, float]]


@torch.no_grad()
def predict(stage: Stage[Any], network: nn.Module, data: Data, on: LabeledSet) -> Prediction:
    """The stage's outputs for a whole set, on the CPU in float32; the network stays in its mode."""
    training = network.training
    network.eval()
    parts = [stage.predict(network, images) for images in in_chunks(data, on)]
    network.train(training)
    columns: list[Any] = [
        None if column[0] is None else torch.cat([part.float().cpu() for part in column])
        for column in zip(*parts, strict=True)
    ]
    return Prediction(*columns)


def evaluate(stage: Stage[Any], network: nn.Module, data: Data, on: LabeledSet) -> dict[str, float]:
    """Every evaluator of the stage, over one pass through `on`."""
    subject = Subject(stage, network, data, on)
    values: dict[str, float] = {}
    for name in stage.evaluators:
        values |= EVALUATORS[name](subject)
    return values


def confusion(prediction: Prediction, on: LabeledSet, num_classes: int) -> metrics.Ints:
    """(K, K) counts of the most likely classes, rows are true classes."""
    assert prediction.logits_NK is not None
    chosen_N = prediction.logits_NK.argmax(dim=1).numpy()
    return metrics.confusion_matrix(on.labels, chosen_N, num_classes)


def reliability(prediction: Prediction, on: LabeledSet) -> metrics.Floats:
    """(15, 3): images, summed confidence and right ones in each bin of the confidence."""
    assert prediction.logits_NK is not None
    return metrics.reliability(prediction.logits_NK.softmax(dim=1).numpy(), on.labels)


def classifier(subject: Subject) -> dict[str, float]:
    """How good the logits are: as choices, as a ranking, and as probabilities."""
    logits_NK, labels_N = subject.prediction.logits_NK, subject.on.labels
    assert logits_NK is not None
    counts_KK = confusion(subject.prediction, subject.on, subject.num_classes)
    precision_K, _, f1_K = metrics.precision_recall_f1(counts_KK)
    return {
        "accuracy": metrics.accuracy(counts_KK),
        "mean_class_accuracy": metrics.mean_class_accuracy(counts_KK),
        "top3_accuracy": metrics.top_k_accuracy(logits_NK.numpy(), labels_N, 3),
        "macro_precision": metrics.macro(precision_K),
        "macro_f1": metrics.macro(f1_K),
        "calibration_error": metrics.expected_calibration_error(
            logits_NK.softmax(dim=1).numpy(), labels_N
        ),
        "loss": float(nn.functional.cross_entropy(logits_NK, torch.from_numpy(labels_N))),
    }


def clusters(subject: Subject) -> dict[str, float]:
    """How the clusters relate to the classes, how even they are, and how far apart.

    cluster_accuracy uses the method's own cluster-to-class map, cluster_class_accuracy the best
    one-to-one map on these labels, cluster_nmi no map at all; cluster_entropy is in nats. The
    distances are those of the L2-normalised features, which the clusters are made of.
    """
    clusters_NK = subject.prediction.clusters_NK
    assert clusters_NK is not None
    chosen_N = clusters_NK.argmax(dim=1).numpy()
    counts_KK = metrics.confusion_matrix(subject.on.labels, chosen_N, subject.num_classes)
    shares_K = counts_KK.sum(axis=0) / max(counts_KK.sum(), 1)
    features_ND = nn.functional.normalize(subject.prediction.features_ND, dim=1).numpy()
    return {
        "cluster_accuracy": metrics.accuracy(counts_KK),
        "cluster_class_accuracy": metrics.cluster_class_accuracy(counts_KK),
        "cluster_nmi": metrics.normalized_mutual_information(counts_KK),
        "cluster_entropy": metrics.entropy(shares_K),
        "largest_cluster_share": float(shares_K.max()),
        "cluster_silhouette": metrics.silhouette(features_ND, chosen_N),
        "cluster_dunn": metrics.dunn_index(features_ND, chosen_N),
    }


def knn(subject: Subject) -> dict[str, float]:
    """Accuracy of the weighted nearest labeled images in feature space; the key names the protocol."""
    scores_NK = metrics.knn_scores(
        subject.labeled.features_ND.numpy(),
        subject.data.sets.labeled.labels,
        subject.prediction.features_ND.numpy(),
        subject.num_classes,
    )
    return {measures.KNN: metrics.top_k_accuracy(scores_NK, subject.on.labels, 1)}


def probe(subject: Subject) -> dict[str, float]:
    """Accuracy of a logistic regression on frozen features, fitted to the labeled images alone."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    model.fit(subject.labeled.features_ND.numpy(), subject.data.sets.labeled.labels)
    chosen_N = model.predict(subject.prediction.features_ND.numpy())
    counts_KK = metrics.confusion_matrix(subject.on.labels, chosen_N, subject.num_classes)
    return {"probe_accuracy": metrics.accuracy(counts_KK)}


EVALUATORS: dict[str, Evaluator] = {
    "classifier": classifier,
    "clusters": clusters,
    "knn": knn,
    "probe": probe,
}
