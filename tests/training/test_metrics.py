"""Metrics against slow loops, also where a class or a cluster does not occur."""

import math
import tracemalloc
import warnings
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tune_ssl.methods import find_method, measures, method_names
from tune_ssl.training import metrics

CLASSES = 5


@st.composite
def predicted(draw, least=1):
    """Labels and predictions in [0, 5); most draws leave some class out."""
    size = draw(st.integers(least, 40))
    column = st.lists(st.integers(0, CLASSES - 1), min_size=size, max_size=size)
    return np.array(draw(column), np.int64), np.array(draw(column), np.int64)


@given(predicted(), st.permutations(range(CLASSES)))
def test_the_best_map_is_the_same_whatever_the_numbers_of_the_clusters(pair, names):
    labels, clusters = pair
    renamed = np.array(names)[clusters]
    counts = metrics.confusion_matrix(labels, clusters, CLASSES)
    best = metrics.cluster_class_accuracy(counts)
    other = metrics.confusion_matrix(labels, renamed, CLASSES)
    assert metrics.cluster_class_accuracy(other) == pytest.approx(best)
    assert metrics.accuracy(labels, renamed) <= best <= 1


def test_one_cluster_for_all_tells_nothing_and_one_for_each_class_everything():
    labels, one = np.array([0, 0, 1, 2]), np.zeros(4, np.int64)
    assert metrics.normalized_mutual_information(labels, 3 - labels) == pytest.approx(1)
    assert metrics.normalized_mutual_information(labels, one) == 0
    assert metrics.normalized_mutual_information(one, one) == 0


def test_without_images_an_accuracy_is_nan_and_never_zero():
    nobody = np.array([], np.int64)
    counts = metrics.confusion_matrix(nobody, nobody, 3)
    assert counts.tolist() == [[0] * 3] * 3
    values = [metrics.accuracy(nobody, nobody), metrics.cluster_class_accuracy(counts)]
    assert np.isnan([*values, *metrics.macro_scores(nobody, nobody)]).all()


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


# Predictions: top-k, per class, calibration


@given(predicted(), st.integers(1, CLASSES + 2), st.booleans())
def test_top_k_counts_the_classes_that_a_stable_sort_puts_first(pair, k, rounded):
    labels, seeds = pair
    logits = np.random.default_rng(seeds.tolist()).normal(size=(len(labels), CLASSES))
    logits = logits.round() if rounded else logits  # rounded: many ties
    hits = [
        label in sorted(range(CLASSES), key=lambda c: (-row[c], c))[:k]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert metrics.top_k_accuracy(logits, labels, k) == pytest.approx(np.mean(hits))


def test_of_equal_logits_the_lower_class_is_among_the_k_largest():
    same, every = np.zeros((4, 4)), np.arange(4)
    assert [metrics.top_k_accuracy(same, every, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    assert metrics.top_k_accuracy(np.zeros((1, 1)), np.array([0]), 5) == 1


def test_logits_that_are_nan_are_never_a_hit():
    logits = np.array([[np.nan, 1.0], [np.nan, 1.0]])
    assert metrics.top_k_accuracy(logits, np.array([0, 1]), 1) == 0.5
    assert metrics.top_k_accuracy(logits * np.nan, np.array([0, 1]), 2) == 0


def test_a_class_never_predicted_has_precision_zero_and_one_without_images_counts_nowhere():
    labels, guesses = np.array([0, 0, 0, 1]), np.array([0, 0, 2, 0])  # of 1 none is found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.macro_scores(labels, guesses) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
        assert metrics.macro_scores(labels[:3], guesses[:3]) == pytest.approx((1, 2 / 3, 0.8))


def slow_calibration_error(probabilities, labels, bins):
    edges, error = np.linspace(0, 1, bins + 1), 0.0
    for left, right in pairwise(edges):
        inside = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if left < max(row) <= right
        ]
        if inside:
            confidence, right_share = np.mean(inside, axis=0)
            error += len(inside) / len(labels) * abs(right_share - confidence)
    return error


@given(predicted(), st.integers(1, 20), st.floats(0.1, 10), st.sampled_from(["f4", "f8"]))
def test_the_calibration_error_is_the_weighted_gap_over_the_bins(pair, bins, sharpness, dtype):
    labels, seeds = pair
    logits = np.random.default_rng(seeds.tolist()).normal(size=(len(labels), CLASSES)) * sharpness
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(dtype)
    error = metrics.expected_calibration_error(probabilities, labels, bins)
    assert error == pytest.approx(slow_calibration_error(probabilities, labels, bins), abs=1e-9)
    assert 0 <= error <= 1


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4]])  # right, right, wrong
    error = metrics.expected_calibration_error(probabilities, np.array([0, 0, 1]), 4)
    assert error == pytest.approx((2 * 0.5 + 0.6) / 3)  # all in one bin: (2 - 1.6) / 3


