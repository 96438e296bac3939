"""What an evaluation looks at: a fixed part on the way, all where it counts; and what is done about memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.helpers import small_spec
from tune_ssl.data import datasets, store
from tune_ssl.data.batch import Task
from tune_ssl.data.datasets import Source, SourcePart
from tune_ssl.data.loading import EVALUATED_PIXELS, chunk_size, in_chunks, load_data
from tune_ssl.data.sets import Images, LabeledSet, Piece
from tune_ssl.methods.supervised import SupervisedStage
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.training.evaluation import predict
from tune_ssl.training.loop import Report, images_evaluated, train
from tune_ssl.training.out_of_memory import in_halves
from tune_ssl.training.stepper import Stepper

CPU = torch.device("cpu")


def run(spec: TrialSpec, **options: Any) -> list[Report]:
    return list(train(spec, **options))


def looked_at(reports: list[Report]) -> list[int]:
    return [report.metrics["val/images"] for report in reports]


# ---- a fixed part of a set -----------------------------------------------------------------------


def labeled_set(labels: list[int]) -> LabeledSet:
    """Image i is the number i."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return LabeledSet(Images((Piece(images, np.arange(len(labels))),)), np.array(labels))


def rows(on: LabeledSet) -> list[int]:
    return on.images.gather(np.arange(len(on))).ravel().tolist()


def test_some_of_a_set_are_always_the_same_ones_and_within_any_larger_choice():
    on = labeled_set(np.random.default_rng(0).integers(0, 4, 200).tolist())
    before: set[int] = set()
    for count in (4, 10, 50, 51, 199):
        some = on.some(count)
        assert rows(some) == rows(on.some(count)) == sorted(rows(some))
        assert len(some) == count and before <= set(rows(some))
        np.testing.assert_array_equal(some.labels, on.labels[rows(some)])
        before = set(rows(some))


@pytest.mark.parametrize("count", [5, 20, 63, 150])
def test_some_of_a_set_have_the_classes_in_its_shares(count):
    on = labeled_set([0] * 100 + [1] * 60 + [2] * 40)
    found = np.bincount(on.some(count).labels, minlength=3)
    assert np.abs(found - count * np.array([0.5, 0.3, 0.2])).max() <= 1


def test_each_class_is_among_some_though_it_is_rare():
    on = labeled_set([0] * 190 + [1] * 9 + [2])
    assert set(on.some(3).labels) == {0, 1, 2}


def test_a_set_that_has_no_more_is_looked_at_whole():
    on = labeled_set([0, 1, 2])
    assert on.some(3) is on and on.some(1000) is on


def test_some_of_a_set_of_two_parts_are_the_images_that_their_labels_belong_to():
    images = np.arange(9, dtype=np.uint8).reshape(-1, 1, 1, 1)
    pieces = (Piece(images, np.array([8, 6, 4])), Piece(images + 100, np.array([1, 0])))
    on = LabeledSet(Images(pieces), np.array([8, 6, 4, 101, 100]))
    assert rows(on.some(4)) == on.some(4).labels.tolist()


# ---- when all of it counts -----------------------------------------------------------------------

SOME = {"budget.eval_images": 50}


def test_on_the_way_some_are_looked_at_and_all_at_the_end_of_each_stage():
    assert looked_at(run(small_spec("supervised", **SOME))) == [50, 50, 288]
    assert looked_at(run(small_spec("simclr", **SOME))) == [50, 50, 288] * 2


def test_where_trials_are_compared_all_are_looked_at():
    spec = small_spec("simclr", **SOME)
    assert looked_at(run(spec, whole_at=(2, 4))) == [50, 288, 288, 288, 50, 288]


def test_the_best_checkpoint_is_chosen_on_all_of_them():
    spec = small_spec("supervised", **SOME, **{"budget.checkpoint": "best"})
    assert looked_at(run(spec)) == [288] * 3


