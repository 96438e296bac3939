"""Each pixel operation does what torchvision and PIL do, one image and one parameter at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from tune_ssl.data import pixels

SHAPES = [(1, 8, 8), (3, 16, 16), (3, 32, 32), (1, 32, 24), (3, 96, 96)]
KERAS_SHAPES = [(c, h, w) for c in (1, 3) for h, w in ((8, 8), (32, 32), (32, 24), (96, 96))]


def photo_like(n: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Smooth random images with some noise: neither flat nor white noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, max(2, h // 4), max(2, w // 4), generator=g)
    smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear")
    noisy = 230 * smooth + 25 * torch.rand(n, c, h, w, generator=g)
    return noisy.to(torch.uint8)


def shear(image: Tensor, x: float, y: float) -> Tensor:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return TF.affine(image, 0.0, [0, 0], 1.0, degrees, center=[0, 0])


def translate(image: Tensor, x: float, y: float) -> Tensor:
    return TF.affine(image, 0.0, [int(x * image.shape[-1]), int(y * image.shape[-2])], 1.0, [0, 0])


# operation, parameters (one per image), the same in torchvision, largest allowed difference of 255
LIKE_TORCHVISION: list[tuple[str, list[float], Callable[[Tensor, float], Tensor], int]] = [
    ("rotate", [-29.3, -4.1, 0.0, 17.9], lambda i, x: TF.rotate(i, x), 0),
    ("shear_x", [-0.29, -0.07, 0.0, 0.23], lambda i, x: shear(i, x, 0.0), 0),
    ("shear_y", [-0.29, -0.07, 0.0, 0.23], lambda i, x: shear(i, 0.0, x), 0),
    ("translate_x", [-0.29, -0.07, 0.0, 0.23], lambda i, x: translate(i, x, 0.0), 0),
    ("translate_y", [-0.29, -0.07, 0.0, 0.23], lambda i, x: translate(i, 0.0, x), 0),
    ("zoom", [0.71, 0.93, 1.0, 1.37], lambda i, x: TF.affine(i, 0.0, [0, 0], x, [0, 0]), 0),
    ("brightness", [0.05, 0.7, 1.0, 1.6], lambda i, x: TF.adjust_brightness(i, x), 0),
    ("contrast", [0.05, 0.7, 1.0, 1.6], lambda i, x: TF.adjust_contrast(i, x), 1),
    ("color", [0.05, 0.7, 1.0, 1.6], lambda i, x: TF.adjust_saturation(i, x), 1),
    ("sharpness", [0.05, 0.7, 1.0, 1.6], lambda i, x: TF.adjust_sharpness(i, x), 1),
    ("hue", [-0.47, -0.1, 0.0, 0.31], lambda i, x: TF.adjust_hue(i, x), 1),
    ("posterize", [1, 4.9, 7, 8], lambda i, x: TF.posterize(i, int(x)), 0),
    ("solarize", [0.0, 64.0, 200.5, 255.0], lambda i, x: TF.solarize(i, x), 0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "params", "reference", "tolerance"), LIKE_TORCHVISION)
def test_a_batch_with_one_parameter_each_equals_torchvision_image_by_image(
    name: str,
    params: list[float],
    reference: Callable[[Tensor, float], Tensor],
    tolerance: int,
    shape: tuple[int, int, int],
) -> None:
    images = photo_like(len(params), *shape)
    before = images.clone()
    got = getattr(pixels, name)(images, torch.tensor(params))
    want = torch.stack([reference(image, x) for image, x in zip(images, params, strict=True)])
    assert got.dtype == torch.uint8
    assert (got.int() - want.int()).abs().max() <= tolerance
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flip_and_reflected_shift_are_exact(shape: tuple[int, int, int]) -> None:
    images = photo_like(4, *shape)
    flipped = pixels.flip(images, torch.tensor([True, False, True, False]))
    assert torch.equal(flipped[0], TF.horizontal_flip(images[0]))
    assert torch.equal(flipped[1], images[1])
    pad, (_, h, w) = 2, shape
    offsets = [(-2, 1), (0, 0), (2, -2), (1, 2)]
    dy, dx = torch.tensor(offsets).unbind(1)
    got = pixels.shift_reflect(images, dy, dx)
    for image, out, (y, x) in zip(images, got, offsets, strict=True):
        padded = TF.pad(image, [pad], padding_mode="reflect")
        assert torch.equal(out, padded[:, pad + y : pad + y + h, pad + x : pad + x + w])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_resized_crop_is_torchvisions_within_one_level(shape: tuple[int, int, int]) -> None:
    images, (_, h, w) = photo_like(4, *shape), shape
    boxes = [(0, 0, h, w), (1, 2, h // 2, w // 3), (h - 3, w - 2, 3, 2), (2, 1, h - 4, w - 1)]
    got = pixels.resized_crop(images, torch.tensor(boxes))
    for image, out, box in zip(images, got, boxes, strict=True):
        want = TF.resized_crop(image, *box, size=[h, w], antialias=True)
        assert (out.int() - want.int()).abs().max() <= 1
    assert torch.equal(got[0], images[0])


# Moves (down, right) and visible parts (height, width): the limits of min_area 0.25 and the identity.
MOVES = [(0.0, 0.0), (0.25, -0.25), (-0.25, 0.25), (0.1, 0.2), (-0.07, 0.13)]
PARTS = [(1.0, 1.0), (1.0, 1.0), (0.5, 0.9), (0.83, 0.61), (0.97, 0.5)]


@pytest.mark.parametrize("shape", KERAS_SHAPES, ids=str)
def test_translate_zoom_is_scipys_affine_transform(shape: tuple[int, int, int]) -> None:
    images = photo_like(len(MOVES), *shape)
    before = images.clone()
    got = pixels.translate_zoom(images, torch.tensor(MOVES), torch.tensor(PARTS))
    assert got.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(got[0], images[0])
    side = np.array(shape[1:])
    centre = (side - 1) / 2
    for image, out, move, part in zip(images, got, MOVES, PARTS, strict=True):
        start = centre - np.array(move) * side - np.array(part) * centre
        for plane, out_plane in zip(image.numpy(), out.numpy(), strict=True):
            # scipy calls the mirror that repeats the border pixel "reflect", as Keras does.
            want = ndimage.affine_transform(
                plane.astype(float), part, start, order=1, mode="reflect"
            )
            assert np.abs(out_plane - want).max() < 0.51


def mirrored(k: int, n: int) -> int:
    return -1 - k if k < 0 else 2 * n - 1 - k if k >= n else k


@pytest.mark.parametrize("shape", KERAS_SHAPES, ids=str)
def test_translate_zoom_pixel_by_pixel(shape: tuple[int, int, int]) -> None:
    images, (_, h, w) = photo_like(len(MOVES), *shape), shape
    got = pixels.translate_zoom(images, torch.tensor(MOVES), torch.tensor(PARTS))
    places = [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1), (h // 2, 1), (h // 3, w // 4)]
    for n, ((down, right), (part_y, part_x)) in enumerate(zip(MOVES, PARTS, strict=True)):
        for i, j in places:
            # Undo the zoom about the centre, then the move; pixel k has its centre at k + 0.5.
            y = h / 2 + part_y * (i + 0.5 - h / 2) - down * h - 0.5
            x = w / 2 + part_x * (j + 0.5 - w / 2) - right * w - 0.5
            top, left = math.floor(y), math.floor(x)
            want = torch.zeros(shape[0])
            for row, col in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                weight = (1 - abs(y - row)) * (1 - abs(x - col))
                want += weight * images[n, :, mirrored(row, h), mirrored(col, w)]
            assert (got[n, :, i, j] - want).abs().max() < 0.51


@pytest.mark.parametrize(
    ("right", "part", "row"),
    [
        (0.25, 1.0, [0, 0, 40, 80]),
        (-0.5, 1.0, [80, 120, 120, 80]),
        (0.0, 0.5, [30, 50, 70, 90]),
        (0.25, 0.5, [0, 10, 30, 50]),
    ],
)
def test_translate_zoom_moves_right_repeats_the_border_and_zooms_in(
    right: float, part: float, row: list[int]
) -> None:
    image = torch.tensor([0, 40, 80, 120], dtype=torch.uint8).expand(1, 1, 2, 4)
    got = pixels.translate_zoom(image, torch.tensor([[0, right]]), torch.tensor([[1, part]]))
    assert got[0, 0].tolist() == [row, row]


def test_fill_box_is_torchvisions_erase_and_clips_at_the_border() -> None:
    images = photo_like(3, 3, 16, 16)
    got = pixels.fill_box(images, torch.tensor([[2, 3, 5, 4], [-2, 12, 6, 8], [0, 0, 0, 0]]), 127)
    assert torch.equal(got[0], TF.erase(images[0], 2, 3, 5, 4, torch.tensor(127)))
    assert torch.equal(got[1], TF.erase(images[1], 0, 12, 4, 4, torch.tensor(127)))
    assert torch.equal(got[2], images[2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blur_is_torchvisions_within_one_level(shape: tuple[int, int, int]) -> None:
    images, sigmas = photo_like(3, *shape), [0.1, 0.8, 2.0]
    got = pixels.blur(images, torch.tensor(sigmas), kernel=5)
    for image, out, sigma in zip(images, got, sigmas, strict=True):
        assert (out.int() - TF.gaussian_blur(image, [5, 5], [sigma]).int()).abs().max() <= 1


def test_noise_is_rounded_and_clipped() -> None:
    images = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 1, 1, 3)
    got = pixels.add(images, torch.tensor([-5.0, 1.6, 20.0]).view(1, 1, 1, 3))
    assert got.flatten().tolist() == [0, 102, 255]


@pytest.mark.parametrize("shape", KERAS_SHAPES, ids=str)
def test_color_matrix_multiplies_pixel_by_pixel(shape: tuple[int, int, int]) -> None:
    images, c = photo_like(4, *shape), shape[0]
    before = images.clone()
    generator = torch.Generator().manual_seed(1)
    matrices = 1.3 * torch.eye(c) + 0.8 * torch.rand(4, c, c, generator=generator) - 0.5
    got = pixels.color_matrix(images, matrices)
    assert got.dtype == torch.uint8
    assert torch.equal(images, before)
    for image, out, matrix in zip(images, got, matrices.double().numpy(), strict=True):
        pixels_PC, mixed_PC = image.flatten(1).T.numpy(), out.flatten(1).T.numpy()
        wanted_PC = np.clip(pixels_PC / 255 @ matrix, 0, 1) * 255
        assert np.abs(mixed_PC - wanted_PC).max() < 0.501


def test_color_matrix_takes_the_pixel_as_a_row_and_clips() -> None:
    pixel = torch.tensor([10, 20, 100], dtype=torch.uint8).view(1, 3, 1, 1)
    matrix = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 3.0]]])
    assert pixels.color_matrix(pixel, matrix).flatten().tolist() == [0, 40, 255]
    assert torch.equal(pixels.color_matrix(pixel, torch.eye(3)[None]), pixel)


@pytest.mark.parametrize("channels", [1, 3])
def test_histogram_and_enhancement_operations_agree_with_pil(channels: int) -> None:
    images = photo_like(2, channels, 32, 32)
    factor = torch.tensor([0.3, 0.3])
    pairs: list[tuple[Tensor, Callable[[Image.Image], Image.Image], int]] = [
        (pixels.equalize(images), ImageOps.equalize, 0),
        (pixels.autocontrast(images), ImageOps.autocontrast, 1),
        (pixels.posterize(images, torch.tensor([4, 4])), lambda i: ImageOps.posterize(i, 4), 0),
        (pixels.solarize(images, torch.tensor([99, 99])), lambda i: ImageOps.solarize(i, 99), 0),
        (pixels.brightness(images, factor), lambda i: ImageEnhance.Brightness(i).enhance(0.3), 1),
        (pixels.contrast(images, factor), lambda i: ImageEnhance.Contrast(i).enhance(0.3), 1),
        (pixels.color(images, factor), lambda i: ImageEnhance.Color(i).enhance(0.3), 1),
        (pixels.sharpness(images, factor), lambda i: ImageEnhance.Sharpness(i).enhance(0.3), 1),
        (pixels.rotate(images, factor * 50), lambda i: i.rotate(15), 0),
    ]
    for got, pil, tolerance in pairs:
        want = torch.stack([TF.pil_to_tensor(pil(TF.to_pil_image(image))) for image in images])
        assert (got.int() - want.int()).abs().max() <= tolerance


def test_grayscale_keeps_three_equal_channels() -> None:
    images = photo_like(2, 3, 16, 16)
    assert torch.equal(pixels.grayscale(images), TF.rgb_to_grayscale(images, num_output_channels=3))


@pytest.mark.parametrize("name", ["color", "hue"])
def test_colour_changes_nothing_on_one_channel(name: str) -> None:
    images = photo_like(2, 1, 16, 16)
    assert torch.equal(getattr(pixels, name)(images, torch.tensor([0.2, 0.4])), images)
    assert torch.equal(pixels.grayscale(images), images)


def test_equalize_needs_about_256_pixels_as_in_pil() -> None:
    digit = photo_like(1, 1, 8, 8)
    assert torch.equal(pixels.equalize(digit), digit)


def test_solarize_threshold_256_is_the_identity_even_for_white() -> None:
    white = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(pixels.solarize(white, torch.tensor([256.0])), white)
    assert pixels.solarize(white, torch.tensor([255.0])).eq(0).all()
