import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis.numbers import stats


def by_seed(values):
    return dict(enumerate(values))


def zeros(values):
    return by_seed([0.0] * len(values))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 40])
def test_the_interval_of_a_mean_is_students(n, level):
    values = np.random.default_rng(n).beta(27, 3, size=n)
    found = stats.mean_interval(values, level)
    expected = scipy_stats.t.interval(level, n - 1, values.mean(), scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert (found.mean, found.n) == (pytest.approx(values.mean()), n)
    assert found.std == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_covers_as_often_as_it_says(n):
    rows = np.random.default_rng(7).normal(size=(2000, n))
    held = np.mean([stats.mean_interval(row).holds(0) for row in rows])
    assert 0.93 <= held <= 0.97


def test_few_or_missing_values():
    one = stats.mean_interval([0.5, float("nan")])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low) and math.isnan(one.high) and math.isnan(one.std)
    assert stats.mean_interval([]).n == 0 and math.isnan(stats.mean_interval([]).mean)
    same = stats.mean_interval([0.7, 0.7, 0.7])
    assert (same.low, same.high, same.std) == (0.7, 0.7, 0.0)
    assert not one.holds(0.5)


def test_pairs_by_seed():
    a, b = {1: 0.9, 2: 0.8, 3: 0.7, 9: 0.0}, {3: 0.6, 2: 0.6, 1: 0.8}
    found = stats.paired_difference(a, b)
    assert found.n == 3
    assert found.mean == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    expected = stats.mean_interval([0.1, 0.2, 0.1])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_values_that_differ_by_rounding_alone_are_equal():
    a, b = by_seed([0.1 + 0.2] * 5), by_seed([0.3] * 5)
    assert a[0] != b[0]
    assert stats.paired(a, b).tolist() == [0] * 5
    assert stats.paired_t_p_value(a, b) == 1
    assert stats.probability_of_improvement(a, b).mean == 0.5


@pytest.mark.parametrize("n", [4, 6, 20])
def test_the_t_test_agrees_with_scipy(n):
    a, b = np.random.default_rng(n).normal([[0.3], [0.0]], 1, size=(2, n))
    p = stats.paired_t_p_value(by_seed(a), by_seed(b))
    assert p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)
    assert p == pytest.approx(stats.paired_t_p_value(by_seed(b), by_seed(a)))
    # The interval leaves out 0 exactly where p is below 0.05.
    assert stats.mean_interval(a - b, level=1 - p * 0.999).holds(0)
    assert not stats.mean_interval(a - b, level=1 - p * 1.001).holds(0)


def test_many_t_tests_at_once_are_each_their_own():
    rows = np.random.default_rng(3).normal(0.5, 1, size=(4, 6))
    rows[1], rows[2] = 0.0, 0.25
    expected = [stats.t_p_value(row) for row in rows]
    assert stats.t_p_values(rows).tolist() == pytest.approx(expected)


def test_a_test_takes_four_pairs_and_may_have_no_spread():
    for n, p in ((2, math.nan), (3, math.nan), (4, 0.0), (9, 0.0)):
        for values in ([0.1] * n, [0.8 + 0.1 - 0.8, *[0.1] * (n - 1)]):  # equal but for rounding
            found = stats.paired_t_p_value(by_seed(values), zeros(values))
            assert found == pytest.approx(p, abs=0, nan_ok=True)
        same = stats.paired_t_p_value(zeros(values), zeros(values))
        assert same == 1 if n >= 4 else math.isnan(same)
    assert math.isnan(stats.paired_t_p_value(by_seed([0.5, 0.51, 0.52]), zeros(range(3))))
    assert math.isnan(stats.paired_t_p_value({1: 0.5}, {1: 0.4}))


def test_welch_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for sizes in ((4, 4), (4, 7), (10, 10)):
        a, b = rng.normal(0, 1, sizes[0]), rng.normal(1, 3, sizes[1])
        expected = scipy_stats.ttest_ind(a, b, equal_var=False).pvalue
        assert stats.welch_p_value(a, b) == pytest.approx(expected)
    assert math.isnan(stats.welch_p_value([0.1], [0.2, 0.3]))
    assert stats.welch_p_value([0.1] * 4, [0.2] * 5) == 0
    assert math.isnan(stats.welch_p_value([0.1] * 3, [0.2] * 5))
    assert stats.welch_p_value([0.1] * 4, [0.1] * 5) == 1


