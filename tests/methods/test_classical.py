"""The classical methods are scikit-learn's own, on the same images: equal predictions, kept in a saved model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.semi_supervised import LabelSpreading

from tests.support.helpers import small_spec
from tune_ssl.artifacts.model_files import load_model, save_model
from tune_ssl.base.errors import UserError
from tune_ssl.data.loading import Data, load_data
from tune_ssl.data.sets import Images, LabeledSet
from tune_ssl.models.encoders import build_encoder
from tune_ssl.models.fitted import Neighbors, Scaling
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training import loop
from tune_ssl.training.evaluation import predict
from tune_ssl.training.loop import Report, train
from tune_ssl.tuning.test_data import measure_test

METHODS = ("logistic_regression", "nearest_neighbors", "label_spreading")
SCALERS = {"none": FunctionTransformer, "standard": StandardScaler, "unit": Normalizer}
CPU = torch.device("cpu")


def fitted(spec: TrialSpec) -> Report:
    (report,) = train(spec)
    assert report.last and report.step == 1
    return report


def pixels(data: Data, on: Images) -> np.ndarray:
    """(N, D): the images as the methods see them, normalised with the train part's mean and deviation."""
    images = torch.from_numpy(on.gather(np.arange(len(on))))
    return data.normalize(images).flatten(1).numpy()


@cache
def digits(labels: int, seed: int) -> tuple[Data, np.ndarray, np.ndarray, np.ndarray]:
    """The data of a trial, and pixels of its labeled, validation and unlabeled images; the last without the first."""
    data = load_data(small_spec("supervised", **{"data.num_labels": labels}).data, seed, CPU)
    sets, split = data.sets, data.split
    rest = ~np.isin(split.unlabeled, split.labeled)
    found = [pixels(data, images) for images in (sets.labeled.images, sets.validation.images)]
    return data, *found, pixels(data, sets.unlabeled.images)[rest]


def logits_of(report: Report, on: LabeledSet | None = None) -> np.ndarray:
    trained = report.trained
    prediction = predict(
        trained.stage, trained.network, trained.data, on or trained.data.sets.validation
    )
    assert prediction.logits_NK is not None
    return prediction.logits_NK.numpy()


# ---- against scikit-learn ------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_logistic_regression_gives_the_probabilities_of_scikit_learns_pipeline(scaling, penalty):
    own = {"method.scaling": scaling, "method.inverse_penalty": penalty}
    report = fitted(small_spec("logistic_regression", **own))
    data, labeled, validation, _ = digits(40, 0)
    model = make_pipeline(SCALERS[scaling](), LogisticRegression(C=penalty, max_iter=1000))
    model.fit(labeled.astype(np.float64), data.sets.labeled.labels)
    expected = model.predict_proba(validation)
    found = torch.from_numpy(logits_of(report)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def of_two_classes(data: Data) -> Data:
    """The same data where every digit is small (0 to 4) or large."""
    part = replace(data.store.train, labels=(data.store.train.labels > 4).astype(np.int64))
    other = replace(data.store, train=part, class_names=("small", "large"))
    return Data(other, data.split, data.device)


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_are_as_right_as_ten(method, monkeypatch):
    monkeypatch.setattr(loop, "load_data", lambda *given: of_two_classes(load_data(*given)))
    plain = {"method.class_mass": False} if method == "label_spreading" else {}
    report = fitted(small_spec(method, **plain))
    logits = logits_of(report)
    assert logits.shape == (288, 2)
    _, labeled, validation, unlabeled = digits(40, 0)
    labels = report.trained.data.sets.labeled.labels
    if method == "logistic_regression":
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(labeled.astype(np.float64), labels)
        found = torch.from_numpy(logits).softmax(dim=1).numpy()
        np.testing.assert_allclose(found, model.predict_proba(validation), atol=2e-3)
    elif method == "nearest_neighbors":
        model = KNeighborsClassifier(5, weights="distance").fit(labeled, labels)
        np.testing.assert_allclose(np.exp(logits), model.predict_proba(validation), atol=1e-5)
    else:
        expected = spread(labeled, labels, unlabeled, validation)
        reached = np.isfinite(expected).all(axis=1)
        assert reached.mean() > 0.9
        np.testing.assert_allclose(np.exp(logits[reached]), expected[reached], atol=1e-4)
        np.testing.assert_array_equal(logits[~reached], np.log(np.float32(1e-12)))  # no class more


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize(
    "k, weights", [(1, "uniform"), (5, "uniform"), (7, "distance"), (40, "distance")]
)
def test_nearest_neighbors_give_the_probabilities_of_scikit_learns(scaling, k, weights):
    own = {"method.scaling": scaling, "method.k": k, "method.weights": weights}
    report = fitted(small_spec("nearest_neighbors", **own))
    data, labeled, validation, _ = digits(40, 0)
    scaler = SCALERS[scaling]().fit(labeled)
    model = KNeighborsClassifier(k, weights=weights)
    model.fit(scaler.transform(labeled), data.sets.labeled.labels)
    expected = model.predict_proba(scaler.transform(validation))
    found = np.exp(logits_of(report))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    clear = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0] > 1e-3  # no tie
    np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_more_neighbours_than_labeled_images_are_all_of_them():
    found = logits_of(fitted(small_spec("nearest_neighbors", **{"method.k": 999})))
    all_of_them = logits_of(fitted(small_spec("nearest_neighbors", **{"method.k": 40})))
    np.testing.assert_array_equal(found, all_of_them)


