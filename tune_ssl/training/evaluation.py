"""Evaluators by name: each reads a stage's outputs for one labeled set and returns plain numbers.

A stage names the evaluators it wants; keys come back without a prefix ("accuracy"), and the caller
says on which set they were measured ("val/accuracy", "test/accuracy"). What each measures, and which
way is better, stands in `methods.measures.MEASURED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from tune_ssl.data.loading import Data, in_chunks
from tune_ssl.data.sets import LabeledSet, UnlabeledSet
from tune_ssl.methods import measures
from tune_ssl.methods.base import Prediction, Stage
from tune_ssl.training import metrics
from tune_ssl.training.out_of_memory import in_halves

MOST_ROWS = 2000  # images whose distances from each other are measured: 32 MB


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


T = TypeVar("T")
Evaluator = Callable[[Subject], dict[str, float]]


@torch.no_grad()
def outputs(call: Callable[[Any], T], data: Data, on: LabeledSet | UnlabeledSet) -> list[T]:
    """`call` of all un-augmented images of a set, a chunk at a time, in the precision of evaluations."""
    with data.autocast():
        return [part for images in in_chunks(data, on.images) for part in in_halves(call, images)]


def predict(
    stage: Stage[Any], network: nn.Module, data: Data, on: LabeledSet | UnlabeledSet
) -> Prediction:
    """The stage's outputs for a whole set, on the CPU in float32; the network stays in its mode."""
    training = network.training
    network.eval()
    parts = outputs(partial(stage.predict, network), data, on)
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


def evaluate_one(
    metric: str, stage: Stage[Any], network: nn.Module, data: Data, on: LabeledSet
) -> float | None:
    """One metric of a classifier, by its name without a prefix; None where the stage has none."""
    if "classifier" not in stage.evaluators or metric not in measures.MEASURED["classifier"]:
        return None
    return classifier(Subject(stage, network, data, on))[metric]


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
    chosen_N = logits_NK.argmax(dim=1).numpy()
    precision, recall, f1 = metrics.macro_scores(labels_N, chosen_N)
    return {
        "accuracy": metrics.accuracy(labels_N, chosen_N),
        "mean_class_accuracy": recall,
        "top3_accuracy": metrics.top_k_accuracy(logits_NK.numpy(), labels_N, 3),
        "macro_precision": precision,
        "macro_f1": f1,
        "calibration_error": metrics.expected_calibration_error(
            logits_NK.softmax(dim=1).numpy(), labels_N
        ),
        "loss": float(nn.functional.cross_entropy(logits_NK, torch.from_numpy(labels_N))),
        "classes": float(len(set(labels_N.tolist()))),
    }


def clusters(subject: Subject) -> dict[str, float]:
    """How the clusters relate to the classes, how even they are, and how far apart.

    cluster_accuracy uses the method's own cluster-to-class map, cluster_class_accuracy the best
    one-to-one map on these labels, cluster_nmi no map at all; cluster_entropy is in nats. The
    distances are those of the L2-normalised features, which the clusters are made of; of more than
    MOST_ROWS images a fixed choice counts (`metrics.some_rows`).
    """
    clusters_NK, labels_N = subject.prediction.clusters_NK, subject.on.labels
    assert clusters_NK is not None
    chosen_N = clusters_NK.argmax(dim=1).numpy()
    counts_KK = metrics.confusion_matrix(labels_N, chosen_N, subject.num_classes)
    shares_K = counts_KK.sum(axis=0) / max(counts_KK.sum(), 1)
    rows = metrics.some_rows(len(chosen_N), MOST_ROWS)
    features_MD = nn.functional.normalize(subject.prediction.features_ND[rows], dim=1).numpy()
    distances_MM = metrics.distances_between(features_MD)
    return {
        "cluster_accuracy": metrics.accuracy(labels_N, chosen_N),
        "cluster_class_accuracy": metrics.cluster_class_accuracy(counts_KK),
        "cluster_nmi": metrics.normalized_mutual_information(labels_N, chosen_N),
        "cluster_entropy": metrics.entropy(shares_K),
        "largest_cluster_share": float(shares_K.max()),
        "cluster_silhouette": metrics.silhouette(distances_MM, chosen_N[rows]),
        "cluster_dunn": metrics.dunn_index(distances_MM, chosen_N[rows]),
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
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    model.fit(subject.labeled.features_ND.numpy(), subject.data.sets.labeled.labels)
    chosen_N = model.predict(subject.prediction.features_ND.numpy())
    return {"probe_accuracy": metrics.accuracy(subject.on.labels, chosen_N)}


EVALUATORS: dict[str, Evaluator] = {
    "classifier": classifier,
    "clusters": clusters,
    "knn": knn,
    "probe": probe,
}
