"""Each random operation draws per image, in its range, with its probability."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

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


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def white(n: int, channels: int = 3, size: int = 16) -> Tensor:
    return torch.full((n, channels, size, size), 255, dtype=torch.uint8)


def ramp(n: int, size: int) -> Tensor:
    """Column j has the value 8 j."""
    return (8 * torch.arange(size)).to(torch.uint8).expand(n, 1, size, size).contiguous()


def distinct(images: Tensor) -> int:
    return len(images.flatten(1).unique(dim=0))


CHOICES = (Apply("rotate", -30, 30), Apply("contrast", 0.05, 0.95), Apply("equalize"))
# operation, fewest distinct outputs among 64 copies of one image
RANDOM_OPS: list[tuple[Op, int]] = [
    (Flip(), 2),
    (Apply("autocontrast", p=0.5), 2),
    (Apply("equalize", p=0.5), 2),
    (Apply("grayscale", p=0.5), 2),
    (Apply("posterize", 4, 9), 5),
    (Apply("translate_x", -0.3, 0.3), 15),
    (Apply("translate_y", -0.3, 0.3), 15),
    *((Apply(name, -0.3, 0.3), 40) for name in ("shear_x", "shear_y", "hue")),
    *((Apply(name, 0.05, 0.95), 40) for name in ("brightness", "contrast", "color", "sharpness")),
    (Apply("rotate", -30, 30), 40),
    (Apply("zoom", 0.7, 1.4), 25),
    (Apply("solarize", 0, 256), 30),
    (ReflectCrop(), 30),
    (ResizedCrop(), 55),
    (TranslateZoom(0.25), 64),
    (TranslateZoom(0.75), 64),
    (ColorAffine(0.6, 0.2), 64),
    (ColorJitter(p=1), 55),
    (RandAugment(CHOICES), 30),
    (RandomErasing(p=1), 55),
    (Cutout(), 55),
    (GaussianNoise(), 64),
    (GaussianBlur(kernel=5, p=1), 40),
]


@pytest.mark.parametrize(("op", "fewest"), RANDOM_OPS, ids=repr)
def test_the_draw_is_per_image_repeatable_and_leaves_the_input(op: Op, fewest: int) -> None:
    one = 40 + torch.randint(0, 160, (1, 3, 32, 32), dtype=torch.uint8, generator=seeded(7))
    images = one.expand(64, 3, 32, 32).contiguous()
    out = op(images, seeded())
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert distinct(out) >= fewest
    assert torch.equal(images, one.expand_as(images))
    assert torch.equal(out, op(images, seeded()))
    assert not torch.equal(out, op(images, seeded(1)))


def test_apply_hits_its_share_of_images_with_parameters_over_its_whole_range() -> None:
    value = Apply("brightness", 0.2, 0.6, p=0.3)(white(2000, 1, 2), seeded())[:, 0, 0, 0].float()
    changed = value[value < 255]
    assert len(changed) / 2000 == pytest.approx(0.3, abs=0.03)
    assert 51 <= changed.min() < 54
    assert 150 < changed.max() <= 153


def test_apply_names_the_nearest_operation() -> None:
    with pytest.raises(ValueError, match=r"op is 'rotat', .* did you mean 'rotate'\? \(known: aut"):
        Apply("rotat")


def test_flip_mirrors_half_of_the_images_and_keeps_the_others() -> None:
    images = ramp(1000, 4)
    out = Flip()(images, seeded())
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("size", "pad"), [(2, 1), (8, 1), (16, 2), (32, 4)])
def test_reflect_crop_moves_by_up_to_an_eighth_and_at_least_one_pixel(size: int, pad: int) -> None:
    out = ReflectCrop()(ramp(400, size), seeded())[:, 0, 0]
    padded = torch.nn.functional.pad(ramp(1, size).float(), [pad] * 4, mode="reflect")[0, 0, pad]
    allowed = {tuple(w.tolist()) for w in padded.to(torch.uint8).unfold(0, size, 1)}
    assert {tuple(row.tolist()) for row in out} == allowed


@pytest.mark.parametrize("upright", [False, True], ids=["columns", "rows"])
def test_resized_crop_takes_the_given_area_from_everywhere(upright: bool) -> None:
    images = ramp(400, 32).mT if upright else ramp(400, 32)
    out = ResizedCrop(scale=(0.25, 0.25), ratio=(1, 1))(images, seeded())
    line = (out[:, 0, :, 0] if upright else out[:, 0, 0]).int()
    assert ((line[:, -1] - line[:, 0]) == 8 * 15).all()
    assert set(line[:, 0].tolist()) == {8 * start for start in range(17)}


def test_resized_crop_of_everything_is_the_identity() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    assert torch.equal(ResizedCrop(scale=(1, 1), ratio=(1, 1))(images, seeded()), images)
    impossible = ResizedCrop(scale=(1, 1), ratio=(3, 3))
    assert torch.equal(impossible(images, seeded()), images)


KERAS_OPS = [TranslateZoom(0.25), TranslateZoom(0.75), ColorAffine(0.6, 0.2), ColorAffine(0.3, 0.1)]


@pytest.mark.parametrize(("size", "channels"), [(s, c) for s in (8, 32, 96) for c in (1, 3)])
@pytest.mark.parametrize("op", KERAS_OPS, ids=repr)
def test_the_keras_operations_draw_per_image_at_every_size(
    op: Op, size: int, channels: int
) -> None:
    shape = (1, channels, size, size)
    one = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(7))
    images = one.expand(32, *shape[1:]).contiguous()
    out = op(images, seeded())
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert distinct(out) == 32
    assert torch.equal(images, one.expand_as(images))
    assert torch.equal(out, op(images, seeded()))


def window(lines: Tensor) -> tuple[Tensor, Tensor]:
    """How far lines of 64 pixels, 4 k at place k, were moved, and the part of them in view."""
    left, right = lines[:, 24].float() / 4, lines[:, 39].float() / 4
    return (31.5 - (left + right) / 2) / 64, (right - left) / 15


@pytest.mark.parametrize(("min_area", "z"), [(0.25, 0.5), (0.75, 1 - 0.75**0.5)])
def test_translate_zoom_moves_and_zooms_each_side_over_its_whole_range(
    min_area: float, z: float
) -> None:
    line, op = (4 * torch.arange(64)).to(torch.uint8), TranslateZoom(min_area)
    # The draws depend on the generator alone: the same windows, seen down and across.
    down, part_y = window(op(line[:, None].expand(2000, 1, 64, 64), seeded())[:, 0, :, 32])
    right, part_x = window(op(line.expand(2000, 1, 64, 64), seeded())[:, 0, 32])
    for move in (down, right):
        assert move.abs().max().item() == pytest.approx(z / 2, abs=0.01)
        assert move.std().item() == pytest.approx(z / 12**0.5, rel=0.05)
        assert move.mean().item() == pytest.approx(0, abs=0.01)
    for part in (part_y, part_x):
        assert part.min().item() == pytest.approx(1 - z, abs=0.03)
        assert part.max().item() == pytest.approx(1, abs=0.03)
        assert part.mean().item() == pytest.approx(1 - z / 2, abs=0.02)
    between = torch.stack((down, part_y, right, part_x)).corrcoef() - torch.eye(4)
    assert between.abs().max() < 0.1


def test_the_keras_operations_without_strength_are_the_identity() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    assert torch.equal(TranslateZoom(1.0)(images, seeded()), images)
    assert torch.equal(ColorAffine(0, 0)(images, seeded()), images)


@pytest.mark.parametrize(("brightness", "jitter"), [(0.15, 0.05), (0.05, 0.1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_color_affine_is_one_brightness_and_one_jitter_per_entry(
    channels: int, brightness: float, jitter: float
) -> None:
    # Pixel 0 is grey 100, pixel k has 100 more in channel k: the differences are the matrix's rows,
    # times 100. At these strengths nothing is clipped.
    pixel_CW = 100 + torch.cat((torch.zeros(channels, 1), 100 * torch.eye(channels)), dim=1)
    images = pixel_CW.to(torch.uint8)[:, None].expand(4000, channels, 1, channels + 1)
    out = ColorAffine(brightness, jitter)(images, seeded())[:, :, 0].float()
    matrix = (out[:, :, 1:] - out[:, :, :1]).mT / 100
    diagonal = matrix.diagonal(dim1=1, dim2=2) - 1
    limit, variance = brightness + jitter, (brightness**2 + jitter**2) / 3
    assert 0.8 * limit < diagonal.abs().max() < limit + 0.011
    assert diagonal.std().item() == pytest.approx(variance**0.5, rel=0.05)
    if channels == 3:
        others = matrix[:, ~torch.eye(3, dtype=torch.bool)]
        assert others.abs().max().item() == pytest.approx(jitter, abs=0.011)
        assert others.std().item() == pytest.approx(jitter / 3**0.5, rel=0.05)
        # The entries of the diagonal share the brightness; the others share nothing.
        shared = brightness**2 / 3 / variance
        assert diagonal.T.corrcoef()[0, 1].item() == pytest.approx(shared, abs=0.05)
        assert (others.T.corrcoef() - torch.eye(6)).abs().max() < 0.1


def test_color_jitter_without_strength_is_the_identity() -> None:
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    assert torch.equal(ColorJitter(0, 0, 0, 0, p=1)(images, seeded()), images)


def test_color_jitter_draws_each_strength_within_its_range() -> None:
    grey = torch.full((500, 3, 2, 2), 100, dtype=torch.uint8)
    value = ColorJitter(0.4, 0, 0, 0, p=1)(grey, seeded())[:, 0, 0, 0]
    assert 59 <= value.min() < 62
    assert 137 < value.max() <= 140
    share = ColorJitter(p=0.8)(grey, seeded())[:, 0, 0, 0].ne(100).float().mean()
    assert share == pytest.approx(0.8, abs=0.05)


def test_color_jitter_takes_its_steps_in_a_random_order() -> None:
    # Levels 0 and 200. Strong brightening clips 200 at 255; a contrast below 1 then keeps the sum
    # at 255. The other way round nothing is clipped first and the sum is up to 300.
    image = torch.tensor([0, 200], dtype=torch.uint8).expand(4000, 1, 1, 2)
    out = ColorJitter(0.5, 0.5, 0, 0, p=1)(image, seeded()).flatten(1).int()
    total = out.sum(1)[out[:, 0] > 0]
    brightness_first = ((total >= 252) & (total <= 255)).sum().item()
    contrast_first = (total > 262).sum().item()
    assert brightness_first > 0.03 * 4000
    assert contrast_first > 0.03 * 4000


@pytest.mark.parametrize("choices", [14, 3])
def test_randaugment_picks_every_choice_equally_often(choices: int) -> None:
    levels = [(k + 1) / 20 for k in range(choices)]
    op = RandAugment(tuple(Apply("brightness", x, x) for x in levels), n=1, p=1.0)
    value = op(white(400 * choices, 1, 2), seeded())[:, 0, 0, 0]
    _, counts = value.unique(return_counts=True)
    assert len(counts) == choices
    assert counts.min() > 320
    assert counts.max() < 480


def test_randaugment_applies_each_of_its_two_draws_to_half_of_the_images() -> None:
    op = RandAugment((Apply("brightness", 0.5, 0.5),), n=2, p=0.5)
    value = op(white(4000, 1, 2), seeded())[:, 0, 0, 0]
    share = {v: value.eq(v).float().mean().item() for v in (255, 127, 63)}
    assert share == pytest.approx({255: 0.25, 127: 0.5, 63: 0.25}, abs=0.03)


def test_erasing_paints_one_box_of_the_given_area_on_its_share_of_the_images() -> None:
    out = RandomErasing(scale=(0.1, 0.3), ratio=(0.5, 2), value=9, p=0.5)(white(1000), seeded())
    hole = out[:, 0] == 9
    area = hole.flatten(1).float().mean(1)
    assert (area > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert 0.08 < area[area > 0].min() < area.max() < 0.33
    box = hole.any(1).sum(1) * hole.any(2).sum(1)
    assert torch.equal(box, hole.sum((1, 2)))


def test_cutout_is_a_grey_square_of_half_the_side_clipped_at_the_border() -> None:
    hole = Cutout()(white(500), seeded())[:, 0] == 127
    area = hole.sum((1, 2))
    assert area.max() == 8 * 8
    assert area.min() <= 5 * 5
    assert hole.float().mean(0).min() > 0.03  # a corner: (4 / 16) ** 2 of the centres reach it


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_noise_has_the_given_standard_deviation(std: float) -> None:
    grey = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    noise = GaussianNoise(std)(grey, seeded()).float() - 128
    assert noise.std().item() == pytest.approx(255 * std, rel=0.02)
    assert abs(noise.mean().item()) < 0.5