def test_calibration_of_sure_predictions_is_their_error_rate():
    sure = np.eye(2)[[0, 0, 1, 1]]
    assert metrics.expected_calibration_error(sure, np.array([0, 0, 1, 1])) == 0
    assert metrics.expected_calibration_error(sure, np.array([0, 0, 0, 0])) == 0.5
    assert metrics.expected_calibration_error(sure, np.array([1, 1, 0, 0])) == 1
    assert metrics.expected_calibration_error(np.ones((1, 1)), np.array([0])) == 0
    above = np.ones((1, 1), np.float32) + np.float32(1e-6)  # a softmax may round above 1
    assert metrics.expected_calibration_error(above, np.array([0])) == 0


def test_calibration_of_logits_is_refused():
    for logits in (np.array([[3.0, 0.5]]), np.array([[0.5, -0.5]])):
        with pytest.raises(ValueError, match=r"probabilities span \[.*\], not \[0, 1\]"):
            metrics.expected_calibration_error(logits, np.array([0]))


@given(predicted(), st.integers(1, 20))
def test_the_bins_of_reliability_count_every_image_once(pair, bins):
    labels, seeds = pair
    logits = np.random.default_rng(seeds.tolist()).normal(size=(len(labels), CLASSES))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros((bins, 3))
    for row, label in zip(probabilities, labels, strict=True):
        bin_ = next(b for b in range(bins) if row.max() <= (b + 1) / bins or b == bins - 1)
        expected[bin_] += (1, row.max(), row.argmax() == label)
    np.testing.assert_allclose(metrics.reliability(probabilities, labels, bins), expected)


def test_without_images_or_with_nan_top_k_and_calibration_are_nan():
    none, no_labels = np.zeros((0, 3)), np.array([], np.int64)
    assert math.isnan(metrics.top_k_accuracy(none, no_labels, 1))
    assert math.isnan(metrics.expected_calibration_error(none, no_labels))
    assert math.isnan(metrics.expected_calibration_error(np.full((2, 2), np.nan), np.array([0, 1])))


# Features: clusters


@st.composite
def clustered(draw):
    """Features (N, 3) on a coarse grid (many equal rows) or not, and clusters in [-1, 3)."""
    size = draw(st.integers(1, 20))
    features = np.random.default_rng(draw(st.integers(0, 10**6))).normal(size=(size, 3))
    clusters = draw(st.lists(st.integers(-1, 2), min_size=size, max_size=size))
    return features.round() if draw(st.booleans()) else features, np.array(clusters)


def slow_dunn_index(features, clusters):
    within, between = [0.0], []
    for i, j in combinations(range(len(features)), 2):
        distance = math.dist(features[i], features[j])
        (within if clusters[i] == clusters[j] else between).append(distance)
    return min(between) / max(within) if between and max(within) else math.nan


@given(clustered())
def test_the_dunn_index_is_the_least_gap_over_the_largest_diameter(drawn):
    features, clusters = drawn
    found = metrics.dunn_index(metrics.distances_between(features), clusters)
    assert found == pytest.approx(slow_dunn_index(features, clusters), nan_ok=True)


