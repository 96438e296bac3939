"""Random operations: what is drawn for each image of a batch, and from which range.

Each is a small frozen dataclass, called as op(images, generator): uint8 (N, C, H, W) in, the same
shape and type out (another height and width where it resizes), the input never written to. Every
parameter is drawn per image, and always from the CPU generator, so all devices see the same draws.

A call has three parts, so that a view can draw for all its operations, and send everything at once:
`draw` gives random numbers, `plan` makes of them what the device needs, `apply` does the work there and
waits for nothing. `pixels.py` does the pixel work.

Shapes: N images, C channels, H rows, W columns; `x_N` is one number per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.data import pixels
from tune_ssl.data.transfer import Tensors, Transfer

Shape = tuple[int, int, int, int]
"""(N, C, H, W) of the images that an operation gets."""


class Op:
    """A random operation: uint8 (N, C, H, W) in and out; must not write to its input."""

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        """Random numbers for images of this shape: CPU tensors (N, ...), a row for each image."""
        return ()

    def plan(self, drawn: Tensors) -> Tensors:
        """CPU tensors for `apply`, of what was drawn: the same, unless images are dealt with in groups."""
        return drawn

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        """The new images, of what was planned, which is on their device."""
        raise NotImplementedError

    def resized(self, shape: Shape) -> Shape:
        """The shape of what `apply` gives."""
        return shape

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        planned = self.plan(self.draw(shape_of(images), generator))
        return self.apply(images, Transfer([planned], images.device).arrived()[0])


def shape_of(images: Tensor) -> Shape:
    n, c, h, w = images.shape
    return n, c, h, w


Kernel = Callable[[Tensor, Tensor], Tensor]
"""Images and one parameter per image to images."""


# ---- draws --------------------------------------------------------------------------------------


def _uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _chance(n: int, p: float, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator) < p


def _groups(group_N: Tensor, count: int) -> Tensors:
    """The rows of each of the groups 0 to count - 1; those of other numbers are in none."""
    sizes = torch.bincount(group_N, minlength=count + 1)
    rows: Tensors = group_N.argsort(stable=True).split(sizes.tolist())
    return rows[:count]


def _replace(images: Tensor, rows: Tensor, x_M: Tensor, kernel: Kernel) -> None:
    """Write kernel(images, x) over the images of the M `rows`, in one call."""
    if len(rows):
        images.index_copy_(0, rows, kernel(images.index_select(0, rows), x_M))


def _random_boxes(
    shape: Shape, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) of random area and log-uniform aspect, and whether one of ten tries fitted."""
    n, _, h, w = shape
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
class Apply(Op):
    """With probability p, an operation of `pixels.py`, its parameter uniform in [low, high)."""

    op: str
    low: float = 0.0
    high: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        if self.op not in _KERNELS:
            raise UserError(Problem(unknown("operation", self.op, _KERNELS), key="op"))

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n = shape[0]
        return _uniform(n, self.low, self.high, generator), _chance(n, self.p, generator)

    def plan(self, drawn: Tensors) -> Tensors:
        x_N, on_N = drawn
        rows = on_N.nonzero()[:, 0]
        return rows, x_N[rows]

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        rows, x_M = planned
        out = images.clone()
        _replace(out, rows, x_M, _KERNELS[self.op])
        return out


@dataclass(frozen=True)
class Flip(Op):
    """Mirror left and right with probability p."""

    p: float = 0.5

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        return (_chance(shape[0], self.p, generator),)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        (flipped_N,) = planned
        return pixels.flip(images, flipped_N)


@dataclass(frozen=True)
class ReflectCrop(Op):
    """Reflect-pad each side by a fraction of itself (at least 1 pixel), crop back at random."""

    fraction: float = 0.125

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n, _, h, w = shape
        pads = max(1, int(h * self.fraction)), max(1, int(w * self.fraction))
        return tuple(torch.randint(-pad, pad + 1, (n,), generator=generator) for pad in pads)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        dy_N, dx_N = planned
        return pixels.shift_reflect(images, dy_N, dx_N)


