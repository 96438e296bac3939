"""The conditional VAE of Wong and Kolter 2020 (arXiv 2007.08450): what a view may turn into.

Learns p(x~ | x) from pairs of a weak view x and a strong view x~ of the same image. The two losses
are the negative ELBO in its own units (nats, up to a constant), so that beta is the weight of the KL:
`reconstruction_loss(...) + beta * kl_divergence(...)`.

Shapes: N images, Z latent dimension.
"""

from __future__ import annotations

import math
from itertools import pairwise
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_ssl.data.batch import Task

LOG_VARIANCE = 8.0  # the largest log-variance, up or down
SMALLEST = 4  # pixels; maps are halved until both sides are no larger


class Gaussian(NamedTuple):
    """N diagonal Gaussians over Z dimensions."""

    mean_NZ: Tensor
    log_variance_NZ: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each, (N, Z), through which gradients flow (reparametrised)."""
        noise_NZ = _noise_like(self.mean_NZ, generator)
        return self.mean_NZ + (0.5 * self.log_variance_NZ).exp() * noise_NZ


class ConditionalVAE(nn.Module):
    """p(z | x), q(z | x, x~) and a U-Net g(x, z) that adds to x what z says.

    Images are normalised floats (N, C, height, width) of the task's size; the output is not squashed.
    The prior and the decoder share their features of x. z modulates the maps of every scale and adds
    to the smallest one place by place. Behaves alike in training and evaluation.
    """

    def __init__(self, task: Task, latent_dim: int = 64, width: int = 32) -> None:
        super().__init__()
        (high, wide), widths = task.size, [width]
        while max(high, wide) > SMALLEST:
            high, wide = ceil(high / 2), ceil(wide / 2)
            widths.append(min(2 * widths[-1], 4 * width))
        smallest = (widths[-1], high, wide)
        self.condition = _Pyramid(task.channels, widths)  # of x
        self.recognition = _Pyramid(2 * task.channels, widths)  # of x and x~
        self.prior_head = nn.Linear(math.prod(smallest), 2 * latent_dim)
        self.posterior_head = nn.Linear(math.prod(smallest), 2 * latent_dim)
        self.places = nn.Sequential(
            nn.Linear(latent_dim, math.prod(smallest)), nn.Unflatten(1, smallest)
        )
        self.modulated = nn.ModuleList(_Modulated(w, latent_dim) for w in widths)
        self.up = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in pairwise(widths))
        self.output = nn.Conv2d(width, task.channels, 3, padding=1)
        nn.init.zeros_(self.output.weight)  # the decoder starts as the identity of x
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, perturbed: Tensor) -> tuple[Tensor, Gaussian, Gaussian]:
        """The reconstruction of x~ from one z ~ q(z | x, x~); the posterior q; the prior p."""
        scales = self.condition(x)
        posterior, prior = self.posterior(x, perturbed), _gaussian(self.prior_head, scales[-1])
        return self._decode(x, scales, posterior.sample()), posterior, prior

    def posterior(self, x: Tensor, perturbed: Tensor) -> Gaussian:
        """q(z | x, x~)."""
        pairs = torch.cat([x, perturbed], dim=1)
        return _gaussian(self.posterior_head, self.recognition(pairs)[-1])

    def prior(self, x: Tensor) -> Gaussian:
        """p(z | x)."""
        return _gaussian(self.prior_head, self.condition(x)[-1])

    def decode(self, x: Tensor, z_NZ: Tensor) -> Tensor:
        """g(x, z): images of x's shape."""
        return self._decode(x, self.condition(x), z_NZ)

    @torch.no_grad()
    def perturb(
        self,
        x: Tensor,
        how: Literal["sampling", "smoothing"],
        sigma: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A draw of x~ for each image, without gradients.

        `sampling`: z ~ p(z | x), whatever sigma. `smoothing`: z = prior mean + sigma * eps, eps ~ N(0, I).
        """
        scales = self.condition(x)
        prior = _gaussian(self.prior_head, scales[-1])
        if how == "sampling":
            z_NZ = prior.sample(generator)
        elif how == "smoothing":
            z_NZ = prior.mean_NZ + sigma * _noise_like(prior.mean_NZ, generator)
        else:
            raise ValueError(f"how is {how!r}, but must be 'sampling' or 'smoothing'")
        return self._decode(x, scales, z_NZ)

    def _decode(self, x: Tensor, scales: list[Tensor], z_NZ: Tensor) -> Tensor:
        maps = self.modulated[-1](scales[-1] + self.places(z_NZ), z_NZ)
        for i in reversed(range(len(self.up))):
            maps = F.interpolate(self.up[i](maps), size=scales[i].shape[-2:])
            maps = self.modulated[i](maps + scales[i], z_NZ)
        change: Tensor = self.output(F.silu(maps))
        return x + change


def kl_divergence(posterior: Gaussian, prior: Gaussian) -> Tensor:
    """KL(q || p) in nats: summed over the latent dimensions, mean over the batch, in float32.

    On the ELBO's own scale, as `reconstruction_loss` is: beta is the weight of this term.
    """
    mean_q, log_variance_q = (t.float() for t in posterior)
    mean_p, log_variance_p = (t.float() for t in prior)
    log_ratio = log_variance_q - log_variance_p
    distance = (mean_q - mean_p).square() * (-log_variance_p).exp()
    return 0.5 * (log_ratio.expm1() - log_ratio + distance).sum(dim=1).mean()


def reconstruction_loss(reconstruction: Tensor, perturbed: Tensor) -> Tensor:
    """Half the squared error, summed over an image's pixels, mean over the batch, in float32.

    The negative log-likelihood of a Gaussian of variance 1 without its constant: on the ELBO's own
    scale, as `kl_divergence` is, so it is not divided by the number of pixels.
    """
    error = reconstruction.float() - perturbed.float()
    return 0.5 * error.square().flatten(1).sum(dim=1).mean()


class _Pyramid(nn.Module):
    """Maps at every scale, from the full size to the smallest. GroupNorm only: no batch statistics.

    The shortcuts are not normalised, so that brightness and contrast reach the smallest maps.
    """

    def __init__(self, channels: int, widths: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Down(before, after) for before, after in pairwise(widths))

    def forward(self, images: Tensor) -> list[Tensor]:
        scales = [self.stem(images)]
        for down in self.down:
            scales.append(down(scales[-1]))
        return scales


class _Down(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = _norm(before)
        self.conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        halved = F.avg_pool2d(maps, 2, ceil_mode=True)
        out: Tensor = self.conv(F.silu(self.norm(maps))) + self.shortcut(halved)
        return out


class _Modulated(nn.Module):
    """A residual convolution whose input z scales and shifts, channel by channel."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.latent = nn.Linear(latent_dim, 2 * width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor, z_NZ: Tensor) -> Tensor:
        scale, shift = self.latent(z_NZ)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.conv(F.silu(self.norm(maps) * (1 + scale) + shift))
        return maps + out


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, width), width)


def _gaussian(head: nn.Linear, maps: Tensor) -> Gaussian:
    """In the head's own precision, also under autocast; the log-variance is softly clamped."""
    with torch.autocast(maps.device.type, enabled=False):
        mean_NZ, raw_NZ = head(maps.flatten(1).to(head.weight.dtype)).chunk(2, dim=1)
    return Gaussian(mean_NZ, LOG_VARIANCE * torch.tanh(raw_NZ / LOG_VARIANCE))


def _noise_like(mean_NZ: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(
        mean_NZ.shape, generator=generator, device=mean_NZ.device, dtype=mean_NZ.dtype
    )
