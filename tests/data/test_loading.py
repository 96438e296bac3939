"""Batches: which images, seen how, in which order; and the same again after an interruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.helpers import small_spec
from tune_ssl.data import loading
from tune_ssl.data.loading import EndlessShuffle, Loader, in_chunks, load_data, stream

CPU = torch.device("cpu")


def make(views=(("weak",), ("weak", "strong")), seed=0, **values):
    spec = small_spec(**values)
    data = load_data(spec.data, 0, CPU)
    return data, Loader(data, spec.data, *views, seed=seed)


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
    for batch in (loader.next(), loader.sample()):
        assert len(batch.labels_N) == 0 and not any(len(view) for view in batch.labeled)
        assert len(batch.hidden_labels_U) > 0
    assert loader.next().labeled == () and loader.images_per_step == 8
    assert len(loader.sample().unlabeled[0]) == len(data.sets.unlabeled)


def test_without_labeled_views_batches_and_sample_do_not_depend_on_the_number_of_labels():
    _, few = make(views=((), ("weak", "strong")), **{"data.num_labels": 20})
    _, many = make(views=((), ("weak", "strong")), **{"data.num_labels": 600})
    samples = [(few.sample(), many.sample()) for _ in range(2)]
    for a, b in [*samples, *((few.next(), many.next()) for _ in range(40))]:
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


def test_a_stage_starts_from_images_of_every_class_though_the_data_is_in_class_order():
    _, loader = make(**{"data.num_labels": 600})
    loader.labeled.labels = loader.labeled.labels.sort().values
    assert loader.labeled.labels[:50].unique().tolist() == [0]
    assert set(loader.sample(labeled=200).labels_N.tolist()) == set(range(10))


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 7])
def test_a_loaded_state_goes_on_with_the_same_batches(taken, monkeypatch):
    monkeypatch.setattr(
        loading, "CHUNK_PIXELS", 4 * 24 * 64
    )  # 8 labeled and 2 x 8 unlabeled: four steps a chunk
    _, first = make()
    assert first.chunk_steps == 4
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