@dataclass(frozen=True)
class Resize(Op):
    """The whole image with `size` pixels a side, antialiased."""

    size: int

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        return pixels.resize(images, (self.size, self.size))

    def resized(self, shape: Shape) -> Shape:
        return *shape[:2], self.size, self.size


@dataclass(frozen=True)
class ResizedCrop(Op):
    """Inception crop: `scale` of the area, aspect in `ratio`, resized to `size` pixels a side, or back to H x W.

    Where ten tries find no box that fits, the whole image is used.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    size: int | None = None

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        box_N4, fits_N = _random_boxes(shape, self.scale, self.ratio, generator)
        box_N4[~fits_N] = torch.tensor([0, 0, *shape[-2:]])
        return (box_N4,)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        (box_N4,) = planned
        size = (self.size, self.size) if self.size else None
        return pixels.resized_crop(images, box_N4, size)

    def resized(self, shape: Shape) -> Shape:
        return (*shape[:2], self.size, self.size) if self.size else shape


@dataclass(frozen=True)
class TranslateZoom(Op):
    """Move, then zoom in: with z = 1 - sqrt(min_area), by up to z / 2 of each side, and to a part
    of 1 - z to 1 of each side; what comes in from outside is mirrored.

    Height and width are drawn apart: (N, 2) moves and (N, 2) parts. The crop of the Keras example
    https://keras.io/examples/vision/semisupervised_simclr/ (`get_augmenter`).
    """

    min_area: float

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n, z = shape[0], 1 - math.sqrt(self.min_area)
        shift_N2 = _uniform(2 * n, -z / 2, z / 2, generator).view(n, 2)
        return shift_N2, 1 - _uniform(2 * n, 0.0, z, generator).view(n, 2)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        shift_N2, part_N2 = planned
        return pixels.translate_zoom(images, shift_N2, part_N2)


@dataclass(frozen=True)
class ColorAffine(Op):
    """Multiply each pixel's channels by (1 + u) I + J, a (C, C) per image; on one channel 1 + u + j.

    u is uniform in [-brightness, brightness), each of the C x C entries of J in [-jitter, jitter).
    `RandomColorAffine` of https://keras.io/examples/vision/semisupervised_simclr/.
    """

    brightness: float
    jitter: float

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n, c = shape[:2]
        scale_N11 = 1 + _uniform(n, -self.brightness, self.brightness, generator).view(n, 1, 1)
        jitter_NCC = _uniform(n * c * c, -self.jitter, self.jitter, generator).view(n, c, c)
        return (torch.eye(c) * scale_N11 + jitter_NCC,)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        (matrix_NCC,) = planned
        return pixels.color_matrix(images, matrix_NCC)


@dataclass(frozen=True)
class ColorJitter(Op):
    """With probability p, the four adjustments in a random order, as torchvision's ColorJitter.

    A strength s means a factor in [max(0, 1 - s), 1 + s); hue h a turn in [-h, h).
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n = shape[0]
        on_N = _chance(n, self.p, generator)
        order_N4 = torch.rand(n, 4, generator=generator).argsort(dim=1)
        factors = [
            _uniform(n, max(0.0, 1 - strength), 1 + strength, generator)
            for strength in (self.brightness, self.contrast, self.saturation)
        ]
        return on_N, order_N4, *factors, _uniform(n, -self.hue, self.hue, generator)

    def plan(self, drawn: Tensors) -> Tensors:
        on_N, order_N4, *x_N = drawn
        group_N4 = torch.where(on_N[:, None], order_N4, 4)
        groups = [_groups(group_N, 4) for group_N in group_N4.T]
        return tuple(
            part for own in groups for k in self._kernels() for part in (own[k], x_N[k][own[k]])
        )

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        out, kernels = images.clone(), 4 * list(self._kernels().values())
        for kernel, rows, x_M in zip(kernels, planned[::2], planned[1::2], strict=True):
            _replace(out, rows, x_M, kernel)
        return out

    def _kernels(self) -> dict[int, Kernel]:
        """Number -> adjustment, without those that have no strength."""
        every = (
            (pixels.brightness, self.brightness),
            (pixels.contrast, self.contrast),
            (pixels.color, self.saturation),
            (pixels.hue, self.hue),
        )
        return {k: kernel for k, (kernel, strength) in enumerate(every) if strength}


