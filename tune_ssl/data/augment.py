"""Views: named, readable sequences of random image operations on a batch.

    weak = view("weak", image_size=32, channels=3, flip=True)
    weak                                 # View('weak', Flip(p=0.5), ReflectCrop(fraction=0.125))
    weak(images, generator)              # uint8 (N, C, H, W) -> a new uint8 (N, C, H, W)

Every random parameter is drawn per image, and always from the CPU generator: the result is a
function of the images and the generator's state, with the same draws on every device.
To add a view, write one function under "the named views".

Shapes: N images, C channels (1 or 3), H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tune_ssl.base.errors import Problem, UserError, unknown
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
    ResizedCrop,
    TranslateZoom,
)


@dataclass(frozen=True, repr=False)
class View:
    """A name and the operations that make the view, in order."""

    name: str
    ops: tuple[Op, ...]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """A new uint8 tensor of the same shape and device; it shares no memory with `images`."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            got = f"is {images.dtype} {tuple(images.shape)}"
            raise ValueError(f"`images` {got}, but must be torch.uint8 (N, 1 or 3, H, W)")
        out = images
        for op in self.ops:
            out = op(out, generator)
        return out.clone() if out is images else out

    def __repr__(self) -> str:
        return f"View({', '.join([repr(self.name), *map(repr, self.ops)])})"


# ---- the named views ----------------------------------------------------------------------------

SMALL = 16
"""Images of at most this many pixels a side get milder geometry: one pixel is much of a digit."""


@dataclass(frozen=True)
class ImageTraits:
    """What a view may know about the data it is for."""

    size: int
    channels: int
    flip: bool

    @property
    def small(self) -> bool:
        return self.size <= SMALL

    @property
    def flips(self) -> tuple[Op, ...]:
        return (Flip(),) if self.flip else ()


def none(images: ImageTraits) -> tuple[Op, ...]:
    """The image as it is."""
    return ()


def weak(images: ImageTraits) -> tuple[Op, ...]:
    """Flip and reflect-padded crop by 1/8 of the side (FixMatch, arXiv 2001.07685)."""
    return (*images.flips, ReflectCrop())


def strong(images: ImageTraits) -> tuple[Op, ...]:
    """Weak, then colour jitter, histogram operations and random erasing."""
    return (
        *weak(images),
        _jitter(images),
        Apply("autocontrast", p=0.2),
        Apply("equalize", p=0.2),
        Apply("posterize", 4, 8, p=0.2),
        Apply("solarize", 128, 256, p=0.2),
        RandomErasing(scale=(0.02, 0.15 if images.small else 0.33)),
    )


def randaugment(images: ImageTraits) -> tuple[Op, ...]:
    """Weak, two of FixMatch's 14 operations, Cutout (arXiv 2001.07685, appendix D)."""
    mild = 0.5 if images.small else 1.0
    degrees, part = 30 * mild, 0.3 * mild
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
    return (*weak(images), RandAugment(choices), Cutout(0.25 if images.small else 0.5))


def contrastive(images: ImageTraits) -> tuple[Op, ...]:
    """SimCLR (arXiv 2002.05709): crop, flip, colour distortion; blur only from 96 pixels on."""
    gray = (Apply("grayscale", p=0.2),) if images.channels == 3 else ()
    blur = (GaussianBlur(kernel=images.size // 20 * 2 + 1),) if images.size >= 96 else ()
    return (_crop(images, 0.08), *images.flips, _jitter(images), *gray, *blur)


def contrastive_noise(images: ImageTraits) -> tuple[Op, ...]:
    """Crop, colour jitter, Gaussian noise, flip: the recipe for a small encoder on STL-10."""
    return (_crop(images, 0.2), _jitter(images), GaussianNoise(), *images.flips)


def joint_contrastive(images: ImageTraits) -> tuple[Op, ...]:
    """Flip, crop, colour matrix: the contrastive view where labels and contrast train together.

    Source: https://keras.io/examples/vision/semisupervised_simclr/ (`contrastive_augmentation`).
    """
    area = 0.5 if images.small else 0.25
    return (*images.flips, TranslateZoom(area), ColorAffine(brightness=0.6, jitter=0.2))


def joint_classification(images: ImageTraits) -> tuple[Op, ...]:
    """The same, milder, for the labelled images.

    Source: https://keras.io/examples/vision/semisupervised_simclr/ (`classification_augmentation`).
    """
    return (*images.flips, TranslateZoom(0.75), ColorAffine(brightness=0.3, jitter=0.1))


def _crop(images: ImageTraits, smallest: float) -> ResizedCrop:
    return ResizedCrop(scale=(0.5 if images.small else smallest, 1.0))


def _jitter(images: ImageTraits) -> ColorJitter:
    return ColorJitter() if images.channels == 3 else ColorJitter(saturation=0.0, hue=0.0)


_VIEWS: dict[str, Callable[[ImageTraits], tuple[Op, ...]]] = {
    recipe.__name__: recipe
    for recipe in (
        *(none, weak, strong, randaugment, contrastive, contrastive_noise),
        *(joint_contrastive, joint_classification),
    )
}
VIEW_NAMES: tuple[str, ...] = tuple(_VIEWS)


def view(name: str, *, image_size: int, channels: int, flip: bool) -> View:
    """The named view for images of `image_size` pixels a side and 1 or 3 channels.

    `flip=False` leaves out every mirroring: for digits, letters, road signs.

    Raises:
        UserError: an unknown name (a ValueError that names the nearest), or an impossible image.
    """
    problems = []
    if name not in _VIEWS:
        problems.append(Problem(unknown("view", name, VIEW_NAMES), key="view"))
    if image_size < 2:
        problems.append(Problem(f"is {image_size}, but must be at least 2", key="image_size"))
    if channels not in (1, 3):
        problems.append(Problem(f"is {channels}, but must be 1 or 3", key="channels"))
    if problems:
        raise UserError(problems)
    return View(name, _VIEWS[name](ImageTraits(image_size, channels, flip)))
