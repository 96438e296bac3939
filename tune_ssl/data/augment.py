"""Views: named, readable sequences of random image operations on a batch.

    weak = view("weak", image_size=32, channels=3, flip=True)
    weak                                 # View('weak', Flip(p=0.5), ReflectCrop(fraction=0.125))
    weak(images, generator)              # uint8 (N, C, H, W) -> a new uint8 (N, C, H, W)

Every random parameter is drawn per image, and always from the CPU generator: the result is a
function of the images and the generator's state, with the same draws on every device, where they go in one copy.
To add a view, write one function under "the named views".

Shapes: N images, C channels, H rows, W columns. Colour operations leave images of other than 3 channels as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.base.spec import AS_PUBLISHED, ColorMatrixView, Jitter, ViewsSpec, WeakView
from tune_ssl.data.ops import (
    Apply,
    ColorAffine,
    ColorJitter,
    Cutout,
    Flip,
    GaussianBlur,
    GaussianNoise,
    Op,
    RandAugment,
    RandomErasing,
    ReflectCrop,
    Resize,
    ResizedCrop,
    Shape,
    TranslateZoom,
    shape_of,
)
from tune_ssl.data.transfer import Tensors, Transfer


@dataclass(frozen=True, repr=False)
class View:
    """A name and the operations that make the view, in order."""

    name: str
    ops: tuple[Op, ...]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """A new uint8 tensor on the same device; it shares no memory with `images`."""
        if images.dtype != torch.uint8 or images.ndim != 4:
            got = f"is {images.dtype} {tuple(images.shape)}"
            raise ValueError(f"`images` {got}, but must be torch.uint8 (N, C, H, W)")
        planned = self.plan([self.draw(shape_of(images), generator)])
        return self.apply(images, Transfer(planned, images.device).arrived())

    def draw(self, shape: Shape, generator: Generator) -> list[Tensors]:
        """What each operation draws for images (N, C, H, W), one operation after the other."""
        drawn = []
        for op in self.ops:
            drawn.append(op.draw(shape, generator))
            shape = op.resized(shape)
        return drawn

    def plan(self, draws: Sequence[list[Tensors]]) -> list[Tensors]:
        """What each operation needs, on the CPU, for the images of one draw after the other."""
        planned = []
        for op, of_op in zip(self.ops, zip(*draws, strict=True), strict=True):
            joined = of_op[0] if len(of_op) == 1 else map(torch.cat, zip(*of_op, strict=True))
            planned.append(op.plan(tuple(joined)))
        return planned

    def apply(self, images: Tensor, planned: Sequence[Tensors]) -> Tensor:
        """The view of the images by what was planned, which is on their device. Waits for nothing."""
        out = images
        for op, own in zip(self.ops, planned, strict=True):
            out = op.apply(out, own)
        return out.clone() if out is images else out

    def __repr__(self) -> str:
        return f"View({', '.join([repr(self.name), *map(repr, self.ops)])})"


# ---- the named views ----------------------------------------------------------------------------

SMALL = 16
"""Images of at most this many pixels a side get milder geometry: one pixel is much of a digit."""


@dataclass(frozen=True)
class ImageTraits:
    """What a view may know about the data it is for: `stored` is the side of what it gets, `size` of what it gives."""

    size: int
    channels: int
    flip: bool
    stored: int

    def by_size(self, given: float | None, small: float, large: float) -> float:
        """The given value, else one of the two by the images' size."""
        if given is not None:
            return given
        return small if self.size <= SMALL else large

    @property
    def flips(self) -> tuple[Op, ...]:
        return (Flip(),) if self.flip else ()

    @property
    def scaled(self) -> tuple[Op, ...]:
        return (Resize(self.size),) if self.stored != self.size else ()


