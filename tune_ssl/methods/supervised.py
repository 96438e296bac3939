"""Supervised baseline: cross-entropy on the labeled images alone, under the same augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import MethodSpec, ModelSpec, SupervisedLossSpec
from tune_ssl.data.batch import Balance, Batch, Task
from tune_ssl.methods.base import Method, Network, Prediction, Stage, StepOutput

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")

SpecT = TypeVar("SpecT", bound="SupervisedSpec")
LabeledView = Literal["none", "weak", "strong", "randaugment", "joint_classification"]
WeakView = Literal["none", "weak", "joint_classification"]
StrongView = Literal["weak", "strong", "randaugment"]


class SupervisedSpec(MethodSpec):
    name: Literal["supervised"] = "supervised"  # type: ignore[assignment]
    labeled_view: LabeledView = "strong"


class SupervisedStage(Stage[SpecT]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised",)
    splits_batches: ClassVar[bool] = True
    on_features: ClassVar[bool] = True

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return (self.spec.labeled_view,)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        return models.Classifier(task, model)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        _, logits_NK = network(batch.labeled[0])
        loss = supervised_loss(logits_NK, batch.labels_N, batch.balance)
        return StepOutput({"supervised": loss}, {})

    def predict(self, network: Network, images: Tensor) -> Prediction:
        return Prediction(*network(images))


class Supervised(Method[SupervisedSpec]):
    name = "supervised"
    Spec = SupervisedSpec
    losses = {"supervised": SupervisedLossSpec()}
    stage_types = (SupervisedStage,)
    searched = {
        "optim.lr": {"log_uniform": [3e-4, 3e-2]},
        "optim.weight_decay": {"log_uniform": [1e-5, 1e-1]},
        "method.labeled_view": {"choice": ["none", "weak", "strong"]},
    }


def supervised_loss(logits_NK: Tensor, labels_N: Tensor, balance: Balance | None = None) -> Tensor:
    """Mean cross-entropy of logits (N, K) against labels (N,) in [0, K), in float32.

    With a balance: the mean over the batch of weights_K[label] * CE(logits + offsets_K, label). It is not divided by
    the weights' sum, so that equal parts of a batch add up to the whole.
    """
    return supervised_losses(logits_NK, labels_N, balance).mean()


def supervised_losses(
    logits_NK: Tensor, labels_N: Tensor, balance: Balance | None = None
) -> Tensor:
    """The cross-entropies (N,) of which `supervised_loss` is the mean; labels may be class probabilities (N, K)."""
    if balance is None:
        return F.cross_entropy(logits_NK.float(), labels_N, reduction="none")
    weights_N = balance.weights_K[labels_N] if labels_N.ndim == 1 else 1.0
    targets = labels_N if labels_N.ndim == 1 else labels_N * balance.weights_K
    logits_NK = logits_NK.float() + balance.offsets_K
    return weights_N * F.cross_entropy(logits_NK, targets, reduction="none")


def balance_of(how: str, labels_N: Tensor, num_classes: int) -> Balance | None:
    """What `losses.<term>.balance` asks for, of all labeled images: n_k of N in class k.

    `class_weights`: weights proportional to 1 / n_k, with mean 1 over the images. `logit_adjustment`: offsets
    log(n_k / N), equation 10 of Menon et al. 2021 (arXiv 2007.07314) with tau 1. A class without a label has weight 0,
    and the offset of one with a single label.
    """
    if how == "none":
        return None
    counts_K = torch.bincount(labels_N, minlength=num_classes).float()
    least_K = counts_K.clamp(min=1)
    if how == "class_weights":
        seen_K = (counts_K > 0).float()
        return Balance(seen_K * len(labels_N) / seen_K.sum() / least_K, torch.zeros_like(counts_K))
    return Balance(torch.ones_like(counts_K), (least_K / len(labels_N)).log())
