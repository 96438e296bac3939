"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297): an image's two views attract, and keys of earlier steps repel.

A query is the first view as the network sees it, a key the second one as a slow copy of the network sees it. The keys
of the latest steps are in a queue; one of the query's own image is no negative.
Stage `pretrain` sees every image and no label; then `finetune` or `linear_probe` (transfer.py).

Shapes: U unlabeled images, Q keys in the queue, D projected dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, ModelSpec, Positive, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Network, StepOutput
from tune_ssl.methods.simclr import ContrastSpec, PretrainStage, cosines, embedding_std, unit
from tune_ssl.methods.transfer import (
    TRANSFER_SEARCHED,
    FinetuneStage,
    LinearProbeStage,
    PretrainedMethod,
)

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")


class MoCoSpec(ContrastSpec):
    name: Literal["moco"] = "moco"  # type: ignore[assignment]
    temperature: Positive = 0.1
    queue: Size = Field(
        4096, description="keys that are negatives; no more than there are unlabeled images"
    )
    key_decay: Fraction = Field(0.99, description="of the average that makes the keys' network")


class MoCoPretrain(PretrainStage[MoCoSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("contrastive",)
    contrasts: ClassVar[bool] = True

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        sizes = (self.spec.projector_hidden, self.spec.projector_dim)
        # More would be second keys of the same images, older ones
        length = min(self.spec.queue, task.unlabeled or self.spec.queue)
        return models.QueueNetwork(models.encoder_for(task, model), sizes, length)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        network.follow(self.spec.key_decay)
        queries_UD, keys_UD = network(batch.unlabeled[0]), network.teacher(batch.unlabeled[1])
        others_UQ = (batch.ids_U[:, None] != network.ids_Q) & (network.ids_Q >= 0)  # type: ignore[index]
        logits_UP = queue_logits(
            queries_UD, keys_UD, network.keys_QD, others_UQ, self.spec.temperature
        )
        network.enqueue(unit(keys_UD), batch.ids_U)
        diagnostics = {
            "contrastive_accuracy": (logits_UP.argmax(dim=1) == 0).float().mean(),
            "negatives": others_UQ.sum(dim=1).float().mean(),
            "embedding_std": embedding_std(queries_UD),
        }
        return StepOutput({"contrastive": contrast(logits_UP)}, diagnostics)


class MoCo(PretrainedMethod[MoCoSpec]):
    name = "moco"
    Spec = MoCoSpec
    losses = {"contrastive": LossSpec(), "supervised": SupervisedLossSpec()}
    stage_types = (MoCoPretrain, FinetuneStage, LinearProbeStage)
    searched = {"method.temperature": {"choice": [0.1, 0.2, 0.5]}, **TRANSFER_SEARCHED}


def queue_logits(
    queries_UD: Tensor, keys_UD: Tensor, queue_QD: Tensor, others_UQ: Tensor, temperature: float
) -> Tensor:
    """Cosines / T of each query with its own key, first, and with each key of the queue: (U, 1 + Q), in float32.

    Queries and keys (U, D), row by row of the same image; T > 0. `others_UQ` is true where a key of the queue is of
    another image than the query: -infinity stands elsewhere.
    """
    positive_U = (unit(queries_UD) * unit(keys_UD)).sum(dim=1)
    negative_UQ = cosines(queries_UD, queue_QD).masked_fill(~others_UQ, float("-inf"))
    return torch.cat([positive_U[:, None], negative_UQ], dim=1) / temperature


def contrast(logits_UP: Tensor) -> Tensor:
    """InfoNCE, equation 1 of arXiv 1911.05722: cross-entropy of logits (U, P) in which the first is right.

    Batch mean, at least 0; 0 where no logit but the first is finite.
    """
    right_U = torch.zeros(len(logits_UP), dtype=torch.int64, device=logits_UP.device)
    return F.cross_entropy(logits_UP, right_U)
