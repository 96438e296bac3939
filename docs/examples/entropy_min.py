"""Entropy minimisation (Grandvalet & Bengio 2004): predictions on unlabeled images should be certain."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_ssl import (
    Batch,
    Classifier,
    LossSpec,
    Method,
    MethodSpec,
    ModelSpec,
    Network,
    Prediction,
    Stage,
    StepOutput,
    Task,
)


class EntropyMinSpec(MethodSpec):
    name: Literal["entropy_min"] = "entropy_min"
    labeled_view: Literal["none", "weak", "strong"] = "weak"
    unlabeled_view: Literal["none", "weak", "strong"] = "weak"


class EntropyMinStage(Stage[EntropyMinSpec]):
    loss_terms = ("supervised", "entropy")

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return (self.spec.labeled_view,)

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.unlabeled_view,)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        return Classifier(task, model)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        _, logits = network(torch.cat([batch.labeled[0], batch.unlabeled[0]]))
        logits_NK, logits_UK = logits.float().tensor_split([len(batch.labels_N)])
        losses = {
            "supervised": F.cross_entropy(logits_NK, batch.labels_N),
            "entropy": entropy(logits_UK),
        }
        confidence = logits_UK.detach().softmax(dim=1).max(dim=1).values.mean()
        return StepOutput(losses, {"confidence": confidence})

    def predict(self, network: Network, images: Tensor) -> Prediction:
        return Prediction(*network(images))


class EntropyMin(Method[EntropyMinSpec]):
    name = "entropy_min"
    Spec = EntropyMinSpec
    losses = {"supervised": LossSpec(), "entropy": LossSpec(weight=0.1, ramp_up=0.5)}
    stage_types = (EntropyMinStage,)


def entropy(logits_UK: Tensor) -> Tensor:
    """Mean entropy in nats of softmax(logits) (U, K): log K when nothing is known, 0 when all is."""
    log_p_UK = F.log_softmax(logits_UK, dim=1)
    return -(log_p_UK.exp() * log_p_UK).sum(dim=1).mean()
