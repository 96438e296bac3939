import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis.numbers import stats


def brute_force(values, tail):
    """Every one of the n^n resamples, one by one."""
    means = sorted(float(np.mean(draw)) for draw in itertools.product(values, repeat=len(values)))
    index = max(math.ceil(tail * len(means)) - 1, 0)
    return means[index], means[-1 - index]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [3, 4, 5])
def test_agrees_with_all_resamples_one_by_one(n, level):
    values = [0.81, 0.93, 0.88, 0.70, 0.79][:n]
    low, high = brute_force(values, stats.expanded_tail(n, level))
    found = stats.mean_interval(values, level)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("n", [2, 5, 10, 40])
def test_tail_turns_a_normal_bootstrap_into_the_t_interval(n):
    # The bootstrap's standard error is std * sqrt((n - 1) / n) / sqrt(n); t uses std / sqrt(n).
    reach = -scipy_stats.norm.ppf(stats.expanded_tail(n)) * math.sqrt((n - 1) / n)
    assert reach == pytest.approx(scipy_stats.t.ppf(0.975, n - 1))


def test_agrees_with_t_interval_at_forty():
    values = np.random.default_rng(3).normal(size=40)
    found = stats.mean_interval(values)
    t = scipy_stats.t.interval(0.95, 39, values.mean(), scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(t, abs=0.03)


def test_sampled_agrees_with_enumerated(monkeypatch):
    values = np.random.default_rng(1).normal(size=8)
    exact = stats.mean_interval(values)
    monkeypatch.setattr(stats, "ENUMERATED", 0)
    drawn = stats.mean_interval(values)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.03)


@pytest.mark.parametrize(("n", "least", "most"), [(5, 0.87, 0.96), (10, 0.91, 0.98)])
def test_covers_about_as_often_as_it_says(n, least, most):
    low, high = stats.mean_bounds(np.random.default_rng(7).normal(size=(400, n)))
    assert least <= np.mean((low <= 0) & (high >= 0)) <= most


@pytest.mark.parametrize("n", [5, 12])
def test_many_samples_at_once_are_each_their_own(n):
    samples = np.random.default_rng(2).lognormal(size=(3, n))
    low, high = stats.mean_bounds(samples)
    alone = [stats.mean_interval(sample) for sample in samples]
    assert low.tolist() == pytest.approx([found.low for found in alone])
    assert high.tolist() == pytest.approx([found.high for found in alone])


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
    assert (found.low, found.high) == pytest.approx((0.1, 0.2))


def test_coverage_limit_is_the_range():
    assert [stats.coverage_limit(n) for n in (1, 2, 4, 5)] == [0, 0.5, 0.875, 0.9375]
    assert stats.seeds_needed() == 6
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 4))
    inside = (x.min(axis=1) < 0) & (x.max(axis=1) > 0)
    assert inside.mean() == pytest.approx(stats.coverage_limit(4), abs=0.02)


def by_seed(values):
    return dict(enumerate(values))


def zeros(values):
    return by_seed([0.0] * len(values))


differences = st.lists(st.integers(-20, 20).map(lambda k: k / 100), min_size=2, max_size=9)


@settings(deadline=None, max_examples=40)
@given(differences)
def test_sign_flips_agree_with_scipy(values):
    sample = (np.array(values),)
    expected = scipy_stats.permutation_test(
        sample, np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert stats.paired_p_value(by_seed(values), zeros(values)) == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(differences)
def test_p_knows_no_side(values):
    a, b = by_seed(values), zeros(values)
    assert stats.paired_p_value(a, b) == stats.paired_p_value(b, a) >= stats.smallest_p(len(a))


def test_p_of_many_pairs_is_drawn_and_never_zero(monkeypatch):
    values = np.random.default_rng(0).normal(0.4, 1, size=15)
    exact = stats.paired_p_value(by_seed(values), zeros(values))
    monkeypatch.setattr(stats, "ALL_SIGNS", 3)
    assert stats.paired_p_value(by_seed(values), zeros(values)) == pytest.approx(exact, abs=0.005)
    sure = by_seed([1.0] * 40)
    assert stats.paired_p_value(sure, zeros(sure)) == pytest.approx(1 / 50_001)
    assert math.isnan(stats.paired_p_value({1: 0.5}, {1: 0.4}))
    assert stats.paired_p_value({1: 0.5, 2: 0.4}, {1: 0.5, 2: 0.4}) == 1


@pytest.mark.parametrize("n", [5, 6, 10])
def test_sign_flips_err_no_more_often_than_they_say(n):
    p = stats.sign_flip_p_values(np.random.default_rng(4).normal(size=(4000, n)))
    for alpha in (0.05, 0.2):
        assert (p < alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 4000)
    assert p.min() == stats.smallest_p(n)


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
        wrong += min(stats.holm(stats.sign_flip_p_values(scores))) < 0.05
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_fewest_seeds_that_can_pass_a_corrected_test():
    assert [stats.seeds_for_test(m) for m in (0, 1, 2, 12)] == [6, 6, 7, 9]
    for comparisons in (1, 2, 12):
        n = stats.seeds_for_test(comparisons)
        assert comparisons * stats.smallest_p(n) < 0.05 <= comparisons * stats.smallest_p(n - 1)


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


def test_seeds_for_a_decision_have_the_power_they_say():
    seen = np.array([0.03, -0.01, 0.02, 0.0, 0.04, -0.02])
    more = stats.seeds_for_decision(seen)
    total = int(more) + len(seen)
    draws = np.random.default_rng(1).normal(seen.mean(), seen.std(ddof=1), size=(20_000, total))
    rejected = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=0.02)
    assert stats.seeds_for_decision(seen, power=0.5) < more < stats.seeds_for_decision(seen, 0.99)


