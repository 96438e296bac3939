"""Random operations: what is drawn for each image of a batch, and from which range.

Each is a small frozen dataclass, called as op(images, generator): uint8 (N, C, H, W) in, the same
shape and type out (another height and width where it resizes), the input never written to. Every
parameter is drawn per image, and always
from the CPU generator, so all devices see the same draws. `pixels.py` does the pixel work.

Shapes: N images, C channels, H rows, W columns; `x_N` is one number per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.data import pixels


class Op(Protocol):
    """A random operation: uint8 (N, C, H, W) in and out; must not write to its input."""

    def __call__(self, images: Tensor, generator: Generator, /) -> Tensor: ...


Kernel = Callable[[Tensor, Tensor], Tensor]
"""Images and one parameter per image to images."""


# ---- draws --------------------------------------------------------------------------------------


def _uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _chance(n: int, p: float, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator) < p


def _replace(images: Tensor, chosen_N: Tensor, x_N: Tensor, kernel: Kernel) -> None:
    """Write kernel(images, x) over the chosen images, in one call; the choice lives on the CPU."""
    index = chosen_N.nonzero().squeeze(1)
    if len(index):
        where = index.to(images.device)
        changed = kernel(images.index_select(0, where), x_N[index].to(images.device))
        images.index_copy_(0, where, changed)


def _random_boxes(
    images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) of random area and log-uniform aspect, and whether one of ten tries fitted."""
    n, _, h, w = images.shape
    area = h * w * _uniform(10 * n, *scale, generator).view(n, 10)
    aspect = _uniform(10 * n, math.log(ratio[0]), math.log(ratio[1]), generator).view(n, 10).exp()
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width >= 1) & (width <= w) & (height >= 1) & (height <= h)
    first = fits.int().argmax(dim=1, keepdim=True)
    height_N, width_N = height.gather(1, first)[:, 0], width.gather(1, first)[:, 0]
    top_N = (torch.rand(n, generator=generator) * (h - height_N + 1)).floor().clamp(max=h - 1)
    left_N = (torch.rand(n, generator=generator) * (w - width_N + 1)).floor().clamp(max=w - 1)
    box_N4 = torch.stack((top_N, left_N, height_N, width_N), dim=1)
    return box_N4.long(), fits.any(dim=1)


# ---- random operations --------------------------------------------------------------------------

_WITH_PARAMETER = (
    *(pixels.rotate, pixels.shear_x, pixels.shear_y),
    *(pixels.translate_x, pixels.translate_y, pixels.zoom),
    *(pixels.brightness, pixels.contrast, pixels.color, pixels.sharpness, pixels.hue),
    *(pixels.posterize, pixels.solarize),
)
_KERNELS: dict[str, Kernel] = {
    **{kernel.__name__: kernel for kernel in _WITH_PARAMETER},
    "identity": lambda images, _: images,
    "autocontrast": lambda images, _: pixels.autocontrast(images),
    "equalize": lambda images, _: pixels.equalize(images),
    "grayscale": lambda images, _: pixels.grayscale(images),
}


@dataclass(frozen=True)
class Apply:
    """With probability p, an operation of `pixels.py`, its parameter uniform in [low, high)."""

    op: str
    low: float = 0.0
    high: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        if self.op not in _KERNELS:
            raise UserError(Problem(unknown("operation", self.op, _KERNELS), key="op"))

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        out, n = images.clone(), len(images)
        x_N = _uniform(n, self.low, self.high, generator)
        _replace(out, _chance(n, self.p, generator), x_N, _KERNELS[self.op])
        return out


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability p."""

    p: float = 0.5

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return pixels.flip(images, _chance(len(images), self.p, generator).to(images.device))


@dataclass(frozen=True)
class ReflectCrop:
    """Reflect-pad each side by a fraction of itself (at least 1 pixel), crop back at random."""

    fraction: float = 0.125

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, _, h, w = images.shape
        dy_N, dx_N = (
            torch.randint(-pad, pad + 1, (n,), generator=generator).to(images.device)
            for pad in (max(1, int(h * self.fraction)), max(1, int(w * self.fraction)))
        )
        return pixels.shift_reflect(images, dy_N, dx_N)


@dataclass(frozen=True)
class Resize:
    """The whole image with `size` pixels a side, antialiased."""

    size: int

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        return pixels.resize(images, (self.size, self.size))


@dataclass(frozen=True)
class ResizedCrop:
    """Inception crop: `scale` of the area, aspect in `ratio`, resized to `size` pixels a side, or back to H x W.

    Where ten tries find no box that fits, the whole image is used.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    size: int | None = None

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        box_N4, fits_N = _random_boxes(images, self.scale, self.ratio, generator)
        box_N4[~fits_N] = torch.tensor([0, 0, *images.shape[-2:]])
        size = (self.size, self.size) if self.size else None
        return pixels.resized_crop(images, box_N4.to(images.device), size)