def test_the_paired_t_test_errs_as_often_as_it_says():
    p = stats.t_p_values(np.random.default_rng(4).normal(size=(4000, 5)))
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 4000))


def test_a_loss_of_fifty_points_in_every_seed_passes_a_family_of_ten():
    lost = by_seed([-0.50, -0.47, -0.55, -0.52, -0.46])
    p_values = [stats.paired_t_p_value(lost, zeros(lost)), *[0.3] * 9]
    assert stats.holm(p_values)[0] < 0.001
    # What no sign-flip test of five pairs can.
    assert stats.sign_flip_p_value(lost, zeros(lost)) == 2**-4


differences = st.lists(st.integers(-20, 20).map(lambda k: k / 100), min_size=2, max_size=9)


@settings(deadline=None, max_examples=40)
@given(differences)
def test_sign_flips_agree_with_scipy(values):
    sample = (np.round(100 * np.array(values)),)  # whole numbers: no rounding decides a tie
    expected = scipy_stats.permutation_test(
        sample, np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert stats.sign_flip_p_value(by_seed(values), zeros(values)) == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(differences)
def test_sign_flips_know_no_side(values):
    a, b = by_seed(values), zeros(values)
    p = stats.sign_flip_p_value(a, b)
    assert p == stats.sign_flip_p_value(b, a) >= 2 ** (1 - len(a))


def test_sign_flips_of_many_pairs_are_drawn_and_never_zero(monkeypatch):
    values = np.random.default_rng(0).normal(0.4, 1, size=15)
    exact = stats.sign_flip_p_value(by_seed(values), zeros(values))
    monkeypatch.setattr(stats, "ALL_SIGNS", 3)
    assert stats.sign_flip_p_value(by_seed(values), zeros(values)) == pytest.approx(
        exact, abs=0.005
    )
    sure = by_seed([1.0] * 40)
    assert stats.sign_flip_p_value(sure, zeros(sure)) == pytest.approx(1 / 50_001)
    assert math.isnan(stats.sign_flip_p_value({1: 0.5}, {1: 0.4}))
    assert stats.sign_flip_p_value({1: 0.5, 2: 0.4}, {1: 0.5, 2: 0.4}) == 1


@pytest.mark.parametrize("n", [5, 6, 10])
def test_sign_flips_err_no_more_often_than_they_say(n):
    p = stats.sign_flip_p_values(np.random.default_rng(4).normal(size=(4000, n)))
    for alpha in (0.05, 0.2):
        assert (p < alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 4000)
    assert p.min() == 2 ** (1 - n)


def slow_holm(values):
    """Step by step: the smallest p times how many are left, never less than one before it."""
    left, adjusted, least = sorted((p, i) for i, p in enumerate(values)), {}, 0.0
    while left:
        p, index = left[0]
        least = max(least, min(1.0, p * len(left)))
        adjusted[index] = least
        left = left[1:]
    return [adjusted[i] for i in range(len(values))]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_agrees_with_the_procedure_step_by_step(values):
    assert stats.holm(values) == pytest.approx(slow_holm(values))
    with_gap = stats.holm([math.nan, *values])
    assert math.isnan(with_gap[0]) and with_gap[1:] == pytest.approx(slow_holm(values))


def test_holm_of_a_known_table():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_keeps_any_false_rejection_below_alpha():
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(400):
        baseline = rng.normal(size=8)
        scores = rng.normal(size=(6, 8)) - baseline  # six methods share a baseline
        wrong += min(stats.holm(stats.t_p_values(scores))) < 0.05
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 5), (5, 5), (7, 10), (10, 10)])
def test_probability_of_improvement_is_the_exact_binomial_interval(wins, n):
    a = by_seed([1.0] * wins + [-1.0] * (n - wins))
    found = stats.probability_of_improvement(a, zeros(a))
    expected = scipy_stats.binomtest(wins, n).proportion_ci(0.95, "exact")
    assert (found.mean, found.n) == (wins / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", range(2, 12))
def test_one_half_is_left_out_exactly_when_the_sign_test_rejects(n):
    for wins in range(n + 1):
        low, high = stats.share_bounds(wins, n)
        assert (low <= 0.5 <= high) == (scipy_stats.binomtest(wins, n).pvalue > 0.05)


def test_probability_counts_ties_half_and_only_shared_seeds():
    a, b = {1: 0.9, 2: 0.5, 3: 0.1, 4: 0.7, 8: 1.0}, {1: 0.1, 2: 0.5, 3: 0.2, 4: float("nan")}
    found = stats.probability_of_improvement(a, b)
    assert (found.mean, found.n) == (0.5, 3)
    assert found.low + found.high == pytest.approx(1)
    one = stats.probability_of_improvement({1: 0.9}, {1: 0.1})
    assert one.mean == 1 and math.isnan(one.low)
    assert stats.probability_of_improvement({1: 0.9}, {2: 0.1}).n == 0


@pytest.mark.parametrize("chances", [(0.5, 0.0, 0.5), (0.9, 0.0, 0.1), (0.4, 0.4, 0.2)])
@pytest.mark.parametrize("n", [3, 6, 10])
def test_probability_covers_at_least_as_often_as_it_says(n, chances):
    counts = np.random.default_rng(0).multinomial(n, chances, size=4000)
    low, high = stats.share_bounds(counts[:, 0] + counts[:, 1] / 2, n)
    truth = chances[0] + chances[1] / 2
    assert ((low <= truth) & (truth <= high)).mean() >= 0.945


@pytest.mark.parametrize("comparisons", [1, 12])
def test_seeds_for_a_decision_have_the_power_they_say(comparisons):
    seen = np.array([0.03, -0.01, 0.02, 0.0, 0.04, -0.02])
    more = stats.seeds_for_decision(seen, comparisons)
    total = int(more) + len(seen)
    rng = np.random.default_rng(1)
    for n, enough in ((total, True), (total - 3, False)):
        draws = rng.normal(seen.mean(), seen.std(ddof=1), size=(20_000, n))
        p = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue
        assert ((p < 0.05 / comparisons).mean() > 0.793) == enough
    less, most = (stats.seeds_for_decision(seen, comparisons, power) for power in (0.5, 0.99))
    assert less < more < most


def test_more_comparisons_take_more_seeds():
    seen = [0.03, -0.01, 0.02, 0.0, 0.04, -0.02]
    needed = [stats.seeds_for_decision(seen, comparisons) for comparisons in (1, 2, 10, 100)]
    assert needed == sorted(set(needed))


def test_seeds_for_a_decision_where_it_is_one_or_unknown():
    # A difference that is all but sure takes one more pair, and four in all.
    assert stats.seeds_for_decision([0.1, 0.101, 0.099, 0.1]) == 1
    for unknown in ([], [0.1], [0.1, 0.101, 0.099], [0.1] * 4, [0.1, 0.1 + 1e-16, 0.1, 0.1]):
        assert math.isnan(stats.seeds_for_decision(unknown))
    assert stats.seeds_for_decision([0.1, -0.1] * 2) == math.inf


def crossed(rng, seeds, sizes, seed_std, image_std):
    """Right or wrong of each seed on each image: logits of a common level, a seed's and an image's own."""
    classes = np.repeat(np.arange(len(sizes)), sizes)
    logits = (
        1.5 + seed_std * rng.normal(size=(seeds, 1)) + image_std * rng.normal(size=len(classes))
    )
    return (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float), classes


def slow_seeds_and_images(scores, classes):
    """Sums over cells, class by class: the variance of the mean as the docstring states it."""
    seeds, names = len(scores), sorted(set(classes))
    by_seed = [
        np.mean([np.mean([row[i] for i, c in enumerate(classes) if c == k]) for k in names])
        for row in scores
    ]
    of_seeds = sum((m - np.mean(by_seed)) ** 2 for m in by_seed) / (seeds - 1) / seeds
    of_images = of_rest = 0.0
    for k in names:
        own = [i for i, c in enumerate(classes) if c == k]
        n, grand = len(own), np.mean([[row[i] for i in own] for row in scores])
        image = {i: np.mean([row[i] for row in scores]) for i in own}
        mine = [np.mean([row[i] for i in own]) for row in scores]
        of_images += sum((image[i] - grand) ** 2 for i in own) / (n - 1) / n
        square = sum(
            (scores[s][i] - image[i] - mine[s] + grand) ** 2 for s in range(seeds) for i in own
        )
        of_rest += square / ((seeds - 1) * (n - 1)) / (seeds * n)
    of_images, of_rest = of_images / len(names) ** 2, of_rest / len(names) ** 2
    whole = max(of_seeds, of_images, of_seeds + of_images - of_rest)
    free = len(classes) - len(names)
    doubt = of_seeds**2 / (seeds - 1) + of_images**2 / free + of_rest**2 / (free * (seeds - 1))
    reach = scipy_stats.t.ppf(0.975, max(whole**2 / doubt, 1)) * math.sqrt(whole)
    reach = max(reach, scipy_stats.t.ppf(0.975, seeds - 1) * math.sqrt(of_seeds))
    return np.mean(by_seed) - reach, np.mean(by_seed) + reach


@pytest.mark.parametrize("sizes", [(20, 20, 20), (4, 30, 11)])
def test_seeds_and_images_agree_with_sums_over_cells(sizes):
    scores, classes = crossed(np.random.default_rng(3), 5, sizes, 0.3, 1.5)
    order = np.random.default_rng(4).permutation(len(classes))
    found = stats.seeds_and_images(scores[:, order], classes[order])
    assert (found.low, found.high) == pytest.approx(slow_seeds_and_images(scores, classes))
    assert found.n == 5


def test_the_doubt_of_the_images_is_seen_where_seeds_agree():
    """Ten seeds that all say the same of 50 images: over seeds nothing varies, over images much."""
    right = (np.arange(50) % 5 > 0).astype(float)
    scores, classes = np.tile(right, (10, 1)), np.zeros(50)
    assert np.ptp(scores.mean(axis=1)) == 0
    found = stats.seeds_and_images(scores, classes)
    error = right.std(ddof=1) / math.sqrt(50)
    reach = scipy_stats.t.ppf(0.975, 49) * error
    assert (found.low, found.high) == pytest.approx((0.8 - reach, 0.8 + reach))


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 10])
def test_seeds_and_images_are_never_surer_than_seeds_alone(seeds):
    rng = np.random.default_rng(seeds)
    for _ in range(100):
        scores, classes = crossed(rng, seeds, (100,) * 5, 0.3, 1.0)
        both, alone = (
            stats.seeds_and_images(scores, classes),
            stats.mean_interval(scores.mean(axis=1)),
        )
        assert both.low <= alone.low + 1e-12 and alone.high <= both.high + 1e-12


