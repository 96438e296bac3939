"""Virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976): no small change of an image changes its class.

Shapes: N labeled, U unlabeled images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, Positive, Size, SupervisedLossSpec
from tune_ssl.data.batch import Batch
from tune_ssl.methods.base import Method, Network, StepOutput
from tune_ssl.methods.fixmatch import FixMatch
from tune_ssl.methods.supervised import (
    LabeledView,
    SupervisedSpec,
    SupervisedStage,
    WeakView,
    supervised_loss,
)

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")


class VATSpec(SupervisedSpec):
    name: Literal["vat"] = "vat"  # type: ignore[assignment]
    labeled_view: LabeledView = "weak"
    weak_view: WeakView = "weak"
    epsilon: Positive = Field(
        6.0,
        description="length of the perturbation of a whole image, in units of normalised pixels",
    )
    xi: Positive = Field(
        0.01,
        description="length of the step by which the direction is found; smaller ones are lost in rounding",
    )
    power_iterations: Size = 1


class VATStage(SupervisedStage[VATSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "adversarial", "entropy")
    splits_batches: ClassVar[bool] = False  # the noise is drawn for all images at once
    on_features: ClassVar[bool] = False  # it perturbs images

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return (self.spec.weak_view,)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        (weak,) = batch.unlabeled
        _, logits_NK = network(batch.labeled[0])

        def predict(images: Tensor) -> Tensor:
            logits_UK: Tensor = network(images)[1]
            return logits_UK

        # All three passes of the unlabeled images are normalised by the same batch, and in float32: half precision
        # loses a step of length xi
        single = torch.autocast(weak.device.type, enabled=False)
        with models.still_statistics(network), single:
            weak_UK = predict(weak)
            noise = adversarial_noise(
                predict, weak, weak_UK, self.spec.epsilon, self.spec.xi, self.spec.power_iterations
            )
            perturbed_UK = predict(weak + noise)
        losses = {
            "supervised": supervised_loss(logits_NK, batch.labels_N, batch.balance),
            "adversarial": divergence(weak_UK, perturbed_UK),
            "entropy": entropy(weak_UK),
        }
        return StepOutput(losses, {})


class VAT(Method[VATSpec]):
    name = "vat"
    Spec = VATSpec
    losses = {
        "supervised": SupervisedLossSpec(),
        "adversarial": LossSpec(weight=0.3, ramp_up=0.4),
        "entropy": LossSpec(weight=0.06),
    }
    stage_types = (VATStage,)
    defaults = {**FixMatch.defaults, "data.mu": 1}
    searched = {
        "optim.lr": {"log_uniform": [3e-3, 3e-1]},
        "method.labeled_view": {"choice": ["weak", "strong"]},
        "method.epsilon": {"log_uniform": [0.5, 10]},
        "losses.adversarial.weight": {"log_uniform": [0.1, 3]},
        "losses.entropy.weight": {"log_uniform": [0.01, 1]},
    }


def divergence(clean_UK: Tensor, perturbed_UK: Tensor) -> Tensor:
    """1/U sum of KL(stop-gradient softmax(clean) || softmax(perturbed)), equation 5 of arXiv 1704.03976; in float32.

    Logits (U, K); at least 0.
    """
    clean, perturbed = (F.log_softmax(logits.float(), dim=1) for logits in (clean_UK, perturbed_UK))
    return F.kl_div(perturbed, clean.detach(), reduction="batchmean", log_target=True)


def entropy(logits_UK: Tensor) -> Tensor:
    """1/U sum over images of -sum over K of p log p, p = softmax(logits); in float32, in [0, log K].

    Grandvalet & Bengio 2005; the VAT+EntMin of arXiv 1704.03976.
    """
    log_UK = F.log_softmax(logits_UK.float(), dim=1)
    return -(log_UK.exp() * log_UK).sum(dim=1).mean()


def adversarial_noise(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    clean_UK: Tensor,
    epsilon: float,
    xi: float,
    iterations: int = 1,
) -> Tensor:
    """The change of each image (U, ...), `epsilon` long, in the direction in which its prediction changes most.

    Power iteration (arXiv 1704.03976, section 3.3): from random d of length 1, d = the gradient by d of
    KL(p(images), p(images + xi d)), scaled to length 1. `predict` gives logits (U, K), `clean_UK` are those of the
    images as they are. No gradient of the network's weights is made.
    """
    direction = torch.randn_like(images, dtype=torch.float32)
    for _ in range(iterations):
        direction = of_length(direction, xi).requires_grad_()
        change = divergence(clean_UK, predict(images + direction))
        (direction,) = torch.autograd.grad(change, direction)
    return of_length(direction, epsilon).detach()


def of_length(directions: Tensor, length: float) -> Tensor:
    """Each row of (U, ...) with that Euclidean length; one of zeros stays zero."""
    rows_UD = directions.detach().flatten(1)
    longest = rows_UD.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(rows_UD.dtype).tiny)
    unit_UD = F.normalize(rows_UD / longest, dim=1)
    return (length * unit_UD).view_as(directions)