def test_equal_features_have_silhouette_zero_and_no_dunn_index():
    clusters = np.array([0, 0, 1, 1, 2, 2])
    distances = metrics.distances_between(np.full((6, 3), 0.1, np.float32))
    assert metrics.silhouette(distances, clusters) == 0  # and no rounding noise
    assert math.isnan(metrics.dunn_index(distances, clusters))


@pytest.mark.parametrize("measure", [metrics.silhouette, metrics.dunn_index])
def test_clusters_have_no_spread_with_one_cluster_or_rows_that_are_not_finite(measure):
    features = np.arange(8.0).reshape(4, 2)

    def of(clusters):
        return measure(metrics.distances_between(features[: len(clusters)]), np.array(clusters))

    assert of([0, 0, 7, 7]) > 0
    for clusters in ([0, 0, 0, 0], [0, 1, 2, 3], [0]):  # one, as many as rows, one row
        assert math.isnan(of(clusters))
    for bad in (np.nan, np.inf):
        features[1, 1] = bad
        assert math.isnan(of([0, 0, 1, 1]))


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_choice_of_rows_has_no_row_twice_and_even_gaps(number, most):
    rows = metrics.some_rows(number, most)
    assert len(rows) == min(number, most)
    assert set(rows.tolist()) <= set(range(number))
    gaps = np.diff(rows)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


# Features: neighbours


def slow_cosine(one, other):
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def slow_nearest(features, query, rows, k):
    """By similarity, then by row; and the similarities."""
    similar = {row: slow_cosine(features[row].tolist(), query.tolist()) for row in rows}
    return sorted(rows, key=lambda row: (-similar[row], row))[:k], similar


def slow_knn_scores(bank, labels, queries, num_classes, k, temperature):
    scores = np.zeros((len(queries), num_classes))
    for row, query in zip(scores, queries, strict=True):
        nearest, similar = slow_nearest(bank, query, range(len(bank)), k)
        for near in nearest:
            row[labels[near]] += math.exp(similar[near] / temperature)
    return scores / scores.sum(axis=1, keepdims=True)


@st.composite
def banked(draw):
    """A bank (M, 4) with labels in [0, 5), queries (N, 4), one row of zeros, at many scales."""
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    bank, queries = (generator.normal(size=(draw(st.integers(1, 20)), 4)) for _ in range(2))
    bank[draw(st.integers(0, len(bank) - 1))] *= draw(st.sampled_from([0, 1e-30, 1, 1e30]))
    queries[0] *= draw(st.sampled_from([0, 1e-30, 1, 1e30]))
    for rows in (bank, queries):  # what float32 cannot tell apart has no order to promise
        lengths = np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(bank, axis=1))
        gaps = np.diff(np.sort(rows @ bank.T / np.where(lengths, lengths, 1), axis=1), axis=1)
        assume(((gaps == 0) | (gaps > 1e-5)).all())
    return bank, generator.integers(0, CLASSES, len(bank)), queries


@pytest.fixture(params=[10, metrics.CHUNK], scope="module")
def chunk(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", request.param)
        yield


@given(drawn=banked(), k=st.integers(1, 25), temperature=st.floats(0.05, 5))
def test_knn_votes_are_those_of_the_slow_loop_whatever_the_chunks(chunk, drawn, k, temperature):
    bank, labels, queries = drawn
    scores = metrics.knn_scores(bank, labels, queries, CLASSES, k, temperature)
    expected = slow_knn_scores(bank, labels, queries, CLASSES, k, temperature)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    np.testing.assert_allclose(scores.sum(axis=1), 1)


@given(drawn=banked(), k=st.integers(1, 25))
def test_nearest_neighbours_are_those_of_the_slow_loop_without_oneself(chunk, drawn, k):
    features, _, _ = drawn
    queries = np.arange(len(features))[::-2]
    nearest = metrics.nearest_neighbours(features, queries, k)
    assert nearest.shape == (len(queries), min(k, len(features) - 1))
    for query, row in zip(queries.tolist(), nearest.tolist(), strict=True):
        others = [i for i in range(len(features)) if i != query]
        assert row == slow_nearest(features, features[query], others, k)[0]


@given(drawn=banked(), k=st.integers(1, 25))
def test_class_agreement_is_the_mean_share_of_neighbours_of_ones_class(chunk, drawn, k):
    features, labels, _ = drawn
    shares = []
    for i in range(len(features)):
        others = [j for j in range(len(features)) if j != i]
        nearest, _ = slow_nearest(features, features[i], others, k)
        shares += [np.mean([labels[j] == labels[i] for j in nearest])] if nearest else []
    expected = np.mean(shares) if shares else math.nan
    assert metrics.class_agreement(features, labels, k) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1), st.integers(1, 6))