def test_what_an_evaluation_looks_at_changes_no_training_and_not_the_result():
    spec = small_spec("fixmatch")
    some, every = run(override(spec, SOME)), run(override(spec, {"budget.eval_images": "all"}))
    assert looked_at(every) == [288] * 3
    assert some[-1].result == every[-1].result and some[-1].metrics == every[-1].metrics
    assert some[0].metrics["loss/total"] == every[0].metrics["loss/total"]
    assert some[0].metrics["val/loss"] != every[0].metrics["val/loss"]


def test_the_numbers_are_those_of_the_part_that_was_looked_at():
    first = next(train(small_spec("supervised", **SOME)))
    trained = first.trained
    part = trained.data.sets.validation.some(50)
    assert trained.evaluate(part, "val") == first.result


def stepper_of(spec: TrialSpec) -> Stepper:
    data = load_data(spec.data, 0, CPU)
    (stage,) = spec.stages()
    return Stepper(spec, stage, stage.build(data.task, spec.model, None), data, 12, 0)


@pytest.mark.parametrize(
    "method, values, images",
    [
        ("supervised", {}, 500),  # never fewer
        # 5 % of three passes of (32 + 2 x 7 x 32) images in each of 50 steps
        ("fixmatch", {"data.batch_size": 32, "data.mu": 7, "budget.eval_every": 50}, 3600),
        ("fixmatch", {"data.batch_size": 32, "data.mu": 7, "budget.eval_every": 5}, 500),
    ],
)
def test_by_default_so_many_are_looked_at_as_cost_a_twentieth_of_training(method, values, images):
    spec = small_spec(method, **values)
    assert images_evaluated(spec, stepper_of(spec)) == images
    assert images_evaluated(override(spec, {"budget.eval_images": 7}), stepper_of(spec)) == 7


def test_by_default_a_small_validation_set_is_looked_at_whole_and_a_large_one_in_part():
    assert looked_at(run(small_spec("supervised"))) == [288] * 3
    assert looked_at(run(small_spec("supervised", **{"data.val_ratio": 0.8}))) == [500, 500, 1150]


def test_on_features_looking_costs_nothing_and_all_are_looked_at():
    large = {"data.val_ratio": 0.8, "model.freeze": "all"}
    assert looked_at(run(small_spec("supervised", **large))) == [1150] * 3


# ---- memory --------------------------------------------------------------------------------------


def hungry(fits: int) -> Any:
    """A call on images that runs out of memory on more than `fits` of them."""

    def call(images: torch.Tensor) -> list[int]:
        calls.append(len(images))
        if len(images) > fits:
            torch.empty(2**50, dtype=torch.uint8)
        return images.tolist()

    calls: list[int] = []
    call.calls = calls  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("fits", [1, 2, 3, 12, 13])
def test_where_memory_runs_out_the_halves_give_the_same_in_order(fits):
    call = hungry(fits)
    parts = in_halves(call, torch.arange(13))
    assert [n for part in parts for n in part] == list(range(13))
    assert all(len(part) <= fits for part in parts)
    assert (len(parts) == 1) is (fits >= 13)


def test_one_image_that_does_not_fit_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="allocate"):
        in_halves(hungry(0), torch.arange(4))


def test_another_error_is_raised_at_once_and_not_tried_in_halves():
    calls = []

    def broken(images: torch.Tensor) -> None:
        calls.append(len(images))
        raise ValueError("shapes do not match")

    with pytest.raises(ValueError, match="shapes do not match"):
        in_halves(broken, torch.arange(8))
    assert calls == [8]


def test_an_evaluation_that_does_not_fit_is_made_in_parts_with_the_same_outputs(monkeypatch):
    (report,) = run(small_spec("supervised", **{"budget.steps": 1}))
    trained, own = report.trained, SupervisedStage.predict
    on = trained.data.sets.validation
    whole = predict(trained.stage, trained.network, trained.data, on)
    sizes = []

    def small(self: Any, network: Any, images: torch.Tensor) -> Any:
        if len(images) > 20:
            torch.empty(2**50, dtype=torch.uint8)
        sizes.append(len(images))
        return own(self, network, images)

    monkeypatch.setattr(SupervisedStage, "predict", small)
    parts = predict(trained.stage, trained.network, trained.data, on)
    assert max(sizes) <= 20 and sum(sizes) == 288
    torch.testing.assert_close(parts.logits_NK, whole.logits_NK)


