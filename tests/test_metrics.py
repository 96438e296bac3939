"""Metrics against scikit-learn's, also where a class or a cluster does not occur."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from tune_ssl import metrics
from tune_ssl.methods import find_method, method_names

CLASSES = 5


@st.composite
def predicted(draw, least=1):
    """Labels and predictions in [0, 5); most draws leave some class out."""
    size = draw(st.integers(least, 40))
    column = st.lists(st.integers(0, CLASSES - 1), min_size=size, max_size=size)
    return np.array(draw(column), np.int64), np.array(draw(column), np.int64)


@given(predicted())
def test_the_confusion_matrix_has_true_classes_in_rows(pair):
    labels, guesses = pair
    expected = reference.confusion_matrix(labels, guesses, labels=range(CLASSES))
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, guesses, CLASSES), expected)


@given(predicted())
def test_accuracy_is_scikit_learns(pair):
    counts = metrics.confusion_matrix(*pair, CLASSES)
    assert metrics.accuracy(counts) == pytest.approx(reference.accuracy_score(*pair))


@given(predicted())
def test_mean_class_accuracy_is_balanced_accuracy_over_the_classes_that_occur(pair):
    counts = metrics.confusion_matrix(*pair, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of predicted classes without images
        expected = reference.balanced_accuracy_score(*pair)
    assert metrics.mean_class_accuracy(counts) == pytest.approx(expected)


@given(predicted())
def test_normalized_mutual_information_is_scikit_learns(pair):
    labels, clusters = pair
    if len(set(labels.tolist())) == len(set(clusters.tolist())) == 1:
        return  # 0 / 0: scikit-learn says 1, we say 0 (see below)
    counts = metrics.confusion_matrix(labels, clusters, CLASSES)
    expected = reference.normalized_mutual_info_score(labels, clusters)
    assert metrics.normalized_mutual_information(counts) == pytest.approx(expected, abs=1e-9)


@given(predicted(), st.permutations(range(CLASSES)))
def test_cluster_measures_do_not_depend_on_the_numbers_of_the_clusters(pair, names):
    labels, clusters = pair
    counts = metrics.confusion_matrix(labels, clusters, CLASSES)
    renamed = metrics.confusion_matrix(labels, np.array(names)[clusters], CLASSES)
    for measure in (metrics.cluster_class_accuracy, metrics.normalized_mutual_information):
        assert measure(counts) == pytest.approx(measure(renamed))


@given(predicted())
def test_the_best_map_is_never_worse_than_the_given_one(pair):
    counts = metrics.confusion_matrix(*pair, CLASSES)
    assert metrics.accuracy(counts) <= metrics.cluster_class_accuracy(counts) <= 1


def test_one_cluster_for_all_tells_nothing():
    labels, clusters = np.array([0, 0, 1, 2]), np.zeros(4, np.int64)
    assert metrics.normalized_mutual_information(metrics.confusion_matrix(labels, clusters, 3)) == 0
    one_class = metrics.confusion_matrix(np.zeros(4, np.int64), clusters, 3)
    assert metrics.normalized_mutual_information(one_class) == 0


def test_without_images_an_accuracy_is_nan_and_never_zero():
    none = metrics.confusion_matrix(np.array([], np.int64), np.array([], np.int64), 3)
    assert none.shape == (3, 3)
    for measure in (
        metrics.accuracy,
        metrics.mean_class_accuracy,
        metrics.cluster_class_accuracy,
    ):
        assert math.isnan(measure(none))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises(ValueError, match=r"not \[0, 3\)"):
        metrics.confusion_matrix(np.array([0, label]), np.array([0, 0]), 3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_entropy_is_between_zero_and_the_logarithm_of_the_number(weights):
    total = sum(weights)
    if total > 0:
        entropy = metrics.entropy(np.array(weights) / total)
        assert -1e-9 <= entropy <= math.log(len(weights)) + 1e-9
    assert metrics.entropy(np.full(4, 0.25)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("method", method_names())
def test_every_evaluator_that_a_stage_names_declares_its_keys(method):
    for stage in find_method(method).stage_types:
        assert set(stage.evaluators) <= set(metrics.MEASURED)


def test_the_declared_keys_are_those_that_the_evaluators_return():
    import torch

    from tune_ssl.evaluation import EVALUATORS
    from tune_ssl.methods.base import Prediction

    logits = torch.eye(4)
    prediction, labels = Prediction(logits, logits, logits), torch.arange(4)
    for name, declared in metrics.MEASURED.items():
        assert list(EVALUATORS[name](prediction, labels, 4)) == list(declared)