def test_of_equal_values_the_earlier_is_the_larger(rows, k):
    expected = [sorted(range(6), key=lambda i, row=row: (-row[i], i))[:k] for row in rows]
    assert metrics.largest(np.array(rows, np.float32), k).tolist() == expected


def test_the_name_of_the_knn_protocol_states_its_defaults():
    k, temperature = metrics.knn_scores.__defaults__
    assert f"knn@k{k},t{temperature}" == measures.KNN


def test_knn_with_one_row_in_the_bank_gives_its_class_to_all():
    queries = np.array([[1.0, 0], [-1, 0], [0, 0]])
    scores = metrics.knn_scores(np.array([[2.0, 0]]), np.array([1]), queries, 2)
    assert scores.tolist() == [[0, 1]] * 3


def test_knn_does_not_overflow_at_a_small_temperature():
    bank, labels = np.array([[1.0, 0], [0, 1], [-1, 0]]), np.array([0, 1, 1])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        scores = metrics.knn_scores(bank, labels, bank, 2, temperature=1e-4)
        huge = metrics.knn_scores(np.float32(3e38) * bank, labels, bank * 1e-40, 2, k=1)
    assert scores.tolist() == huge.tolist() == [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_features_give_the_shares_of_the_classes(value):
    features, labels = np.full((7, 3), value), np.array([0, 0, 0, 0, 1, 1, 1])
    scores = metrics.knn_scores(features, labels, features[:2], 3)
    np.testing.assert_allclose(scores, [[4 / 7, 3 / 7, 0]] * 2, rtol=1e-5)
    assert metrics.class_agreement(features, labels, 99) == pytest.approx((4 * 3 + 3 * 2) / 7 / 6)
    for row, nearest in enumerate(metrics.nearest_neighbours(features, np.arange(7), 99)):
        assert sorted(nearest.tolist()) == [i for i in range(7) if i != row]


def test_an_equal_row_is_a_neighbour_but_never_oneself():
    features = np.array([[1.0, 0], [0, 1], [1, 0]])
    assert metrics.nearest_neighbours(features, np.array([0, 2, 2]), 1).tolist() == [[2], [0], [0]]


def test_with_one_class_all_neighbours_agree_and_one_row_has_none():
    features = np.random.default_rng(0).normal(size=(5, 3))
    assert metrics.class_agreement(features, np.zeros(5, np.int64), 2) == 1
    assert math.isnan(metrics.class_agreement(features[:1], np.array([0]), 2))
    assert math.isnan(metrics.class_agreement(features[:0], np.array([], np.int64), 2))
    assert metrics.nearest_neighbours(features[:1], np.array([0]), 3).shape == (1, 0)
    assert metrics.nearest_neighbours(features, np.array([], np.int64), 3).shape == (0, 3)
    no_queries = metrics.knn_scores(features, np.zeros(5, np.int64), features[:0], 2)
    assert no_queries.shape == (0, 2)


def test_features_that_are_not_finite_give_nan_and_no_neighbours():
    good, labels = np.ones((3, 2)), np.array([0, 1, 1])
    for value in (np.nan, np.inf):
        bad = np.array([[1.0, 0], [value, 1], [0, 1]])
        assert np.isnan(metrics.knn_scores(bad, labels, good, 2)).all()
        assert np.isnan(metrics.knn_scores(good, labels, bad, 2)).all()
        assert math.isnan(metrics.class_agreement(bad, labels, 1))
        with pytest.raises(ValueError, match="features are not finite"):
            metrics.nearest_neighbours(bad, np.array([0]), 1)


def test_neighbours_never_need_a_matrix_of_all_rows_against_all():
    features = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    tracemalloc.start()
    metrics.nearest_neighbours(features, np.arange(5000), 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64e6 < 5000 * 5000 * 4


PAIR = np.eye(2)
REFUSED = {
    "labels span [-1, 0], not [0, 2)": [
        lambda: metrics.top_k_accuracy(PAIR, np.array([0, -1]), 1),
        lambda: metrics.expected_calibration_error(PAIR, np.array([0, -1])),
        lambda: metrics.knn_scores(PAIR, np.array([0, -1]), PAIR, 2),
    ],
    "labels span [-1, 0], not [0, 1)": [
        lambda: metrics.class_agreement(PAIR, np.array([0, -1]), 1)
    ],
    "labels span [0, 2], not [0, 2)": [
        lambda: metrics.top_k_accuracy(PAIR, np.array([0, 2]), 1),
        lambda: metrics.expected_calibration_error(PAIR, np.array([0, 2])),
        lambda: metrics.knn_scores(PAIR, np.array([0, 2]), PAIR, 2),
    ],
    "queries span [-1, -1], not [0, 2)": [
        lambda: metrics.nearest_neighbours(PAIR, np.array([-1]), 1)
    ],
    "queries span [0, 2], not [0, 2)": [
        lambda: metrics.nearest_neighbours(PAIR, np.array([0, 2]), 1)
    ],
    "k is 0, not at least 1": [
        lambda: metrics.top_k_accuracy(PAIR, np.array([0, 1]), 0),
        lambda: metrics.knn_scores(PAIR, np.array([0, 1]), PAIR, 2, k=0),
        lambda: metrics.nearest_neighbours(PAIR, np.array([0]), 0),
        lambda: metrics.class_agreement(PAIR, np.array([0, 1]), 0),
    ],
    "bins is 0, not at least 1": [
        lambda: metrics.expected_calibration_error(PAIR, np.array([0, 1]), 0)
    ],
    "most is 0, not at least 1": [lambda: metrics.some_rows(2, 0)],
    "bank rows is 0, not at least 1": [
        lambda: metrics.knn_scores(PAIR[:0], np.array([], np.int64), PAIR, 2)
    ],
    "temperature is 0, not above 0": [
        lambda: metrics.knn_scores(PAIR, np.array([0, 1]), PAIR, 2, temperature=0)
    ],
}


@pytest.mark.parametrize("message, calls", REFUSED.items())
def test_arguments_without_a_meaning_are_refused(message, calls):
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == message


@pytest.mark.parametrize("method", method_names())
def test_every_evaluator_that_a_stage_names_declares_its_keys(method):
    for stage in find_method(method).stage_types:
        assert set(stage.evaluators) <= set(measures.MEASURED)


def test_the_declared_keys_are_those_that_the_evaluators_return():
    import torch

    from tests.support.helpers import small_spec
    from tune_ssl.data.loading import load_data
    from tune_ssl.training.evaluation import EVALUATORS, Subject

    spec = small_spec("soft_kmeans")  # has features, logits and clusters
    data = load_data(spec.data, 0, torch.device("cpu"))
    (stage,) = spec.stages()
    subject = Subject(stage, stage.build(data.task, spec.model, None), data, data.sets.validation)
    assert set(EVALUATORS) == set(measures.MEASURED)
    for name, declared in measures.MEASURED.items():
        assert list(EVALUATORS[name](subject)) == list(declared)
