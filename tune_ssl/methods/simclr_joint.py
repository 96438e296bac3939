"""Joint SimCLR (Keras example "Semi-supervised image classification using contrastive pretraining with
SimCLR"): contrastive learning, while a linear probe learns on the side; then `finetune`.

The example contrasts labeled and unlabeled images in one batch: there no image is in both. Here the unlabeled pool
holds the labeled images too, so the contrast is of the unlabeled views alone: an image that came from both would have
to repel its own copy.

The probe reads detached features of the labeled images and has an optimizer of its own
(`optim.probe`), so that it changes nothing of the encoder.

Shapes: N labeled, U unlabeled images, D projected dimension, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, ModelSpec, OptimPart, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network, Prediction, Stage, StepOutput
from tune_ssl.methods.simclr import contrastive_accuracy, cosines, embedding_std
from tune_ssl.methods.supervised import LabeledView, supervised_loss
from tune_ssl.methods.transfer import FinetuneStage, TransferSpec

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")


class SimCLRJointSpec(TransferSpec):
    name: Literal["simclr_joint"] = "simclr_joint"  # type: ignore[assignment]
    transfer: Literal["finetune"] = "finetune"  # type: ignore[assignment]
    view: Literal["joint_contrastive", "contrastive", "contrastive_noise"] = "joint_contrastive"
    labeled_view: LabeledView = "joint_classification"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    projector_hidden: Size = 128
    projector_dim: Size = 128


class JointStage(Stage[SimCLRJointSpec]):
    name = "joint"
    loss_terms: ClassVar[tuple[str, ...]] = ("contrastive", "probe")
    evaluators: ClassVar[tuple[str, ...]] = ("classifier", "knn")
    contrasts: ClassVar[bool] = True

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return (self.spec.labeled_view,)

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.view, self.spec.view)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        sizes = (self.spec.projector_hidden, self.spec.projector_dim)
        return models.ProbeNetwork(models.encoder_for(task, model), sizes, task.num_classes)

    def parts(self, network: Network) -> dict[str, nn.Module]:
        return {"probe": network.probe}

    def step(self, network: Network, batch: Batch) -> StepOutput:
        first_UD, second_UD = network(torch.cat(batch.unlabeled)).chunk(2)
        network.encoder.eval()  # else BatchNorm's statistics would learn from the labeled images
        logits_NK = network.probe(network.encoder(batch.labeled[0]).detach())
        network.encoder.train()
        losses = {
            "contrastive": info_nce(first_UD, second_UD, self.spec.temperature),
            "probe": supervised_loss(logits_NK, batch.labels_N, batch.balance),
        }
        diagnostics = {
            "contrastive_accuracy": contrastive_accuracy(first_UD, second_UD),
            "probe_accuracy": (logits_NK.argmax(dim=1) == batch.labels_N).float().mean(),
            "embedding_std": embedding_std(first_UD),
        }
        return StepOutput(losses, diagnostics)

    def predict(self, network: Network, images: Tensor) -> Prediction:
        features_ND = network.encoder(images)
        return Prediction(features_ND, network.probe(features_ND))


class SimCLRJoint(Method[SimCLRJointSpec]):
    name = "simclr_joint"
    Spec = SimCLRJointSpec
    losses = {
        "contrastive": LossSpec(),
        "probe": SupervisedLossSpec(),
        "supervised": SupervisedLossSpec(),
    }
    optim_parts = {"finetune": OptimPart(), "probe": OptimPart()}
    stage_types = (JointStage, FinetuneStage)
    searched = {
        "optim.lr": {"log_uniform": [3e-4, 1e-2]},
        "optim.finetune.lr": {"log_uniform": [1e-4, 1e-2]},
        "method.temperature": {"choice": [0.1, 0.2, 0.5]},
    }

    @classmethod
    def stages(cls, spec: SimCLRJointSpec) -> list[Stage[SimCLRJointSpec]]:
        types = cls.stage_types if spec.init == "pretrained" else cls.stage_types[1:]
        return [stage(spec) for stage in types]


def info_nce(first_UD: Tensor, second_UD: Tensor, temperature: float) -> Tensor:
    """InfoNCE on the U x U cosine similarities between two views, mean of both directions.

    Each view's row is a classification problem: which of the U other views is of the same image?
    Projections (U, D), T > 0; in float32. With one image the loss is 0.
    """
    similarity_UU = cosines(first_UD, second_UD) / temperature
    own_U = torch.arange(len(first_UD), device=first_UD.device)
    return (F.cross_entropy(similarity_UU, own_U) + F.cross_entropy(similarity_UU.T, own_U)) / 2