def none(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """The image as it is."""
    return images.scaled


def weak(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """Flip and reflect-padded crop by 1/8 of the side (FixMatch, arXiv 2001.07685)."""
    return _weak(images, views.weak)


def strong(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """Weak, then colour jitter, histogram operations and random erasing."""
    spec = views.strong
    return (
        *_weak(images, spec),
        _jitter(images, spec),
        Apply("autocontrast", p=spec.histogram_p),
        Apply("equalize", p=spec.histogram_p),
        Apply("posterize", 4, 8, p=spec.histogram_p),
        Apply("solarize", 128, 256, p=spec.histogram_p),
        RandomErasing(scale=(0.02, images.by_size(spec.erase_area, 0.15, 0.33)), p=spec.erase_p),
    )


def randaugment(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """Weak, two of FixMatch's 14 operations, Cutout (arXiv 2001.07685, appendix D)."""
    spec = views.randaugment
    degrees, part = images.by_size(spec.degrees, 15, 30), images.by_size(spec.move, 0.15, 0.3)
    choices = (
        Apply("identity"),
        Apply("autocontrast"),
        Apply("equalize"),
        Apply("rotate", -degrees, degrees),
        Apply("solarize", 0, 256),
        *(Apply(op, 0.05, 0.95) for op in ("color", "contrast", "brightness", "sharpness")),
        *(Apply(op, -part, part) for op in ("shear_x", "shear_y", "translate_x", "translate_y")),
        Apply("posterize", 4, 9),
    )
    cutout = images.by_size(spec.cutout, 0.25, 0.5)
    last = (Cutout(cutout),) if cutout else ()
    return (*_weak(images, spec), RandAugment(choices, spec.count, spec.p), *last)


def contrastive(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """SimCLR (arXiv 2002.05709): crop, flip, colour distortion; blur only from 96 pixels on."""
    spec = views.contrastive
    gray = (Apply("grayscale", p=spec.grayscale_p),) if images.channels == 3 else ()
    kernel = images.size // 20 * 2 + 1
    blur = (GaussianBlur(kernel=kernel, p=spec.blur_p),) if images.size >= 96 else ()
    crop = _crop(images, spec.least_area, 0.08)
    return (crop, *images.flips, _jitter(images, spec), *gray, *blur)


def contrastive_noise(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """Crop, colour jitter, Gaussian noise, flip: the recipe for a small encoder on STL-10."""
    spec = views.contrastive_noise
    crop = _crop(images, spec.least_area, 0.2)
    return (crop, _jitter(images, spec), GaussianNoise(spec.noise), *images.flips)


def joint_contrastive(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """Flip, crop, colour matrix: the contrastive view where labels and contrast train together.

    Source: https://keras.io/examples/vision/semisupervised_simclr/ (`contrastive_augmentation`).
    """
    return _color_matrix(images, views.joint_contrastive)


def joint_classification(images: ImageTraits, views: ViewsSpec) -> tuple[Op, ...]:
    """The same, milder, for the labelled images.

    Source: https://keras.io/examples/vision/semisupervised_simclr/ (`classification_augmentation`).
    """
    return _color_matrix(images, views.joint_classification)


def _weak(images: ImageTraits, spec: WeakView) -> tuple[Op, ...]:
    shifted = (ReflectCrop(spec.shift),) if spec.shift else ()
    return (*images.scaled, *images.flips, *shifted)


def _color_matrix(images: ImageTraits, spec: ColorMatrixView) -> tuple[Op, ...]:
    area = images.by_size(spec.least_area, 0.5, 0.25)
    return (
        *images.scaled,
        *images.flips,
        TranslateZoom(area),
        ColorAffine(brightness=spec.brightness, jitter=spec.color),
    )


def _crop(images: ImageTraits, given: float | None, large: float) -> ResizedCrop:
    size = images.size if images.stored != images.size else None
    return ResizedCrop(scale=(images.by_size(given, 0.5, large), 1.0), size=size)


def _jitter(images: ImageTraits, spec: Jitter) -> ColorJitter:
    colour = images.channels == 3
    return ColorJitter(
        brightness=spec.jitter,
        contrast=spec.jitter,
        saturation=spec.jitter if colour else 0.0,
        hue=spec.hue if colour else 0.0,
        p=spec.jitter_p,
    )


_VIEWS: dict[str, Callable[[ImageTraits, ViewsSpec], tuple[Op, ...]]] = {
    recipe.__name__: recipe
    for recipe in (
        *(none, weak, strong, randaugment, contrastive, contrastive_noise),
        *(joint_contrastive, joint_classification),
    )
}
VIEW_NAMES: tuple[str, ...] = tuple(_VIEWS)


def view(
    name: str,
    *,
    image_size: int,
    channels: int,
    flip: bool,
    stored: int | None = None,
    views: ViewsSpec = AS_PUBLISHED,
) -> View:
    """The named view, which makes images of `image_size` pixels a side of stored ones.

    `flip=False` leaves out every mirroring: for digits, letters, road signs. `stored` is the side of what the view
    gets, `image_size` if absent: where it is larger, random crops are cut out of the larger image.

    Raises:
        UserError: an unknown name (a ValueError that names the nearest), or an impossible image.
    """
    problems = []
    if name not in _VIEWS:
        problems.append(Problem(unknown("view", name, VIEW_NAMES), key="view"))
    if image_size < 2:
        problems.append(Problem(f"is {image_size}, but must be at least 2", key="image_size"))
    if channels < 1:
        problems.append(Problem(f"is {channels}, but must be at least 1", key="channels"))
    if problems:
        raise UserError(problems)
    return View(
        name, _VIEWS[name](ImageTraits(image_size, channels, flip, stored or image_size), views)
    )
