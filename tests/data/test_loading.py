"""Batches: which images, seen how, in which order; and the same again after an interruption."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from benchmarks.transfers import CountedTransfers
from tests.support.helpers import small_spec
from tune_ssl.base.spec import DataSpec
from tune_ssl.data import loading
from tune_ssl.data.augment import VIEW_NAMES
from tune_ssl.data.loading import (
    BalancedShuffle,
    EndlessShuffle,
    Loader,
    in_chunks,
    load_data,
    stream,
)
from tune_ssl.data.ops import Apply, ColorJitter, Flip, RandomErasing, ReflectCrop, ResizedCrop

CPU = torch.device("cpu")


def make(views=(("weak",), ("weak", "strong")), seed=0, device=CPU, **values):
    spec = small_spec(**values)
    data = load_data(spec.data, 0, device, views=spec.views)
    return data, Loader(data, spec.data, *views, seed=seed)


def test_a_range_and_classes_do_not_keep_the_store_from_being_found_once():
    spec = DataSpec(range=[0, 255], classes=["1", "2"])
    first, second = (load_data(spec, 0, CPU).store for _ in range(2))
    assert first is second and first.class_names == ("1", "2")


def start(loader):
    """All that a stage starts from: labeled images, their labels, unlabeled images."""
    sample = loader.sample()
    labeled, unlabeled = list(sample.labeled()), list(sample.unlabeled())
    images = torch.cat([images for images, _ in labeled]) if labeled else torch.empty(0)
    labels = torch.cat([labels for _, labels in labeled]) if labeled else torch.empty(0)
    return images, labels, torch.cat(unlabeled) if unlabeled else torch.empty(0)


def test_a_batch_has_a_float_tensor_for_each_view_and_mu_unlabeled_images_per_labeled_one():
    _, loader = make(**{"data.mu": 3})
    batch = loader.next()
    assert [view.shape for view in batch.labeled] == [(8, 1, 8, 8)]
    assert [view.shape for view in batch.unlabeled] == [(24, 1, 8, 8)] * 2
    assert batch.labels_N.shape == (8,) and batch.hidden_labels_U.shape == (24,)
    assert batch.labeled[0].dtype == torch.float32 and loader.images_per_step == 32


def test_without_unlabeled_views_no_unlabeled_image_is_drawn():
    _, loader = make(views=(("weak",), ()))
    batch = loader.next()
    assert batch.unlabeled == () and len(batch.hidden_labels_U) == 0
    assert loader.images_per_step == 8


def test_without_labeled_views_no_labeled_image_is_drawn_and_none_is_in_the_sample():
    data, loader = make(views=((), ("weak", "strong")))
    batch = loader.next()
    assert batch.labeled == () and len(batch.labels_N) == 0 and len(batch.hidden_labels_U) == 8
    assert loader.images_per_step == 8
    images, labels, unlabeled = start(loader)
    assert len(images) == len(labels) == 0 and len(unlabeled) == len(data.sets.unlabeled)


def test_without_unlabeled_views_none_is_in_the_sample():
    _, loader = make(views=(("weak",), ()))
    images, labels, unlabeled = start(loader)
    assert len(images) == len(labels) == 40 and len(unlabeled) == 0


def test_a_sample_begins_anew_with_each_call_and_comes_some_images_at_a_time(monkeypatch):
    monkeypatch.setattr(loading, "EVALUATED_PIXELS", 30 * 64)
    _, loader = make()
    sample = loader.sample()
    first, again = list(sample.labeled()), list(sample.labeled())
    assert len(first) == 2 and all(1 < len(images) <= 30 for images, _ in first)
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert all(len(images) > 1 for images in sample.unlabeled())


def test_without_labeled_views_batches_and_sample_do_not_depend_on_the_number_of_labels():
    _, few = make(views=((), ("weak", "strong")), **{"data.num_labels": 20})
    _, many = make(views=((), ("weak", "strong")), **{"data.num_labels": 600})
    for _ in range(2):
        assert torch.equal(start(few)[2], start(many)[2])
    for _ in range(40):
        a, b = few.next(), many.next()
        assert all(torch.equal(x, y) for x, y in zip(a.unlabeled, b.unlabeled, strict=True))
        assert torch.equal(a.hidden_labels_U, b.hidden_labels_U)


def test_a_state_without_labeled_views_goes_on_with_the_same_batches():
    _, first = make(views=((), ("weak",)))
    first.next()
    state, expected = first.state(), first.next()
    _, second = make(views=((), ("weak",)), seed=99)
    second.load(state)
    assert torch.equal(second.next().unlabeled[0], expected.unlabeled[0])


def test_every_labeled_image_comes_once_before_any_comes_again():
    data, loader = make(views=(("none",), ()))
    images = torch.cat([loader.next().labeled[0] for _ in range(5)]).flatten(1)
    own = data.normalize(torch.from_numpy(data.sets.labeled.images.gather(np.arange(40)))).flatten(
        1
    )
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, own.tolist()))


def test_an_order_walks_through_all_before_it_starts_again():
    order = EndlessShuffle(5, stream(0, 1))
    drawn = order.draw(13)
    assert sorted(drawn[:5].tolist()) == sorted(drawn[5:10].tolist()) == list(range(5))


def test_labels_stay_with_their_images():
    data, loader = make(views=(("none",), ("none",)))
    pixels = data.sets.labeled.images.gather(np.arange(40))
    own = {
        data.normalize(torch.from_numpy(pixels[i : i + 1])).numpy().tobytes(): int(label)
        for i, label in enumerate(data.sets.labeled.labels)
    }
    batch = loader.next()
    for image, label in zip(batch.labeled[0], batch.labels_N, strict=True):
        assert own[image[None].numpy().tobytes()] == label


def test_the_order_and_the_labeled_views_do_not_depend_on_the_unlabeled_views():
    _, plain = make(views=(("strong",), ("none",)))
    _, rich = make(views=(("strong",), ("weak", "strong")))
    for _ in range(40):
        a, b = plain.next(), rich.next()
        assert torch.equal(a.labels_N, b.labels_N)
        assert torch.equal(a.labeled[0], b.labeled[0])
        assert torch.equal(a.hidden_labels_U, b.hidden_labels_U)


def test_a_stage_starts_from_images_of_every_class_though_the_data_is_in_class_order(monkeypatch):
    monkeypatch.setattr(loading, "START_LABELED", 60)
    _, loader = make(**{"data.num_labels": 600})
    loader.labeled.labels = loader.labeled.labels.sort().values
    assert loader.labeled.labels[:50].unique().tolist() == [0]
    _, labels, _ = start(loader)
    assert len(labels) == 60 and set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 7])
def test_a_loaded_state_goes_on_with_the_same_batches(taken, monkeypatch):
    monkeypatch.setattr(
        loading, "BLOCK_PIXELS", 4 * 24 * 64
    )  # 8 labeled and 2 x 8 unlabeled: four steps a block
    _, first = make()
    assert first.block_steps == 4
    for _ in range(taken):
        first.next()
    state = first.state()
    expected = [first.next() for _ in range(6)]
    _, second = make(seed=99)
    second.load(state)
    for batch in expected:
        again = second.next()
        assert torch.equal(batch.labels_N, again.labels_N)
        assert all(torch.equal(a, b) for a, b in zip(batch.labeled, again.labeled, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(batch.unlabeled, again.unlabeled, strict=True))


@pytest.mark.parametrize("taken", [0, 3, 8, 11, 12])
def test_batches_do_not_depend_on_how_many_a_device_makes_at_once(taken, monkeypatch):
    monkeypatch.setattr(loading, "BLOCK_PIXELS", 4 * 24 * 64)
    _, one = make()
    _, three = make()
    three.blocks = 3  # as on a GPU
    for _ in range(taken):
        same(one.next(), three.next())
    _, resumed = make(seed=99)
    resumed.load(three.state())
    for _ in range(9):
        same(expected := one.next(), three.next())
        same(expected, resumed.next())


def same(a, b):
    assert torch.equal(a.labels_N, b.labels_N) and torch.equal(a.hidden_labels_U, b.hidden_labels_U)
    for mine, theirs in zip((*a.labeled, *a.unlabeled), (*b.labeled, *b.unlabeled), strict=True):
        assert torch.equal(mine, theirs)


def test_each_half_of_a_chunk_of_batches_goes_to_the_device_in_one_copy():
    _, loader = make(device=torch.device("meta"))
    with CountedTransfers() as counted:
        assert loader.next().labeled[0].device.type == "meta"
    assert counted.transfers == 2


def test_each_chunk_of_an_evaluation_goes_to_the_device_in_one_copy():
    data, _ = make(device=torch.device("meta"))
    with CountedTransfers() as counted:
        assert len(list(in_chunks(data, data.sets.validation.images, size=100))) == 3
    assert counted.transfers == 3


def test_normalised_pixels_have_mean_zero_and_deviation_one_over_the_train_part():
    data, _ = make()
    pixels = data.normalize(torch.from_numpy(np.array(data.store.train.images)))
    assert pixels.mean().item() == pytest.approx(0, abs=1e-3)
    assert pixels.std().item() == pytest.approx(1, abs=1e-2)


def test_evaluation_sees_every_validation_image_once_and_unchanged():
    data, _ = make()
    on = data.sets.validation
    raw = data.normalize(torch.from_numpy(on.images.gather(np.arange(len(on)))))
    assert torch.equal(torch.cat(list(in_chunks(data, on.images, size=100))), raw)


def test_streams_of_a_seed_differ_and_repeat():
    draws = {(s, n): torch.rand(3, generator=stream(s, n)).tolist() for s in (0, 1) for n in (1, 2)}
    assert len({tuple(d) for d in draws.values()}) == 4
    assert torch.rand(3, generator=stream(0, 1)).tolist() == draws[0, 1]


# ---- the order -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, count", [(1150, 896), (1150, 256), (1150, 1150), (7, 5), (7, 4), (2, 1)]
)
def test_no_step_has_an_image_twice_and_each_walk_has_every_image_once(size, count):
    order = EndlessShuffle(size, stream(0, 1))
    steps = [order.draw(count).tolist() for _ in range(60)]
    assert all(len(set(step)) == count for step in steps)
    every = [image for step in steps for image in step]
    for start in range(0, len(every) - size + 1, size):
        assert len(set(every[start : start + size])) == size


def test_a_step_that_is_larger_than_the_set_has_every_image_about_equally_often():
    drawn = EndlessShuffle(5, stream(0, 1)).draw(13).tolist()
    assert sorted(Counter(drawn).values()) == [2, 2, 3, 3, 3]


def test_an_order_drawn_for_several_steps_is_that_of_the_steps_one_by_one():
    one, several = EndlessShuffle(11, stream(0, 1)), EndlessShuffle(11, stream(0, 1))
    assert torch.equal(several.draw(4, 9), torch.cat([one.draw(4) for _ in range(9)]))


UNEVEN = torch.tensor([0] * 50 + [1] * 5 + [2] * 2)


def test_in_each_balanced_step_the_numbers_of_the_classes_differ_by_at_most_one():
    order = BalancedShuffle(UNEVEN, stream(0, 1))
    for _ in range(60):
        counts = np.bincount(UNEVEN[order.draw(8)], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_in_a_balanced_order_classes_come_equally_often_and_each_image_before_any_comes_again():
    order = BalancedShuffle(UNEVEN, stream(0, 1))
    every = torch.cat([order.draw(8) for _ in range(60)])
    assert np.bincount(UNEVEN[every]).tolist() == [160, 160, 160]
    for label, size in enumerate((50, 5, 2)):
        own = every[UNEVEN[every] == label].tolist()
        for begin in range(0, len(own) - size + 1, size):
            assert len(set(own[begin : begin + size])) == size


def test_with_balanced_data_a_step_has_a_rare_class_as_often_as_the_others():
    data = {"data.split": "random", "data.num_labels": 80, "data.batch_size": 20}
    _, plain = make(**data)
    _, loader = make(**data, **{"data.balanced": True})
    assert len(np.unique(np.bincount(plain.labeled.labels))) > 1, "the classes differ in size"
    for _ in range(5):
        assert np.bincount(loader.next().labels_N, minlength=10).tolist() == [2] * 10


def test_a_balanced_loader_goes_on_with_the_same_batches(monkeypatch):
    monkeypatch.setattr(loading, "BLOCK_PIXELS", 4 * 24 * 64)
    _, first = make(**{"data.balanced": True})
    for _ in range(6):
        first.next()
    state = first.state()
    expected = [first.next() for _ in range(6)]
    _, second = make(seed=99, **{"data.balanced": True})
    second.load(state)
    for batch in expected:
        again = second.next()
        assert torch.equal(batch.labels_N, again.labels_N)
        assert torch.equal(batch.labeled[0], again.labeled[0])


# ---- what the network sees -----------------------------------------------------------------------

LARGE = {"data.image_size": 16, "data.store_size": 32}


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_of_larger_stored_images_every_view_has_the_size_that_the_network_sees(name):
    data, loader = make(views=((name,), (name,)), **LARGE)
    assert data.store.shape == (1, 32, 32) and data.task.size == (16, 16)
    batch = loader.next()
    assert batch.labeled[0].shape == batch.unlabeled[0].shape == (8, 1, 16, 16)


def test_evaluation_sees_larger_stored_images_scaled_down_smoothly():
    data, _ = make(**LARGE)
    on = data.sets.validation
    stored = torch.from_numpy(on.images.gather(np.arange(len(on))))
    expected = data.normalize(TF.resize(stored, [16, 16], antialias=True))
    found = torch.cat(list(in_chunks(data, on.images, size=100)))
    one_level = 1 / (255 * data.std[0])
    assert found.shape == (288, 1, 16, 16)
    assert (found - expected).abs().max() < 1.01 * one_level


def test_random_crops_are_cut_out_of_the_larger_stored_image():
    data, _ = make(**LARGE)
    crop = data.view("contrastive").ops[0]
    assert isinstance(crop, ResizedCrop) and crop.size == 16


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_whether_mirroring_keeps_the_class_can_be_said_of_the_data_and_reaches_every_view(name):
    flips = {
        given: any(isinstance(op, Flip) for op in make(**{"data.flip": given})[0].view(name).ops)
        for given in (True, False, None)
    }
    assert flips == {True: name != "none", False: False, None: False}, "digits are not mirrored"


@pytest.mark.parametrize(
    "key, value, view, expected",
    [
        ("views.weak.shift", 0.25, "weak", repr(ReflectCrop(0.25))),
        ("views.weak.shift", 0.0, "weak", "View('weak')"),
        ("views.strong.shift", 0.25, "strong", repr(ReflectCrop(0.25))),
        ("views.strong.jitter", 0.7, "strong", repr(ColorJitter(0.7, 0.7, 0.0, 0.0, p=0.8))),
        ("views.strong.histogram_p", 0.6, "strong", repr(Apply("equalize", p=0.6))),
        ("views.strong.erase_p", 0.9, "strong", repr(RandomErasing(scale=(0.02, 0.15), p=0.9))),
        ("views.randaugment.count", 5, "randaugment", "n=5"),
        ("views.randaugment.degrees", 7.0, "randaugment", repr(Apply("rotate", -7.0, 7.0))),
        ("views.randaugment.cutout", 0.1, "randaugment", "Cutout(fraction=0.1"),
        ("views.contrastive.least_area", 0.9, "contrastive", "scale=(0.9, 1.0)"),
        ("views.contrastive_noise.noise", 0.2, "contrastive_noise", "0.2"),
        ("views.joint_contrastive.brightness", 0.11, "joint_contrastive", "brightness=0.11"),
        ("views.joint_classification.color", 0.12, "joint_classification", "jitter=0.12"),
    ],
)
def test_how_strong_a_view_is_can_be_said_and_reaches_its_operations(key, value, view, expected):
    data, _ = make(**{key: value})
    plain, _ = make()
    assert expected in repr(data.view(view)) and expected not in repr(plain.view(view))
    others = [name for name in VIEW_NAMES if name != view]
    assert all(repr(data.view(name)) == repr(plain.view(name)) for name in others)