def test_an_image_that_is_in_the_bank_votes_for_itself_alone_under_distance_weights():
    report = fitted(small_spec("nearest_neighbors", **{"method.weights": "distance"}))
    labeled = report.trained.data.sets.labeled
    shares = np.exp(logits_of(report, labeled))
    np.testing.assert_allclose(shares[np.arange(40), labeled.labels], 1)


def spread(
    labeled: np.ndarray,
    labels: np.ndarray,
    unlabeled: np.ndarray,
    images: np.ndarray,
    k: int = 7,
    alpha: float = 0.2,
) -> np.ndarray:
    """scikit-learn's LabelSpreading on all of them, and what it says of new images: (N, K)."""
    model = LabelSpreading(kernel="knn", n_neighbors=k, alpha=alpha, max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(np.concatenate([labeled, unlabeled]), [*labels, *[-1] * len(unlabeled)])
        return model.predict_proba(images)


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize("k, alpha", [(7, 0.2), (15, 0.8)])
def test_label_spreading_gives_the_probabilities_of_scikit_learns_for_new_images(scaling, k, alpha):
    own = {"method.scaling": scaling, "method.k": k, "method.alpha": alpha}
    report = fitted(small_spec("label_spreading", **own, **{"method.class_mass": False}))
    data, labeled, validation, unlabeled = digits(40, 0)
    scaler = SCALERS[scaling]().fit(np.concatenate([labeled, unlabeled]))
    parts = [scaler.transform(part) for part in (labeled, unlabeled, validation)]
    expected = spread(parts[0], data.sets.labeled.labels, parts[1], parts[2], k, alpha)
    found, reached = np.exp(logits_of(report)), np.isfinite(expected).all(axis=1)
    assert reached.mean() > 0.9
    np.testing.assert_allclose(found[reached], expected[reached], atol=1e-3)
    clear = reached & (np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0] > 1e-3)
    np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_under_class_mass_each_class_has_as_much_of_all_images_as_of_the_labels():
    """Slowly, row by row, from scikit-learn's own distributions."""
    data, labeled, validation, unlabeled = digits(40, 0)
    labels, every = data.sets.labeled.labels, np.concatenate([labeled, unlabeled])
    model = LabelSpreading(kernel="knn", n_neighbors=7, alpha=0.2, max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(every, [*labels, *[-1] * len(unlabeled)])
    rows = np.nan_to_num(model.label_distributions_)
    share, mass = np.bincount(labels) / len(labels), rows.sum(axis=0)
    weighed = [row * share / mass for row in rows]
    weighed = [row / row.sum() if row.sum() > 0 else row for row in weighed]
    near = np.argsort(((validation[:, None] - every[None]) ** 2).sum(axis=2), axis=1)[:, :7]
    sums = np.array([np.sum([weighed[i] for i in ids], axis=0) for ids in near])
    reached = sums.sum(axis=1) > 0
    expected = sums[reached] / sums[reached].sum(axis=1, keepdims=True)
    found = np.exp(logits_of(fitted(small_spec("label_spreading", **{"method.class_mass": True}))))
    np.testing.assert_allclose(found[reached], expected, atol=1e-3)
    assert reached.mean() > 0.9


@pytest.mark.parametrize("labels, least", [(20, 0.85), (50, 0.92)])
def test_label_spreading_on_raw_pixels_reaches_what_is_expected_of_it_untuned(labels, least):
    values = [
        fitted(small_spec("label_spreading", seed=seed, **{"data.num_labels": labels})).result
        for seed in (0, 1, 2)
    ]
    assert np.mean([found["val/mean_class_accuracy"] for found in values]) >= least


@pytest.mark.parametrize("most", [1, 100])
def test_of_more_unlabeled_images_than_wanted_the_same_ones_are_taken(most):
    spec = small_spec("label_spreading", **{"method.most_unlabeled": most})
    first, second = fitted(spec), fitted(spec)
    bank = first.trained.network.head.bank_BD
    assert bank.shape == (40 + most, 64) and first.images_seen == 40 + 1110
    assert torch.equal(bank, second.trained.network.head.bank_BD)
    _, labeled, _, unlabeled = digits(40, 0)
    np.testing.assert_array_equal(bank[:40].numpy(), labeled)
    assert {row.tobytes() for row in bank[40:].numpy()} <= {row.tobytes() for row in unlabeled}


# ---- what they see -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_labels_beyond_the_budget_change_nothing(method, monkeypatch):
    def scrambled(*arguments: Any) -> Data:
        data = load_data(*arguments)
        labels, split = data.store.train.labels.copy(), data.split
        hidden = np.setdiff1d(np.arange(len(labels)), split.labeled)
        labels[hidden] = (labels[hidden] + 3) % 10
        part = replace(data.store.train, labels=labels)
        return Data(replace(data.store, train=part), split, data.device)

    expected = fitted(small_spec(method))
    monkeypatch.setattr(loop, "load_data", scrambled)
    found = fitted(small_spec(method))
    np.testing.assert_array_equal(logits_of(found), logits_of(expected))
    assert found.result["val/accuracy"] != expected.result["val/accuracy"]


@pytest.mark.parametrize("method, images", [(METHODS[0], 40), (METHODS[1], 40), (METHODS[2], 1150)])
def test_a_fit_is_one_step_and_counts_the_images_it_saw(method, images):
    report = fitted(small_spec(method))
    assert report.images_seen == images and report.evaluation == 1
    assert report.metrics["val/images"] == 288
    assert report.result["val/mean_class_accuracy"] > 0.5
    assert small_spec(method).stage_steps() == {"fit": 1}


@pytest.mark.parametrize("method", METHODS)
def test_features_of_a_pretrained_encoder_may_stand_in_the_pixels_place(method, tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("small_cnn", 1, "small", (8, 8)).eval()
    torch.save(encoder.state_dict(), tmp_path / "w.pt")
    own = {"model.encoder": "small_cnn", "model.weights": str(tmp_path / "w.pt")}
    report = fitted(small_spec(method, **own))
    assert not any(p.requires_grad for p in report.trained.network.encoder.parameters())
    data = report.trained.data
    images = torch.from_numpy(data.sets.labeled.images.gather(np.arange(40)))
    with torch.no_grad():
        rows = encoder(data.normalize(images))
    if method == "logistic_regression":
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(rows.double().numpy(), data.sets.labeled.labels)
        found = logits_of(report, data.sets.labeled).argmax(1)
        np.testing.assert_array_equal(found, model.predict(rows.double().numpy()))
    else:
        torch.testing.assert_close(report.trained.network.head.bank_BD[:40], rows)


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_with_random_weights_is_refused(method):
    with pytest.raises(UserError) as caught:
        small_spec(method, **{"model.encoder": "resnet18"})
    assert str(caught.value) == (
        f"model.encoder is resnet18 with random weights, which {method} does not train: give model.weights, "
        "or model.encoder: pixels"
    )


def test_pixels_have_no_weights_to_begin_with(tmp_path):
    with pytest.raises(UserError) as caught:
        small_spec("nearest_neighbors", **{"model.weights": "pretrained"})
    assert (
        str(caught.value)
        == "model.weights is 'pretrained', but must be none: pixels have no weights"
    )


# ---- saved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scaling", SCALERS)
def test_a_saved_model_needs_nothing_but_its_files_and_says_the_same(method, scaling, tmp_path):
    spec = small_spec(method, **{"method.scaling": scaling})
    trained = fitted(spec).trained
    save_model(tmp_path, trained, trial="t", condition="c", spec=spec.model_dump(mode="json"))
    model = load_model(tmp_path)
    on = trained.data.sets.validation
    ours = predict(trained.stage, trained.network, trained.data, on)
    theirs = predict(model.stage, model.network, load_data(spec.data, 0, CPU), on)
    assert torch.equal(ours.logits_NK, theirs.logits_NK)
    assert torch.equal(ours.features_ND, theirs.features_ND)


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_on_a_pretrained_encoder_needs_nothing_but_its_files(method, tmp_path):
    torch.manual_seed(0)
    torch.save(build_encoder("small_cnn", 1, "small", (8, 8)).state_dict(), tmp_path / "w.pt")
    own = {"model.encoder": "small_cnn", "model.weights": str(tmp_path / "w.pt")}
    spec = small_spec(method, **own)
    trained = fitted(spec).trained
    save_model(tmp_path, trained, trial="t", condition="c", spec=spec.model_dump(mode="json"))
    (tmp_path / "w.pt").unlink()
    model, on = load_model(tmp_path), trained.data.sets.validation
    ours = predict(trained.stage, trained.network, trained.data, on)
    theirs = predict(model.stage, model.network, trained.data, on)
    assert torch.equal(ours.logits_NK, theirs.logits_NK)


def test_a_bank_of_another_size_is_loaded_whole():
    torch.manual_seed(0)
    filled, empty = Neighbors(4, 3, 5), Neighbors(4, 3, 5)
    filled.fill(torch.randn(50, 4), torch.rand(50, 3))
    assert empty.bank_BD.shape == (1, 4)
    empty.load_state_dict(filled.state_dict())
    images = torch.randn(9, 4)
    assert torch.equal(empty(images), filled(images)) and empty.bank_BD.shape == (50, 4)


@pytest.mark.parametrize("method", METHODS)
def test_a_confirmation_measures_the_test_part_as_for_any_method(method):
    values = measure_test(fitted(small_spec(method)).trained)["result"]
    assert values["test/count"] == 359 and np.sum(values["test/confusion"]) == 359
    assert values["test/mean_class_accuracy"] > 0.5


# ---- their parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", SCALERS)
def test_a_scale_is_that_of_scikit_learn_and_a_feature_that_never_changes_stays_finite(how):
    torch.manual_seed(0)
    rows = torch.randn(30, 5) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]) + 2
    rows[:, 4] = 7.0
    scaling = Scaling(5, how)
    found = scaling.fit(rows)
    expected = SCALERS[how]().fit_transform(rows.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert torch.equal(scaling(rows), found)


def test_many_images_are_looked_up_in_parts_with_the_same_result(monkeypatch):
    torch.manual_seed(0)
    head = Neighbors(4, 3, 5, "distance")
    head.fill(torch.randn(50, 4), torch.nn.functional.one_hot(torch.arange(50) % 3))
    images = torch.randn(33, 4)
    whole = head(images)
    monkeypatch.setattr("tune_ssl.models.fitted.CHUNK", 100)  # two images at a time
    torch.testing.assert_close(head(images), whole)
