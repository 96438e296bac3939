"""Evaluators by name: each reads the predictions on one labeled set and returns plain numbers.

A stage names the evaluators it wants; keys come back without a prefix ("accuracy"), and the caller
says on which set they were measured ("val/accuracy", "test/accuracy").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tune_ssl import metrics
from tune_ssl.data.loading import Data, in_chunks
from tune_ssl.data.sets import LabeledSet
from tune_ssl.methods.base import Prediction, Stage

Evaluator = Callable[[Prediction, Tensor, int], dict[str, float]]


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
    prediction = predict(stage, network, data, on)
    labels = torch.from_numpy(on.labels)
    values: dict[str, float] = {}
    for name in stage.evaluators:
        values |= EVALUATORS[name](prediction, labels, data.task.num_classes)
    return values


def confusion(prediction: Prediction, labels_N: Tensor, num_classes: int) -> metrics.Ints:
    assert prediction.logits_NK is not None
    return metrics.confusion_matrix(
        labels_N.numpy(), prediction.logits_NK.argmax(dim=1).numpy(), num_classes
    )


def classifier(prediction: Prediction, labels_N: Tensor, num_classes: int) -> dict[str, float]:
    """accuracy, mean_class_accuracy and cross-entropy (`loss`) of the logits."""
    assert prediction.logits_NK is not None
    counts_KK = confusion(prediction, labels_N, num_classes)
    return {
        "accuracy": metrics.accuracy(counts_KK),
        "mean_class_accuracy": metrics.mean_class_accuracy(counts_KK),
        "loss": float(nn.functional.cross_entropy(prediction.logits_NK, labels_N)),
    }


def clusters(prediction: Prediction, labels_N: Tensor, num_classes: int) -> dict[str, float]:
    """How the clusters relate to the classes, and how even they are.

    cluster_accuracy uses the method's own cluster-to-class map, cluster_class_accuracy the best
    one-to-one map on these labels, cluster_nmi no map at all; cluster_entropy is in nats.
    """
    assert prediction.clusters_NK is not None
    chosen_N = prediction.clusters_NK.argmax(dim=1).numpy()
    counts_KK = metrics.confusion_matrix(labels_N.numpy(), chosen_N, num_classes)
    shares_K = counts_KK.sum(axis=0) / max(counts_KK.sum(), 1)
    return {
        "cluster_accuracy": metrics.accuracy(counts_KK),
        "cluster_class_accuracy": metrics.cluster_class_accuracy(counts_KK),
        "cluster_nmi": metrics.normalized_mutual_information(counts_KK),
        "cluster_entropy": metrics.entropy(shares_K),
        "largest_cluster_share": float(shares_K.max()),
    }


EVALUATORS: dict[str, Evaluator] = {"classifier": classifier, "clusters": clusters}
