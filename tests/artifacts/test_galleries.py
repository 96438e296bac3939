"""What a confirmation leaves to look at: strips, pictures, neighbours, and the model on disk."""

from __future__ import annotations

import base64
import io
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.helpers import small_spec
from tests.support.runs import run_here
from tune_ssl.artifacts import galleries, thumbnails
from tune_ssl.artifacts.model_files import load_model, save_model
from tune_ssl.base.errors import UserError
from tune_ssl.data.loading import load_data
from tune_ssl.methods import method_names
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_galleries
from tune_ssl.runs.folder import reopen
from tune_ssl.runs.splits import check_data
from tune_ssl.training.evaluation import predict
from tune_ssl.training.loop import Trained
from tune_ssl.tuning.run import open_run, searching
from tune_ssl.tuning.stream import JobStream
from tune_ssl.tuning.test_data import keep
from tune_ssl.tuning.writer import Writer

CPU = torch.device("cpu")


def untrained(method: str = "supervised", **values) -> tuple[Trained, dict]:
    """A network with random weights as `train` would hand it over, and its spec as plain values."""
    spec = small_spec(method, **values)
    data = load_data(spec.data, spec.split_seed, CPU)
    torch.manual_seed(7)
    network = None
    for stage in spec.stages():
        network = stage.build(data.task, spec.model, network)
    return Trained(stage, network, data), spec.model_dump(mode="json")


def decoded(row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row.png))))


def noise(count, channels, side):
    shape = (count, channels, side, side)
    return np.random.default_rng(side).integers(0, 256, shape, dtype=np.uint8)


# ---- strips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strip_shows_each_pixel_enlarged_by_a_whole_number(channels):
    images = noise(3, channels, 8)
    png, width = thumbnails.strip(images)
    found = decoded(galleries.Row("", png, width))
    assert width == found.shape[1] == 3 * 50 and found.shape[0] == 50
    for i, image in enumerate(images):
        cell = found[1:49, 1 + 50 * i : 49 + 50 * i].reshape(48, 48, channels)
        assert (cell == np.kron(np.moveaxis(image, 0, -1), np.ones((6, 6, 1), np.uint8))).all()


@pytest.mark.parametrize(
    "side, shown", [(8, 48), (28, 56), (32, 64), (47, 94), (48, 48), (96, 96), (224, 160)]
)
def test_images_are_shown_from_48_to_160_pixels_large(side, shown):
    assert thumbnails.shown_side(side) == shown


def test_a_strip_stays_small_even_where_its_images_are_noise():
    png, width = thumbnails.strip(noise(8, 3, 224))
    assert len(png) <= 30_000 and width >= 8 * thumbnails.SMALLEST


# ---- the images that are chosen ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, count, expected",
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], 2, [0, 4]),  # evenly spaced classes
        ([1, 1, 0, 0], 2, [2, 0]),
        ([1, 1, 0], 3, [2, 0, 1]),  # each class once before any twice
        ([5, 5, 5], 2, [0, 1]),
        ([0, 1], 9, [0, 1]),
        ([], 4, []),
    ],
)
def test_queries_are_of_as_many_classes_as_possible(labels, count, expected):
    found = galleries.choose_queries(np.array(labels, np.int64), count)
    assert found.tolist() == expected


def test_neighbours_are_the_most_similar_validation_images_by_brute_force():
    trained, _ = untrained()
    found = galleries.find_neighbours(trained, queries=6, k=4)
    on = trained.data.sets.validation
    rows = predict(trained.stage, trained.network, trained.data, on).features_ND.numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for query, nearest in zip(found.queries_Q, found.nearest_Qk, strict=True):
        others = sorted(set(range(len(on))) - {query}, key=lambda i: -(rows[i] @ rows[query]))
        assert nearest.tolist() == others[:4]
    assert len(set(on.labels[found.queries_Q].tolist())) == 6
    shares = [
        (on.labels[near] == on.labels[q]).mean()
        for q, near in zip(found.queries_Q, found.nearest_Qk, strict=True)
    ]
    assert found.agreements() == pytest.approx(shares)
    everything = galleries.find_neighbours(trained, queries=len(on), k=4)
    assert found.agreement == pytest.approx(np.mean(everything.agreements()))


def test_the_gallery_of_neighbours_shows_validation_images_with_their_classes():
    trained, _ = untrained()
    gallery = galleries.neighbours(trained)
    found = galleries.find_neighbours(trained, 4, 5)
    assert gallery.values == {"class_agreement": found.agreement, "k": 5, "images": len(found.on)}
    assert len(gallery.rows) == 4
    for row, members in zip(gallery.rows, found.rows(), strict=True):
        assert row.captions == tuple(str(label) for label in found.on.labels[members])
        assert row.title == row.captions[0]
        first = found.on.images.gather(members[:1])[0, 0]
        assert (decoded(row)[1:49:6, 1:49:6] == first).all()