def test_a_chunk_has_so_many_pixels_whatever_the_images_size():
    assert [chunk_size(Task(2, 3, side)) for side in (32, 64, 1024)] == [512, 128, 1]
    assert chunk_size(Task(2, 3, 32, 64)) == 256  # 32 high, 64 wide
    for side in (8, 100, 224, 5000):
        count = chunk_size(Task(2, 3, side))
        assert count * side**2 <= EVALUATED_PIXELS or count == 1
    data = load_data(small_spec("supervised").data, 0, CPU)
    data.task = Task(10, 1, 90)
    sizes = [len(part) for part in in_chunks(data, data.sets.validation.images)]
    assert sizes == [64, 64, 64, 64, 32]


# ---- a channel that is the same everywhere -------------------------------------------------------


@pytest.fixture
def flat_blue(monkeypatch, tmp_path) -> TrialSpec:
    """Digits in colour whose third channel is 77 in every training image."""
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path))

    def read(spec: Any) -> Source:
        grey = datasets.digits(spec)
        parts = {}
        for name, part in grey.parts.items():
            images = np.repeat(np.stack(list(part.images)), 3, axis=1)
            images[:, 2] = 77
            parts[name] = SourcePart(part.labels, images)
        return Source(grey.class_names, (3, 8, 8), parts)

    monkeypatch.setitem(
        datasets.DATASETS, "flat_blue", datasets.Dataset("flat_blue", False, read, str)
    )
    return small_spec("supervised", **{"data.dataset": "flat_blue", "budget.steps": 60})


@pytest.mark.parametrize("view", ["none", "weak", "strong"])
def test_a_constant_channel_trains_as_if_it_were_not_there(view, flat_blue):
    reports = run(override(flat_blue, {"method.labeled_view": view}))
    assert all(np.isfinite(value) for report in reports for value in report.metrics.values())
    assert reports[-1].result["val/mean_class_accuracy"] > 0.4
    data = reports[-1].trained.data
    assert data.std[2] == 1.0 and all(std >= store.LEAST_STD for std in data.std)
    images = data.normalize(torch.from_numpy(data.sets.labeled.images.gather(np.arange(9))))
    torch.testing.assert_close(images[:, 2], torch.zeros(9, 8, 8), atol=1e-4, rtol=0)


def test_what_is_known_of_a_store_says_which_channel_never_changes(flat_blue):
    remarks = store.prepare(flat_blue.data).remarks()
    assert "channel 2 is the same in nearly all training images, and not scaled" in remarks
    assert store.prepare(small_spec().data).remarks() == []


# ---- the control of a pretraining ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["simclr", "simsiam", "simclr_joint"])
@pytest.mark.parametrize("transfer", ["finetune", "linear_probe"])
def test_the_control_without_pretraining_starts_with_the_same_head(method, transfer, monkeypatch):
    from tune_ssl.methods.transfer import FinetuneStage

    heads: list[torch.Tensor] = []
    build = FinetuneStage.build

    def spy(self: Any, *arguments: Any) -> Any:
        network = build(self, *arguments)
        heads.append(network.classifier.weight.detach().clone())
        return network

    monkeypatch.setattr(FinetuneStage, "build", spy)
    for init in ("pretrained", "random"):
        own = {"method.init": init}
        if method != "simclr_joint":
            own["method.transfer"] = transfer
        run(small_spec(method, **own, **{"budget.steps": 2}))
    assert len(heads) == 2 and torch.equal(*heads)
    run(small_spec(method, seed=1, **own, **{"budget.steps": 2}))
    assert not torch.equal(heads[0], heads[2])
