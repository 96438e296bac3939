"""What each evaluator measures, by name, and which way is better."""

from __future__ import annotations

from typing import Literal

KNN = "knn@k200,t0.1"  # knn_scores with its defaults; the protocol is in the name


# What each evaluator measures on a set ("val/accuracy"), and which way is better where one is.
MEASURED: dict[str, dict[str, Literal["max", "min"] | None]] = {
    "classifier": {
        "accuracy": "max",
        "mean_class_accuracy": "max",
        "top3_accuracy": "max",
        "macro_precision": "max",
        "macro_f1": "max",
        "calibration_error": "min",
        "loss": "min",
        "classes": None,
    },
    "clusters": {
        "cluster_accuracy": "max",
        "cluster_class_accuracy": "max",
        "cluster_nmi": "max",
        "cluster_entropy": None,
        "largest_cluster_share": None,
        "cluster_silhouette": "max",
        "cluster_dunn": "max",
    },
    "knn": {KNN: "max"},
    "probe": {"probe_accuracy": "max"},
}