def test_seeds_and_images_where_there_is_little():
    assert math.isnan(stats.seeds_and_images([[1, 0, 1]], [0, 0, 1]).low)
    assert math.isnan(stats.seeds_and_images([[1, 0], [1, 1]], [0, 1]).low)  # one image a class
    lone = stats.seeds_and_images([[1, 0, 1, 1], [1, 1, 0, 1]], [0, 0, 0, 1])
    assert lone.low < lone.mean < lone.high
    point = stats.seeds_and_images(np.ones((3, 6)), np.arange(6) % 2)
    assert (point.mean, point.high) == (1, 1)
    assert point.low == pytest.approx(0.025 ** (1 / 6))  # six images, all right
    same = stats.seeds_and_images(np.zeros((3, 6)) - 1, np.arange(6) % 2)
    assert (same.low, same.high) == (-1, -1)  # a difference


def test_seeds_and_images_cover_and_seeds_alone_do_not():
    """The truth is the mean over all seeds and all images, of which each sample has a few."""
    rng = np.random.default_rng(5)
    kind = (0.15, 3.0)
    truth = np.mean([crossed(rng, 40, (200,) * 3, *kind)[0].mean() for _ in range(60)])
    both = alone = 0
    for _ in range(300):
        scores, classes = crossed(rng, 6, (30,) * 3, *kind)
        both += stats.seeds_and_images(scores, classes).holds(truth)
        alone += stats.mean_interval(scores.mean(axis=1)).holds(truth)
    assert 0.91 <= both / 300 <= 0.99 and alone / 300 < 0.8


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ((0.9, 0.91, 0.89, 0.92, 0.1), [4]),
        ((0.9, 0.2, 0.91, 0.89, 0.25, 0.92, 0.9, 0.88, 0.9), [1, 4]),  # two do not hide each other
        ((0.9, 0.9, 0.9, 0.9, 0.87), []),  # three points are no collapse
        ((0.9, 0.91, 0.1, 0.92), []),  # too few to say
        ((0.8, 0.9, 0.7, 0.85, 0.75, 0.95), []),
        ((0.9, math.nan, 0.91, 0.89, 0.92, 0.1), [5]),
        ((0.9,) * 6, []),
    ],
)
def test_outlying_values_are_found(values, places):
    assert stats.outlying(values) == places


def test_normal_values_are_rarely_called_outlying():
    rng = np.random.default_rng(8)
    flagged = [bool(stats.outlying(rng.normal(size=6), least=0)) for _ in range(2000)]
    assert np.mean(flagged) < 0.03
