"""What a confirmation says of single images: of which, by which seed, and what a failure costs."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from tests.artifacts.test_galleries import confirming, untrained  # noqa: F401
from tests.support.runs import CONFIRMED, run_here
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.splits import make_split
from tune_ssl.data.store import UnlabeledPart, open_test
from tune_ssl.methods import method_names
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.records.predictions import from_record
from tune_ssl.runs.folder import reopen
from tune_ssl.runs.splits import check_data
from tune_ssl.training.evaluation import predict
from tune_ssl.tuning import single_images, test_data
from tune_ssl.tuning.single_images import choose, pool_of, spread
from tune_ssl.tuning.writer import Writer


def store_and_split(seed=0, **values):
    store = untrained()[0].data.store
    spec = DataSpec(**{"dataset": "digits", "num_labels": 100, **values})
    labels = store.train.labels
    return store, make_split(labels, store.class_names, spec, seed=seed, has_val=False)


def labeled_or_not(store, split, rows):
    return np.isin(rows["train"], split.labeled)


@pytest.mark.parametrize("most", [1, 10, 300, 5000])
def test_no_image_that_a_seed_was_trained_on_with_its_label_is_looked_at(most):
    for seed in range(4):
        store, split = store_and_split(seed)
        rows, left_out = choose(store, split, most)
        assert not labeled_or_not(store, split, rows).any()
        hidden = split.train_size - len(split.labeled)
        assert len(rows["train"]) == min(hidden, most) and left_out == hidden - len(rows["train"])
        assert (np.diff(rows["train"]) > 0).all()


def test_all_seeds_look_at_the_same_images_but_for_their_own_labeled_ones():
    store, first = store_and_split(0)
    _, second = store_and_split(1)
    a, b = (set(choose(store, split, 500)[0]["train"].tolist()) for split in (first, second))
    # the labels of a seed leave their places to the next images of the same order
    other = {*first.labeled.tolist(), *second.labeled.tolist()}
    order = spread(first.train_size).tolist()
    late = set(order[500 : 500 + len(other)])
    assert (a ^ b) <= other | late and len(a & b) > 400


def test_each_part_gets_a_third_of_the_places_and_validation_what_is_left():
    store, split = store_and_split()
    train = store.train
    extra = UnlabeledPart(train.images, np.full(len(train.labels), -1))
    wider = replace(store, val=train, unlabeled=extra)
    rows, left_out = choose(wider, replace(split, validation_part="val"), 900)
    assert {name: len(found) for name, found in rows.items()} == {
        "val": 300,
        "train": 300,
        "unlabeled": 300,
    }
    rows, left_out = choose(wider, replace(split, validation_part="val"), 4200)
    hidden, count = split.train_size - len(split.labeled), len(train.labels)
    assert hidden < 1400 < count  # what train leaves goes to validation first
    assert (len(rows["val"]), len(rows["train"])) == (count, hidden)
    assert len(rows["unlabeled"]) == 4200 - count - hidden
    assert left_out == 2 * count + hidden - 4200
    assert len(choose(wider, split, 4000)[0]["val"]) == 0  # validated on train: val is not used


@pytest.mark.parametrize("count, most", [(1000, 10), (1438, 100), (50_000, 3000)])
def test_every_beginning_of_the_order_is_spread_evenly(count, most):
    order = spread(count)
    assert sorted(order.tolist()) == list(range(count))
    gaps = np.diff(np.sort(order[:most]))
    assert gaps.max() <= 4 * count / most


@pytest.mark.parametrize("method", method_names())
def test_the_pool_of_every_method_is_what_its_network_says_of_each_image(method, monkeypatch):
    trained, _ = untrained(method)
    on = trained.data.sets.validation
    prediction = predict(trained.stage, trained.network, trained.data, on)
    pool = pool_of(trained)
    assert len(pool) == trained.data.split.train_size - len(trained.data.split.labeled)
    assert prediction.logits_NK is not None
    shares = prediction.logits_NK.double().softmax(dim=1).numpy()
    rows = trained.data.split.validation
    at = np.searchsorted(pool.row, rows)
    assert (pool.row[at] == rows).all() and pool.validation.sum() == len(rows)
    assert pool.validation[at].all()
    assert (pool.given[at] == on.labels).all()
    assert pool.confidence[at] == pytest.approx(shares.max(axis=1), abs=1e-4)
    every = np.arange(len(rows))
    assert pool.given_probability[at] == pytest.approx(shares[every, on.labels], abs=1e-4)
    assert shares[every, pool.predicted[at]] == pytest.approx(shares.max(axis=1), abs=1e-4)


def test_an_image_without_a_label_has_none_in_the_pool():
    trained, _ = untrained()
    store = trained.data.store
    extra = UnlabeledPart(store.train.images, np.full(len(store.train.labels), -1))
    trained.data.store = replace(store, unlabeled=extra)
    pool = pool_of(trained)
    mine = pool.part == 2
    assert mine.sum() == len(store.train.labels)
    assert (pool.given[mine] == -1).all() and (pool.given_probability[mine] == 0).all()
    assert not pool.validation[mine].any() and (pool.given[~mine] >= 0).all()


# ---- the driver's side -------------------------------------------------------------------------


def test_every_confirmed_seed_leaves_a_line_that_agrees_with_its_result(tmp_path):
    run = run_here(tmp_path, CONFIRMED)
    ledger = Ledger.read(run)
    lines = [from_record(line) for line in log.read(run / log.PREDICTIONS)]
    confirmed = {t for t, start in ledger.begun.items() if start["phase"] == log.CONFIRM}
    assert {line.trial for line in lines} == confirmed and len(lines) == 4
    splits = {(s["condition"], s["seed"]): s for s in log.read(run / log.SPLITS)}
    _, study = reopen(run.parent, run.name)
    store = check_data(study)[study.conditions[0].id]
    for line in lines:
        end = ledger.ended[line.trial]
        assert "predictions" not in end and "predictions" not in end["metrics"]
        assert line.test_correct.mean() == pytest.approx(end["metrics"]["test/accuracy"])
        assert (line.test_true == open_test(store).labels).all()
        split = splits[line.condition, line.seed]
        assert not np.isin(line.pool.row, split["labeled"]).any()
        assert set(line.pool.row[line.pool.validation].tolist()) == set(split["validation"])
        right = (line.pool.predicted == line.pool.given)[line.pool.validation].mean()
        assert right == pytest.approx(end["metrics"]["val/accuracy"])
        assert line.pool.left_out == 0


def test_a_line_is_written_before_the_ending_of_every_seed(confirming, monkeypatch):  # noqa: F811
    stream = confirming()
    trained, _ = untrained()
    run, jobs = stream.context.run, [stream.next() for _ in range(4)]
    said = test_data.measure_test(trained)["predictions"]
    event = Writer.event

    def ending(self, line):
        assert log.read(run / log.PREDICTIONS)[-1]["trial"] == line["trial"]
        event(self, line)

    monkeypatch.setattr(Writer, "event", ending)
    for job in jobs:
        report = {"status": log.FINISHED, "result": {"val/accuracy": 0.5}, "split": job.split}
        with pytest.warns() if job.keep else contextlib.nullcontext():
            assert stream.report(job, {**report, "predictions": said})
    assert len(log.read(run / log.PREDICTIONS)) == 4


def test_a_pool_that_cannot_be_looked_at_costs_the_result_nothing(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(test_data, "pool_of", broken)
    run = run_here(tmp_path, CONFIRMED.replace("[20, 100]", "[20]"))
    ledger = Ledger.read(run)
    ends = [end for t, end in ledger.ended.items() if ledger.begun[t]["phase"] == log.CONFIRM]
    assert len(ends) == 2
    for end in ends:
        assert end["event"] == log.FINISHED and end["metrics"]["test/accuracy"] > 0
        assert end["notes"] == ["single images were not looked at: RuntimeError: two"]
    for line in log.read(run / log.PREDICTIONS):
        found = from_record(line)
        assert found.pool is None and found.error == "RuntimeError: two"
        assert len(found.test_correct)
    assert "single images were not looked at: RuntimeError" in capsys.readouterr().out


def test_a_prediction_that_is_no_number_is_no_pool(monkeypatch):
    import torch

    trained, _ = untrained()
    with torch.no_grad():
        for parameter in trained.network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        single_images.pool_of(trained)