@dataclass(frozen=True)
class TranslateZoom:
    """Move, then zoom in: with z = 1 - sqrt(min_area), by up to z / 2 of each side, and to a part
    of 1 - z to 1 of each side; what comes in from outside is mirrored.

    Height and width are drawn apart: (N, 2) moves and (N, 2) parts. The crop of the Keras example
    https://keras.io/examples/vision/semisupervised_simclr/ (`get_augmenter`).
    """

    min_area: float

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, z = len(images), 1 - math.sqrt(self.min_area)
        shift_N2 = _uniform(2 * n, -z / 2, z / 2, generator).view(n, 2)
        part_N2 = 1 - _uniform(2 * n, 0.0, z, generator).view(n, 2)
        device = images.device
        return pixels.translate_zoom(images, shift_N2.to(device), part_N2.to(device))


@dataclass(frozen=True)
class ColorAffine:
    """Multiply each pixel's channels by (1 + u) I + J, a (C, C) per image; on one channel 1 + u + j.

    u is uniform in [-brightness, brightness), each of the C x C entries of J in [-jitter, jitter).
    `RandomColorAffine` of https://keras.io/examples/vision/semisupervised_simclr/.
    """

    brightness: float
    jitter: float

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, c = images.shape[:2]
        scale_N11 = 1 + _uniform(n, -self.brightness, self.brightness, generator).view(n, 1, 1)
        jitter_NCC = _uniform(n * c * c, -self.jitter, self.jitter, generator).view(n, c, c)
        matrix_NCC = torch.eye(c) * scale_N11 + jitter_NCC
        return pixels.color_matrix(images, matrix_NCC.to(images.device))


@dataclass(frozen=True)
class ColorJitter:
    """With probability p, the four adjustments in a random order, as torchvision's ColorJitter.

    A strength s means a factor in [max(0, 1 - s), 1 + s); hue h a turn in [-h, h).
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        out, n = images.clone(), len(images)
        on_N = _chance(n, self.p, generator)
        order_N4 = torch.rand(n, 4, generator=generator).argsort(dim=1)
        factors: list[tuple[Kernel, float]] = [
            (pixels.brightness, self.brightness),
            (pixels.contrast, self.contrast),
            (pixels.color, self.saturation),
        ]
        steps = [
            (kernel, _uniform(n, max(0.0, 1 - strength), 1 + strength, generator))
            for kernel, strength in factors
        ]
        steps.append((pixels.hue, _uniform(n, -self.hue, self.hue, generator)))
        for place in range(4):
            for k, (kernel, x_N) in enumerate(steps):
                _replace(out, on_N & (order_N4[:, place] == k), x_N, kernel)
        return out


@dataclass(frozen=True)
class RandAugment:
    """`n` times: one of `choices` per image, uniformly; applied with probability p."""

    choices: tuple[Apply, ...]
    n: int = 2
    p: float = 0.5

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        out, batch = images.clone(), len(images)
        for _ in range(self.n):
            choice_N = torch.randint(len(self.choices), (batch,), generator=generator)
            on_N = _chance(batch, self.p, generator)
            unit_N = torch.rand(batch, generator=generator)
            for k, choice in enumerate(self.choices):
                x_N = choice.low + (choice.high - choice.low) * unit_N
                _replace(out, on_N & (choice_N == k), x_N, _KERNELS[choice.op])
        return out


@dataclass(frozen=True)
class RandomErasing:
    """With probability p, paint a box of `scale` of the area and aspect in `ratio`."""

    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: int = 0
    p: float = 0.5

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        box_N4, fits_N = _random_boxes(images, self.scale, self.ratio, generator)
        box_N4[~(fits_N & _chance(len(images), self.p, generator))] = 0
        return pixels.fill_box(images, box_N4.to(images.device), self.value)


@dataclass(frozen=True)
class Cutout:
    """Paint a square of `fraction` of the width, its centre anywhere, clipped at the border."""

    fraction: float = 0.5
    value: int = pixels.MID_GREY

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        n, _, h, w = images.shape
        side = max(1, int(w * self.fraction))
        top_N = torch.randint(h, (n,), generator=generator) - side // 2
        left_N = torch.randint(w, (n,), generator=generator) - side // 2
        side_N = torch.full_like(top_N, side)
        box_N4 = torch.stack((top_N, left_N, side_N, side_N), dim=1)
        return pixels.fill_box(images, box_N4.to(images.device), self.value)


@dataclass(frozen=True)
class GaussianNoise:
    """Add independent Gaussian noise to every pixel; `std` as a part of the full range."""

    std: float = 0.05

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator) * (255 * self.std)
        return pixels.add(images, noise.to(images.device))


@dataclass(frozen=True)
class GaussianBlur:
    """With probability p, blur with sigma uniform in `sigma` pixels; `kernel` is odd."""

    kernel: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        out, n = images.clone(), len(images)
        sigma_N = _uniform(n, *self.sigma, generator)
        on_N = _chance(n, self.p, generator)
        _replace(out, on_N, sigma_N, lambda group, x_N: pixels.blur(group, x_N, self.kernel))
        return out