def test_seeds_for_a_decision_where_it_is_none_one_or_unknown():
    assert stats.seeds_for_decision([0.1, 0.2, 0.15, 0.1, 0.2, 0.12]) == 0
    # The interval of three leaves out 0, but three seeds decide nothing.
    assert not stats.mean_interval([0.1, 0.2, 0.15]).holds(0)
    assert stats.seeds_for_decision([0.1, 0.2, 0.15]) == 3
    for unknown in ([], [0.1], [0.1, 0.1], [0.1, 0.1 + 1e-16, 0.1]):
        assert math.isnan(stats.seeds_for_decision(unknown))
    assert stats.seeds_for_decision([0.1, -0.1]) == math.inf


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_iqm_is_the_mean_of_the_middle_half(values):
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    assert stats.iqm(values) == pytest.approx(np.mean(middle), abs=1e-12)


def test_iqm_ignores_what_is_missing_and_the_shape():
    assert stats.iqm([[0, 4, float("nan")], [8, 100, -50]]) == pytest.approx(4)
    assert math.isnan(stats.iqm([]))


def slow_iqm_bounds(scores, tail, together, draws=4000):
    rng, found = np.random.default_rng(9), []
    for _ in range(draws):
        columns = rng.integers(scores.shape[1], size=scores.shape[1])
        drawn = (
            scores[:, columns]
            if together
            else np.array([rng.choice(row, len(row)) for row in scores])
        )
        found.append(stats.iqm(drawn))
    return np.quantile(found, [tail, 1 - tail])


@pytest.mark.parametrize("together", [False, True])
def test_iqm_interval_agrees_with_a_loop(together):
    scores = np.random.default_rng(3).normal(size=(3, 8)) + np.arange(3)[:, None]
    units, freedom = (8, 7) if together else (24, 21)
    reach = math.sqrt(units / freedom) * scipy_stats.t.ppf(0.975, freedom)
    expected = slow_iqm_bounds(scores, scipy_stats.norm.cdf(-reach), together)
    found = stats.iqm_interval(scores, together=together)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.07)
    assert (found.mean, found.n) == (stats.iqm(scores), 24)


@pytest.mark.parametrize(("together", "correlation"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_iqm_interval_covers_about_as_often_as_it_says(together, correlation):
    rng, held = np.random.default_rng(11), 0
    for _ in range(200):
        shared = math.sqrt(correlation) * rng.normal(size=10)
        scores = shared + math.sqrt(1 - correlation) * rng.normal(size=(4, 10))
        held += stats.iqm_interval(scores, together=together, draws=400).holds(0)
    assert 0.89 <= held / 200 <= 0.99


def test_iqm_interval_needs_two_seeds():
    assert math.isnan(stats.iqm_interval([[0.5], [0.6]]).low)
    assert stats.iqm_interval([[0.5], [0.6]]).mean == pytest.approx(0.55)
    gap = [[0.5, 0.7, float("nan")], [0.6, 0.8, 0.9]]
    assert stats.iqm_interval(gap).n == 5 and stats.iqm_interval(gap, together=True).n == 4
    assert math.isnan(stats.iqm_interval([]).mean)
