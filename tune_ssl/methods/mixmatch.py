"""MixMatch (Berthelot et al. 2019, arXiv 1905.02249): sharpened guesses for unlabeled images; all is mixed by MixUp.

Shapes: N labeled, U unlabeled images, M = N + 2U, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import LossSpec, Positive, SupervisedLossSpec
from tune_ssl.data.batch import Batch
from tune_ssl.methods.base import Method, Network, StepOutput
from tune_ssl.methods.fixmatch import FixMatch
from tune_ssl.methods.pi_model import PiModelSpec, PiModelStage
from tune_ssl.methods.supervised import supervised_losses

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from tune_ssl import models
else:
    torch = LazyModule("torch")
    F = LazyModule("torch.nn.functional")
    models = LazyModule("tune_ssl.models")


class MixMatchSpec(PiModelSpec):
    name: Literal["mixmatch"] = "mixmatch"  # type: ignore[assignment]
    temperature: Positive = Field(0.5, description="sharpens the guess")
    alpha: Annotated[float, Field(ge=0.01)] = Field(
        0.5,
        description="MixUp's shares are drawn from Beta(alpha, alpha), which in float32 takes 0.01 at least",
    )


class MixMatchStage(PiModelStage[MixMatchSpec]):
    loss_terms: ClassVar[tuple[str, ...]] = ("supervised", "guess")
    splits_batches: ClassVar[bool] = False  # all images of a step are mixed with one another
    on_features: ClassVar[bool] = False  # it mixes images

    def step(self, network: Network, batch: Batch) -> StepOutput:
        first, second = batch.unlabeled
        with torch.no_grad(), models.still_statistics(network):
            _, guessed = network(torch.cat([first, second]))
        first_UK, second_UK = guessed.chunk(2)
        guess_UK = sharpened(first_UK, second_UK, self.spec.temperature)
        labels_NK = F.one_hot(batch.labels_N, guess_UK.shape[1]).to(guess_UK)
        images = torch.cat([batch.labeled[0], first, second])
        targets_MK = torch.cat([labels_NK, guess_UK, guess_UK])
        shares_M, partners_M = drawn_shares(len(images), self.spec.alpha)
        images, targets_MK = (
            mixed(rows, shares_M.to(rows.device), partners_M.to(rows.device))
            for rows in (images, targets_MK)
        )
        _, logits_MK = network(images)
        count = len(batch.labels_N)
        losses = {
            "supervised": supervised_losses(
                logits_MK[:count], targets_MK[:count], batch.balance
            ).mean(),
            "guess": squared_error(logits_MK[count:], targets_MK[count:]),
        }
        return StepOutput(losses, {})


class MixMatch(Method[MixMatchSpec]):
    name = "mixmatch"
    Spec = MixMatchSpec
    losses = {"supervised": SupervisedLossSpec(), "guess": LossSpec(weight=100, ramp_up=0.4)}
    stage_types = (MixMatchStage,)
    defaults = {**FixMatch.defaults, "data.mu": 1}
    searched = {
        "optim.lr": {"log_uniform": [3e-3, 3e-1]},
        "method.labeled_view": {"choice": ["weak", "strong"]},
        "method.alpha": {"choice": [0.2, 0.5, 0.75]},
        "losses.guess.weight": {"log_uniform": [1, 300]},
        "losses.guess.ramp_up": {"uniform": [0, 0.8]},
    }


def sharpened(first_UK: Tensor, second_UK: Tensor, temperature: float) -> Tensor:
    """p^(1/T) scaled to the sum 1, p the mean of softmax(first) and softmax(second): (U, K), float32, no gradients.

    Equations 6 and 7 of arXiv 1905.02249, with two views. T > 0; T = 1 is the mean itself.
    """
    log_2UK = F.log_softmax(torch.stack([first_UK, second_UK]).detach().float(), dim=2)
    return F.softmax(log_2UK.logsumexp(dim=0) / temperature, dim=1)


def drawn_shares(count: int, alpha: float) -> tuple[Tensor, Tensor]:
    """For each of M images: its own share max(lambda, 1 - lambda), lambda ~ Beta(alpha, alpha), and its partner.

    Equations 8 and 9 of arXiv 1905.02249. Shares (M,) in [0.5, 1]; partners (M,) are a random permutation. On the CPU.
    """
    lambda_M = torch.distributions.Beta(alpha, alpha).sample((count,))
    return torch.maximum(lambda_M, 1 - lambda_M), torch.randperm(count)


def mixed(rows: Tensor, shares_M: Tensor, partners_M: Tensor) -> Tensor:
    """share x row + (1 - share) x the partner's row, of (M, ...): equations 10 and 11 of arXiv 1905.02249."""
    return torch.lerp(rows[partners_M], rows, shares_M.view(-1, *[1] * (rows.ndim - 1)))


def squared_error(logits_UK: Tensor, targets_UK: Tensor) -> Tensor:
    """1/(U K) sum of (softmax(logits) - target)^2, equation 4 of arXiv 1905.02249; in float32, in [0, 1]."""
    return F.mse_loss(F.softmax(logits_UK.float(), dim=1), targets_UK)
