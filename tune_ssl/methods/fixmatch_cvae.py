"""FixMatch with learned perturbations (Wong & Kolter 2020, arXiv 2007.08450).

Stage `perturbation`: a conditional VAE learns how a weak view x becomes a strong one, p(x~ | x), from
every image and no label. Stage `train`: FixMatch, in which such a draw stands for the strong view.

Shapes: U unlabeled images (U, C, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Fraction, LossSpec, ModelSpec, OptimPart, Size
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods.base import Method, Network, Stage, StepOutput
from tune_ssl.methods.fixmatch import FixMatch, FixMatchSpec, FixMatchStage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tune_ssl import models
    from tune_ssl.models import cvae
else:
    torch = LazyModule("torch")
    models = LazyModule("tune_ssl.models")
    cvae = LazyModule("tune_ssl.models.cvae")


class FixMatchCVAESpec(FixMatchSpec):
    name: Literal["fixmatch_cvae"] = "fixmatch_cvae"  # type: ignore[assignment]
    perturbation: Literal["sampling", "smoothing"] = Field(
        "sampling", description="z ~ p(z | x), or z = the prior's mean + sigma * noise"
    )
    sigma: Annotated[float, Field(ge=0)] = Field(0.84, description="of smoothing")
    cvae_share: Fraction = Field(
        1.0, description="share of the strong views that the CVAE makes; the rest are augmented"
    )
    latent_dim: Size = 64
    width: Size = Field(32, description="channels of the CVAE's first layer")


class PerturbationStage(Stage[FixMatchCVAESpec]):
    name = "perturbation"
    loss_terms: ClassVar[tuple[str, ...]] = ("reconstruction", "kl")
    evaluators: ClassVar[tuple[str, ...]] = ()
    splits_batches: ClassVar[bool] = True
    shaped_without: ClassVar[tuple[str, ...]] = (
        *("labeled_view", "threshold", "perturbation", "sigma", "cvae_share"),
        *("model.freeze", "model.frozen_views"),
    )

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return ()

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view, self.spec.strong_view)

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        return models.ConditionalVAE(task, self.spec.latent_dim, self.spec.width)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        weak, strong = batch.unlabeled
        made, posterior, prior = network(weak, strong)
        losses = {
            "reconstruction": cvae.reconstruction_loss(made, strong),
            "kl": cvae.kl_divergence(posterior, prior),
        }
        return StepOutput(losses, {})


class PerturbedStage(FixMatchStage[FixMatchCVAESpec]):
    on_features: ClassVar[bool] = False  # it perturbs images

    @property
    def splits_batches(self) -> bool:  # type: ignore[override]
        return self.spec.cvae_share in (0, 1)  # else the share is rounded in each part

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        assert previous is not None
        return models.PerturbedClassifier(task, model, previous)

    def perturb(self, network: Network, weak: Tensor, strong: Tensor) -> Tensor:
        count = round(self.spec.cvae_share * len(weak))
        if not count:
            return strong
        made = network.perturbation.perturb(weak[:count], self.spec.perturbation, self.spec.sigma)
        return torch.cat([made.to(strong), strong[count:]])

    def pictures(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        weak, strong = batch.unlabeled
        perturb = network.perturbation.perturb
        return {
            "weak": weak,
            "strong": strong,
            "sampled": perturb(weak, "sampling", self.spec.sigma),
            "smoothed": perturb(weak, "smoothing", self.spec.sigma),
        }


class FixMatchCVAE(Method[FixMatchCVAESpec]):
    name = "fixmatch_cvae"
    Spec = FixMatchCVAESpec
    losses = {"reconstruction": LossSpec(), "kl": LossSpec(ramp_up=0.3), **FixMatch.losses}
    optim_parts = {"perturbation": OptimPart(name="adamw", lr=3e-3, schedule="cosine")}
    stage_types = (PerturbationStage, PerturbedStage)
    defaults = FixMatch.defaults
    searched = FixMatch.searched