@dataclass(frozen=True)
class RandAugment(Op):
    """`n` times: one of `choices` per image, uniformly; applied with probability p."""

    choices: tuple[Apply, ...]
    n: int = 2
    p: float = 0.5

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n = shape[0]
        drawn: list[Tensor] = []
        for _ in range(self.n):
            choice_N = torch.randint(len(self.choices), (n,), generator=generator)
            on_N = _chance(n, self.p, generator)
            drawn += choice_N.where(on_N, len(self.choices)), torch.rand(n, generator=generator)
        return tuple(drawn)

    def plan(self, drawn: Tensors) -> Tensors:
        planned: list[Tensor] = []
        for choice_N, unit_N in zip(drawn[::2], drawn[1::2], strict=True):
            groups = _groups(choice_N, len(self.choices))
            for choice, rows in zip(self.choices, groups, strict=True):
                planned += rows, choice.low + (choice.high - choice.low) * unit_N[rows]
        return tuple(planned)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        out, choices = images.clone(), self.n * self.choices
        for choice, rows, x_M in zip(choices, planned[::2], planned[1::2], strict=True):
            _replace(out, rows, x_M, _KERNELS[choice.op])
        return out


@dataclass(frozen=True)
class RandomErasing(Op):
    """With probability p, paint a box of `scale` of the area and aspect in `ratio`."""

    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: int = 0
    p: float = 0.5

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        box_N4, fits_N = _random_boxes(shape, self.scale, self.ratio, generator)
        box_N4[~(fits_N & _chance(shape[0], self.p, generator))] = 0
        return (box_N4,)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        (box_N4,) = planned
        return pixels.fill_box(images, box_N4, self.value)


@dataclass(frozen=True)
class Cutout(Op):
    """Paint a square of `fraction` of the width, its centre anywhere, clipped at the border."""

    fraction: float = 0.5
    value: int = pixels.MID_GREY

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n, _, h, w = shape
        side = max(1, int(w * self.fraction))
        top_N = torch.randint(h, (n,), generator=generator) - side // 2
        left_N = torch.randint(w, (n,), generator=generator) - side // 2
        side_N = torch.full_like(top_N, side)
        return (torch.stack((top_N, left_N, side_N, side_N), dim=1),)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        (box_N4,) = planned
        return pixels.fill_box(images, box_N4, self.value)


@dataclass(frozen=True)
class GaussianNoise(Op):
    """Add independent Gaussian noise to every pixel; `std` as a part of the full range."""

    std: float = 0.05

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        return (torch.randn(shape, generator=generator) * (255 * self.std),)

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        (noise_NCHW,) = planned
        return pixels.add(images, noise_NCHW)


@dataclass(frozen=True)
class GaussianBlur(Op):
    """With probability p, blur with sigma uniform in `sigma` pixels; `kernel` is odd."""

    kernel: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def draw(self, shape: Shape, generator: Generator) -> Tensors:
        n = shape[0]
        return _uniform(n, *self.sigma, generator), _chance(n, self.p, generator)

    def plan(self, drawn: Tensors) -> Tensors:
        sigma_N, on_N = drawn
        rows = on_N.nonzero()[:, 0]
        return rows, sigma_N[rows]

    def apply(self, images: Tensor, planned: Tensors) -> Tensor:
        rows, sigma_M = planned
        out = images.clone()
        _replace(out, rows, sigma_M, lambda group, x_M: pixels.blur(group, x_M, self.kernel))
        return out
