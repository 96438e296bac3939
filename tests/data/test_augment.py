"""The contract of every named view, and what each promises by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from benchmarks.transfers import CountedTransfers
from tune_ssl.data.augment import VIEW_NAMES, View, view
from tune_ssl.data.ops import (
    Apply,
    ColorAffine,
    Flip,
    GaussianBlur,
    GaussianNoise,
    RandAugment,
    RandomErasing,
    ReflectCrop,
    ResizedCrop,
    TranslateZoom,
)

KINDS = [(8, 1), (16, 3), (32, 1), (32, 5), (96, 3)]
RANDOM_VIEWS = [name for name in VIEW_NAMES if name != "none"]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(name: str, size: int = 32, channels: int = 3, flip: bool = True) -> View:
    return view(name, image_size=size, channels=channels, flip=flip)


def copies(n: int, channels: int, size: int) -> Tensor:
    one = torch.randint(0, 256, (1, channels, size, size), dtype=torch.uint8, generator=seeded(7))
    return one.expand(n, channels, size, size).contiguous()


@pytest.mark.parametrize(("size", "channels"), KINDS)
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_view_is_a_pure_function_of_the_images_and_the_generator(
    name: str, size: int, channels: int
) -> None:
    images = copies(32, channels, size)
    before = images.clone()
    chosen = make(name, size, channels)
    out = chosen(images, seeded(3))
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert out.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)
    assert torch.equal(out, chosen(images, seeded(3)))
    assert torch.equal(out, chosen(images.to(memory_format=torch.channels_last), seeded(3)))


@pytest.mark.parametrize(("size", "channels"), KINDS)
@pytest.mark.parametrize("name", RANDOM_VIEWS)
def test_a_view_treats_each_image_of_a_batch_differently(
    name: str, size: int, channels: int
) -> None:
    images = copies(64, channels, size)
    out = make(name, size, channels)(images, seeded())
    positions = 2 * (2 * max(1, size // 8) + 1) ** 2
    fewest = min(50, positions // 2)
    assert len(out.flatten(1).unique(dim=0)) >= fewest
    assert not torch.equal(out, make(name, size, channels)(images, seeded(1)))


@pytest.mark.filterwarnings("ignore:.*not writable")
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_view_reads_a_read_only_file(name: str, tmp_path: Path) -> None:
    stored = copies(8, 3, 16)
    np.save(tmp_path / "images.npy", stored.numpy())
    images = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert torch.equal(make(name, 16)(images, seeded()), make(name, 16)(stored, seeded()))


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_a_view_of_no_images_is_empty(name: str) -> None:
    empty = torch.empty(0, 3, 32, 32, dtype=torch.uint8)
    assert make(name)(empty, seeded()).shape == empty.shape


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_every_tensor_follows_the_images_to_their_device(name: str) -> None:
    # The meta device refuses to meet CPU tensors, as CUDA does.
    images = torch.empty(64, 3, 96, 96, dtype=torch.uint8, device="meta")
    assert make(name, 96)(images, seeded()).device.type == "meta"


@pytest.mark.parametrize("name", RANDOM_VIEWS)
def test_all_that_a_view_draws_goes_to_the_device_in_one_copy(name: str) -> None:
    images = torch.empty(64, 3, 96, 96, dtype=torch.uint8, device="meta")
    with CountedTransfers() as counted:
        make(name, 96)(images, seeded())
    assert counted.transfers == 1


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_images_of_several_draws_are_seen_together_as_each_draw_by_itself(name: str) -> None:
    chosen, images = make(name), copies(48, 3, 32)
    apart = [chosen(part, seeded(k)) for k, part in enumerate(images.split(16))]
    draws = [chosen.draw((16, 3, 32, 32), seeded(k)) for k in range(3)]
    assert torch.equal(chosen.apply(images, chosen.plan(draws)), torch.cat(apart))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VIEW_NAMES)
def test_the_gpu_sees_the_same_draws(name: str) -> None:
    images = copies(64, 3, 96)
    on_gpu = make(name, 96)(images.cuda(), seeded()).cpu()
    difference = (on_gpu.int() - make(name, 96)(images, seeded()).int()).abs().float()
    assert (difference > 2).float().mean() < 0.01


# A diagonal ramp and its mirror image are orthogonal, so a view's output tells which it came from.
def mirrored_share(chosen: View, size: int, channels: int) -> float:
    at = torch.linspace(-1, 1, size)
    diagonal = at[None, :] + at[:, None]
    image = (127 + 60 * diagonal).to(torch.uint8)
    out = chosen(image.expand(400, channels, size, size).contiguous(), seeded()).float().mean(1)
    out = out - out.mean((1, 2), keepdim=True)
    kept = (out * diagonal).sum((1, 2)).abs()
    return (kept < (out * diagonal.flip(1)).sum((1, 2)).abs()).float().mean().item()


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3)])
@pytest.mark.parametrize("name", RANDOM_VIEWS)
def test_without_flip_nothing_is_mirrored(name: str, size: int, channels: int) -> None:
    upright = make(name, size, channels, flip=False)
    assert not any(isinstance(op, Flip) for op in upright.ops)
    assert mirrored_share(upright, size, channels) < 0.1
    assert mirrored_share(make(name, size, channels, flip=True), size, channels) > 0.35


def test_none_is_the_identity_and_weak_only_moves_and_mirrors() -> None:
    images = copies(4, 3, 32)
    assert torch.equal(make("none")(images, seeded()), images)
    assert make("weak").ops == (Flip(0.5), ReflectCrop(1 / 8))


def test_randaugment_has_the_fourteen_operations_of_fixmatch() -> None:
    _, _, middle, cutout = make("randaugment").ops
    assert isinstance(middle, RandAugment)
    assert (middle.n, middle.p) == (2, 0.5)
    assert {choice.op: (choice.low, choice.high) for choice in middle.choices} == {
        "identity": (0, 0), "autocontrast": (0, 0), "equalize": (0, 0),
        "rotate": (-30, 30), "solarize": (0, 256), "posterize": (4, 9),
        "color": (0.05, 0.95), "contrast": (0.05, 0.95),
        "brightness": (0.05, 0.95), "sharpness": (0.05, 0.95),
        "shear_x": (-0.3, 0.3), "shear_y": (-0.3, 0.3),
        "translate_x": (-0.3, 0.3), "translate_y": (-0.3, 0.3),
    }  # fmt: skip
    assert len(middle.choices) == 14
    assert repr(cutout) == "Cutout(fraction=0.5, value=127)"


def test_strong_has_every_colour_operation_and_erasing_after_weak() -> None:
    chosen = make("strong").ops
    assert chosen[:2] == make("weak").ops
    names = [op.op for op in chosen if isinstance(op, Apply)]
    assert names == ["autocontrast", "equalize", "posterize", "solarize"]
    assert isinstance(chosen[-1], RandomErasing)


@pytest.mark.parametrize(("size", "blurs"), [(8, 0), (32, 0), (64, 0), (96, 1), (160, 1)])
def test_only_large_images_are_blurred(size: int, blurs: int) -> None:
    assert sum(isinstance(op, GaussianBlur) for op in make("contrastive", size).ops) == blurs


def test_contrastive_noise_adds_noise() -> None:
    assert any(isinstance(op, GaussianNoise) for op in make("contrastive_noise").ops)


@pytest.mark.parametrize(("size", "smallest"), [(8, 0.5), (16, 0.5), (32, 0.08)])
def test_small_images_keep_at_least_half_of_themselves(size: int, smallest: float) -> None:
    crop = make("contrastive", size).ops[0]
    assert isinstance(crop, ResizedCrop)
    assert crop.scale == (smallest, 1.0)


@pytest.mark.parametrize(("size", "area"), [(8, 0.5), (16, 0.5), (32, 0.25), (96, 0.25)])
def test_the_joint_views_are_those_of_the_keras_example(size: int, area: float) -> None:
    contrastive = (Flip(0.5), TranslateZoom(area), ColorAffine(0.6, 0.2))
    classification = (Flip(0.5), TranslateZoom(0.75), ColorAffine(0.3, 0.1))
    assert make("joint_contrastive", size).ops == contrastive
    assert make("joint_classification", size).ops == classification


def test_repr_tells_what_a_view_does() -> None:
    assert repr(make("weak")) == "View('weak', Flip(p=0.5), ReflectCrop(fraction=0.125))"


def test_an_unknown_name_gets_the_nearest_and_all_names() -> None:
    with pytest.raises(ValueError) as caught:
        make("strnog")
    assert "view is 'strnog'" in str(caught.value)
    assert "did you mean 'strong'?" in str(caught.value)
    assert all(name in str(caught.value) for name in VIEW_NAMES)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        view("weak", image_size=1, channels=0, flip=True)
    assert str(caught.value).splitlines() == [
        "image_size is 1, but must be at least 2",
        "channels is 0, but must be at least 1",
    ]


def test_a_view_refuses_floats() -> None:
    with pytest.raises(ValueError, match=r"float32 \(2, 3, 8, 8\), but must be torch.uint8"):
        make("weak")(torch.zeros(2, 3, 8, 8), seeded())