def test_pictures_are_eight_images_a_row_the_same_ones_each_time_and_leave_no_trace():
    trained, _ = untrained("fixmatch_cvae")
    trained.network.train()
    state = torch.get_rng_state()
    first, second = galleries.pictures(trained, 3), galleries.pictures(trained, 3)
    assert torch.equal(state, torch.get_rng_state()) and trained.network.training
    assert [row.title for row in first.rows] == ["weak", "strong", "sampled", "smoothed"]
    assert first == second != galleries.pictures(trained, 4)
    assert all(row.width == 8 * 50 for row in first.rows)
    assert galleries.pictures(untrained("supervised")[0], 0) is None


def test_what_is_shown_undoes_what_is_trained_on():
    data = untrained()[0].data
    images = torch.from_numpy(data.sets.validation.images.gather(np.arange(20)))
    assert torch.equal(data.denormalize(data.normalize(images)), images)
    outside = torch.tensor([1e9, -1e9, float("nan")]).view(1, 1, 1, 3)
    assert data.denormalize(outside).flatten().tolist()[:2] == [255, 0]


def test_a_gallery_that_cannot_be_made_says_why_and_the_others_are_made(monkeypatch):
    trained, _ = untrained("fixmatch_cvae")

    def broken(*_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(type(trained.stage), "pictures", broken)
    pictures, neighbours = galleries.make_galleries(trained, 0)
    assert (pictures.name, pictures.error, pictures.rows) == (
        "pictures",
        "RuntimeError: two lines",
        (),
    )
    assert neighbours.error is None and neighbours.rows
    with torch.no_grad():
        for parameter in trained.network.parameters():
            parameter.fill_(float("nan"))
    assert "not finite" in galleries.make_galleries(trained, 0)[1].error


# ---- the model on disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", method_names())
def test_a_saved_network_of_every_method_comes_back_and_predicts_the_same(name, tmp_path):
    trained, spec = untrained(name)
    save_model(tmp_path, trained, trial="t", condition="c", spec=spec)
    model = load_model(tmp_path)
    on = trained.data.sets.validation
    for ours, theirs in zip(
        predict(trained.stage, trained.network, trained.data, on),
        predict(model.stage, model.network, trained.data, on),
        strict=True,
    ):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert model.spec.model_dump(mode="json") == spec and model.stage.name == trained.stage.name
    card, store = model.card, trained.data.store
    assert (card.trial, card.condition, card.seed) == ("t", "c", 0)
    assert tuple(card.classes) == store.class_names and card.data == store.digest
    assert (card.mean, card.std) == (list(store.mean), list(store.std))
    assert not model.network.training


def test_a_damaged_model_is_one_clear_line(tmp_path):
    trained, spec = untrained()
    save_model(tmp_path, trained, trial="t", condition="c", spec=spec)
    weights, card = tmp_path / log.WEIGHTS, tmp_path / log.MODEL
    whole, told = weights.read_bytes(), card.read_text()

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            load_model(tmp_path)
        (problem,) = caught.value.problems
        weights.write_bytes(whole)
        card.write_text(told)
        assert "\n" not in str(problem)
        return str(problem)

    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors is torn or no safetensors file" in refused()
    weights.unlink()
    assert "model.safetensors cannot be read: " in refused()
    save_file(dict(list(trained.network.state_dict().items())[1:]), weights)
    assert "does not fit the network" in refused()
    card.write_text(told[:-40])
    assert "model.json is no description of a model: " in refused()
    for key, value, expected in (
        ("classes", 3, "model.json is no description of a model: 1 validation error"),
        ("schema_version", 99, "schema_version is 99, but this version"),
        ("spec", {**spec, "method": {"name": "nope"}}, "model.json: method.name is 'nope'"),
        ("classes", ["a", "b"], "does not fit the network"),
    ):
        card.write_text(json.dumps({**json.loads(told), key: value}))
        assert expected in refused()
    card.unlink()
    assert "model.json cannot be read: No such file" in refused()


# ---- the driver's side ------------------------------------------------------------------------------


@pytest.fixture
def confirming(tmp_path):
    """`confirming()` -> the stream of a run whose two conditions have one finished search trial each."""
    body = (
        "fixed: {model: {feature_dim: 16, hidden_dim: 16}, method: {name: supervised}}\n"
        "conditions: {data.num_labels: [20, 40]}\n"
        "search: {optim.lr: {log_uniform: [1e-3, 1e-2]}}\n"
        "study: {num_trials: 1, finalists: 1, seeds: [5, 6]}\n"
    )
    run = run_here(tmp_path, body, dry=True)
    _, study = reopen(run.parent, run.name)
    for i, condition in enumerate(study.conditions):
        own = {"phase": "search", "trial": f"c{i}-t0", "condition": condition.id, "time": 0}
        start = {"config": {"optim.lr": 0.01}, "seed": 1000, "digest": "d", "number": 0}
        log.append(run / log.TRIALS, {"event": log.STARTED, **own, **start})
        log.append(run / log.TRIALS, {"event": log.FINISHED, **own, "value": 0.5})

    def confirming() -> JobStream:
        context = open_run(run, study, check_data(study), Ledger.read(run), print)
        return JobStream(context, searching(context))

    return confirming


def checkpoint_of(stream, job, trained, session="session-001", number=3):
    """What a worker's last report carries, where Ray puts it before the driver sees the report."""
    folder = stream.context.run / "ray" / session / job.trial / f"checkpoint_{number:06d}"
    folder.mkdir(parents=True)
    kept = keep(job, trained, folder)
    return {"status": log.FINISHED, "result": {"val/accuracy": 0.5}, "split": job.split, **kept}


def test_the_first_seed_of_each_condition_leaves_galleries_and_a_model_before_its_ending(
    confirming, monkeypatch
):
    stream = confirming()
    trained, _ = untrained()
    run, jobs = stream.context.run, {(job := stream.next()).trial: job for _ in range(4)}
    assert {trial for trial, job in jobs.items() if job.keep} == {"c0-confirm-s5", "c1-confirm-s5"}
    job = jobs["c1-confirm-s5"]
    report = checkpoint_of(stream, job, trained)
    event = Writer.event

    def ending(self, line):
        assert (run / "models" / "1" / log.MODEL).exists()
        assert log.read(run / log.GALLERIES)
        event(self, line)

    monkeypatch.setattr(Writer, "event", ending)
    assert stream.report(job, report)
    assert stream.report(job, report)  # a report of what has ended already changes nothing
    folder = run / "models" / "1"
    assert sorted(path.name for path in folder.iterdir()) == [log.MODEL, log.WEIGHTS]
    assert load_model(folder).card.condition == "data.num_labels=40"
    (line,) = log.read(run / log.GALLERIES)
    assert (line["trial"], line["condition"], line["seed"], line["name"]) == (
        "c1-confirm-s5",
        "data.num_labels=40",
        5,
        "neighbours",
    )
    assert not (run / "models" / "0").exists()


def test_the_galleries_of_a_resumed_run_count_once_the_last_one(confirming):
    trained, _ = untrained()
    for session in ("session-001", "session-002"):  # the first driver dies before the ending
        stream = confirming()
        job = stream.next()
        report = checkpoint_of(stream, job, trained, session)
        report["galleries"][0]["title"] = session
        stream.of[job.condition].phase.finishing(job, report)
    run = stream.context.run
    lines = log.read(run / log.GALLERIES)
    assert [line["title"] for line in lines] == ["session-001", "session-002"]
    assert [g["title"] for g in latest_galleries(lines)] == ["session-002"]
    assert load_model(run / "models" / "0").card.trial == job.trial == "c0-confirm-s5"


def test_a_model_that_cannot_be_saved_costs_the_confirmation_nothing(confirming, monkeypatch):
    stream = confirming()
    trained, _ = untrained()
    job, other = stream.next(), stream.next()
    monkeypatch.setattr("tune_ssl.artifacts.model_files.safe.save_file", lambda *_: 1 / 0)
    report = checkpoint_of(stream, job, trained)
    with pytest.warns(UserWarning, match="c0-confirm-s5: its model was not saved: ZeroDivision"):
        assert stream.report(job, report)
    with pytest.warns(UserWarning, match="c1-confirm-s5: its model was not saved: no checkpoint"):
        stream.report(other, {"status": log.FINISHED, "result": {}})
    ended = Ledger.read(stream.context.run)
    assert {ended.status(trial) for trial in ("c0-confirm-s5", "c1-confirm-s5")} == {log.FINISHED}
    assert log.read(stream.context.run / log.GALLERIES)


def test_a_run_of_other_data_than_the_drivers_leaves_nothing(confirming):
    stream = confirming()
    job = stream.next()
    report = checkpoint_of(stream, job, untrained()[0]) | {"split": "another"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream.report(job, report)
    assert not (stream.context.run / log.GALLERIES).exists()
    assert not (stream.context.run / log.MODELS).exists()


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "L"), (3, "RGB"), (5, "RGB")])
def test_images_of_any_number_of_channels_are_shown(channels, mode):
    from tune_ssl.artifacts.thumbnails import sheet

    drawn = sheet([np.full((2, channels, 8, 8), 9, np.uint8)], 8)
    assert drawn.mode == mode and drawn.getpixel((4, 4)) == (9 if mode == "L" else (9, 9, 9))
