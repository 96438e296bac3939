import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis import stats


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
    rng = np.random.default_rng(7)
    hits = [stats.mean_interval(rng.normal(size=n)).holds(0.0) for _ in range(400)]
    assert least <= np.mean(hits) <= most


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
