"""Intervals and tests on a handful of seeds.

The plain percentile bootstrap is too narrow when n is small: it lacks the factor n / (n - 1) in the
variance and the heavier tails of Student's t. The *expanded* percentile interval (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", section 5.3) reads the bootstrap distribution at

    alpha' / 2 = Phi(-sqrt(n / (n - 1)) * t_{1 - alpha/2, n - 1})

instead of at alpha / 2. Up to n = 8 all resamples are enumerated, so nothing depends on a seed.
`benchmarks/coverage.py` measures how often the intervals hold the truth and the tests err.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special  # and not scipy.stats, which takes a second to import

ENUMERATED = 8  # C(15, 8) = 6,435 distinct resamples
DRAWS = 50_000
ALL_SIGNS = 16  # up to 2^15 sign patterns; a pattern and its opposite count alike
MOST_SEEDS = 1_000  # more than this nobody will train

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval. `low`, `high` are nan when n < 2, `std` (ddof=1) too."""

    mean: float
    low: float
    high: float
    n: int
    std: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside the interval; False when there is none."""
        return self.low <= value <= self.high


def mean_interval(values: Iterable[float], level: float = 0.95, seed: int = 0) -> Interval:
    """The expanded percentile bootstrap interval of the mean.

    Values that are not finite are left out; `n` says how many were used.
    """
    x = np.asarray(list(values), dtype=float)
    x = x[np.isfinite(x)]
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, math.nan)
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, math.nan)
    std = float(x.std(ddof=1))
    if np.ptp(x) == 0:
        return Interval(float(x[0]), float(x[0]), float(x[0]), n, 0.0)
    low, high = mean_bounds(x[None], level, seed)
    return Interval(mean, float(low[0]), float(high[0]), n, std)


def mean_bounds(samples_RN: Floats, level: float = 0.95, seed: int = 0) -> tuple[Floats, Floats]:
    """`mean_interval` of R samples of n >= 2 finite values each, all at once: (low [R], high [R])."""
    n = samples_RN.shape[1]
    counts_DN, weights_D = _resamples(n) if n <= ENUMERATED else _drawn_resamples(n, seed)
    means_RD = samples_RN @ counts_DN.T / n
    goal = expanded_tail(n, level) * (1 - 1e-9)
    if n > ENUMERATED:  # all resamples weigh alike: no need to sort
        tail = max(math.ceil(goal * DRAWS) - 1, 0)
        means_RD.partition((tail, DRAWS - 1 - tail), axis=1)
        return means_RD[:, tail], means_RD[:, DRAWS - 1 - tail]
    order = np.argsort(means_RD, axis=1, kind="stable")
    return (
        _at_probability(means_RD, weights_D, order, goal),
        _at_probability(means_RD, weights_D, order[:, ::-1], goal),
    )


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of the mean of a - b over the keys (seeds) that both have."""
    return mean_interval(paired(a, b), level, seed)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Floats:
    """a - b, shape [n], for the n keys that both have with finite values, in the keys' order."""
    found = np.array([a[key] - b[key] for key in sorted(set(a) & set(b))], dtype=float)
    return np.asarray(found[np.isfinite(found)])


def probability_of_improvement(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> Interval:
    """P(A > B) over the seeds that both have, a tie counting one half, with its interval.

    Bouthillier et al. 2021 ("Accounting for Variance in Machine Learning Benchmarks", section 4)
    estimate P(A > B) from pairs and bootstrap it. A bootstrap of five wins in five is [1, 1], a
    certainty that five seeds cannot give, so the interval here is the exact binomial one (Clopper
    and Pearson 1934), with w = wins + ties / 2 of n:

        low  = Beta^-1(alpha / 2;     w,     n - w + 1), and 0 when w = 0
        high = Beta^-1(1 - alpha / 2; w + 1, n - w),     and 1 when w = n

    Without ties it leaves out 1/2 exactly when the two-sided sign test rejects, which takes six
    seeds; it covers at least as often as it says, usually more often.
    """
    difference = paired(a, b)
    n = len(difference)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, math.nan)
    wins = (np.sign(difference) + 1) / 2
    mean = float(wins.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, math.nan)
    low, high = share_bounds(wins.sum(), n, level)
    return Interval(mean, float(low), float(high), n, float(wins.std(ddof=1)))


def share_bounds(wins: npt.ArrayLike, n: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """The Clopper-Pearson interval of a share: `wins` of n, in any shape; halves are allowed."""
    won, tail = np.asarray(wins, dtype=float), 0.5 - level / 2
    lost = n - won
    low = special.betaincinv(np.maximum(won, 0.5), lost + 1, tail)
    high = special.betaincinv(won + 1, np.maximum(lost, 0.5), 1 - tail)
    return np.where(won == 0, 0.0, low), np.where(lost == 0, 1.0, high)


def paired_p_value(a: Mapping[int, float], b: Mapping[int, float], seed: int = 0) -> float:
    """Two-sided sign-flip (permutation) test that the mean of a - b is 0; nan with fewer than 2 pairs.

    Fisher 1935, "The Design of Experiments", section 21: if A and B do not differ, each pair's
    difference is as likely to have the other sign. All 2^n sign patterns are counted up to n = 16;
    beyond, `DRAWS` random ones, as (1 + hits) / (1 + draws) (Phipson and Smyth 2010), so that p is
    never 0. The smallest p that n pairs can give is `smallest_p`.
    """
    difference = paired(a, b)
    if len(difference) < 2:
        return math.nan
    return float(sign_flip_p_values(difference[None], seed)[0])


def sign_flip_p_values(differences_RN: Floats, seed: int = 0) -> Floats:
    """`paired_p_value` of R samples of n >= 2 differences each, all at once. Shape [R]."""
    n = differences_RN.shape[1]
    observed_R = np.abs(differences_RN.sum(axis=1))
    # Sums that are equal on paper may differ in their last digits.
    least_R = observed_R - 1e-9 * np.abs(differences_RN).sum(axis=1)
    if n <= ALL_SIGNS:
        return np.asarray((np.abs(_signs(n) @ differences_RN.T) >= least_R).mean(axis=0))
    signs_DN = np.random.default_rng(seed).choice((-1.0, 1.0), size=(DRAWS, n))
    hits_R = (np.abs(signs_DN @ differences_RN.T) >= least_R).sum(axis=0)
    return np.asarray((1 + hits_R) / (1 + DRAWS))


def smallest_p(n: int) -> float:
    """The smallest p that `paired_p_value` can give for n pairs, all of one sign: 2^(1 - n)."""
    return 2.0 ** (1 - n) if n <= ALL_SIGNS else 1 / (1 + DRAWS)


def seeds_for_test(comparisons: int, alpha: float = 0.05) -> int:
    """The fewest pairs whose smallest p is below `alpha` after Holm's correction over `comparisons`.

    That is for a difference of one sign in every pair; fewer pairs cannot pass, whatever they show.
    """
    n = 2
    while max(comparisons, 1) * 2.0 ** (1 - n) >= alpha:
        n += 1
    return n


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given; nan stays nan, uncounted.

    With p_(1) <= ... <= p_(m), the k-th is max over j <= k of min(1, (m - j + 1) p_(j)). Rejecting
    where it is below alpha keeps the chance of any false rejection below alpha.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]  # nan sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return [float(value) for value in adjusted]


def seeds_for_decision(
    differences: Iterable[float], level: float = 0.95, power: float = 0.8
) -> float:
    """How many more pairs would show a difference of the size seen, at `level` with `power`.

    0 when the interval already leaves out 0 and there are at least `seeds_needed(level)` pairs; nan
    when that cannot be told, from fewer than two pairs or from pairs that all differ alike; inf when
    it would take more than `MOST_SEEDS`. Otherwise the smallest total N at which Student's t test
    rejects with probability `power`, by the noncentral t (Cohen 1988, chapter 2), less those there
    are:

        P(|T'_{N-1}(sqrt(N) |mean| / std)| > t_{1 - alpha/2, N-1}) >= power

    It takes the mean and the std seen for the true ones. Both are guesses from a few pairs: a true
    difference of half the size needs four times as many. It is a plan, and no promise; nor may one
    add pairs until an interval leaves out 0 and state that interval as if their number were fixed.
    """
    seen = mean_interval(differences, level)
    least = seeds_needed(level)
    if seen.n < 2 or seen.std <= 1e-9 * abs(seen.mean):  # equal but for rounding
        return math.nan
    if not seen.holds(0) and seen.n >= least:
        return 0.0
    totals = np.arange(max(seen.n + 1, least), MOST_SEEDS + 1)
    reached = _power(totals, abs(seen.mean) / seen.std, level) >= power
    return float(totals[reached.argmax()] - seen.n) if reached.any() else math.inf


def iqm(values: npt.ArrayLike) -> float:
    """The interquartile mean: the mean of the middle half of all values, whatever their shape.

    Agarwal et al. 2021 ("Deep Reinforcement Learning at the Edge of the Statistical Precipice",
    section 4.3): a quarter of the m values, rounded down, is left out at each end. So below m = 4
    it is the mean. Values that are not finite are left out; nan without any.
    """
    x = np.asarray(values, dtype=float).ravel()
    x = x[np.isfinite(x)]
    return float(_middle_half(x[None])[0]) if len(x) else math.nan


def iqm_interval(
    scores_CN: npt.ArrayLike,
    level: float = 0.95,
    together: bool = False,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The IQM of a conditions x seeds matrix with its bootstrap interval; n is the number of values.

    Seeds are drawn anew within each condition (the stratified bootstrap of Agarwal et al. 2021,
    section 4.1); `together` draws whole columns instead. The first takes the conditions' scores for
    independent. Where a column is one seed under all conditions, with one initialisation and data
    order, its scores tend to rise and fall together and only the second is right.

    The tails are expanded as for a mean: with N values in C strata the bootstrap's variance is too
    small by the factor (N - C) / N, and the t has N - C degrees of freedom (one stratum of columns:
    n / (n - 1) and n - 1). nan cells are left out; `together` leaves out their columns. Without two
    seeds in some condition there is no interval. `std` is nan: the values have no common mean.
    """
    scores = np.atleast_2d(np.asarray(scores_CN, dtype=float))
    if together:
        scores = scores[:, np.isfinite(scores).all(axis=0)]
    strata = [row[np.isfinite(row)] for row in scores]
    strata = [row for row in strata if len(row)]
    total = sum(map(len, strata))
    units = scores.shape[1] if together else total
    freedom = units - (1 if together else len(strata))
    if total == 0 or freedom < 1:
        return Interval(iqm(scores), math.nan, math.nan, total, math.nan)
    rng = np.random.default_rng(seed)
    if together:
        columns_DN = rng.integers(units, size=(draws, units))
        values = np.moveaxis(scores[:, columns_DN], 0, 1).reshape(draws, -1)
    else:
        values = np.hstack([row[rng.integers(len(row), size=(draws, len(row)))] for row in strata])
    found_D = _middle_half(values)
    reach = math.sqrt(units / freedom) * t_quantile(freedom, level)
    tail = float(special.ndtr(-reach))
    low, high = np.quantile(found_D, [tail, 1 - tail])
    return Interval(iqm(scores), float(low), float(high), total, math.nan)


def expanded_tail(n: int, level: float = 0.95) -> float:
    """alpha' / 2: the probability below the lower end, for n values."""
    return float(special.ndtr(-math.sqrt(n / (n - 1)) * t_quantile(n - 1, level)))


def t_quantile(freedom: npt.ArrayLike, level: float = 0.95) -> Any:
    """What Student's t stays below in absolute value with probability `level`."""
    return special.stdtrit(freedom, 0.5 + level / 2)


def coverage_limit(n: int) -> float:
    """How often the range of n values holds the centre of a symmetric distribution.

    No bootstrap interval of a mean reaches beyond the range, so none covers more often than this:
    50 % at n = 2, 87.5 % at 4, 93.8 % at 5, 96.9 % at 6.
    """
    return 1 - 2.0 ** (1 - n) if n > 1 else 0.0


def seeds_needed(level: float = 0.95) -> int:
    """The smallest n at which `coverage_limit` does not stand in the way of `level`."""
    n = 2
    while coverage_limit(n) < level:
        n += 1
    return n


def _power(n: npt.NDArray[np.int_], effect: float, level: float) -> Floats:
    """The power of the two-sided one-sample t test at n values and the effect |mean| / std."""
    critical = t_quantile(n - 1, level)
    # The share of the far tail is below 1 - level, and of no account where the power matters.
    missed = special.nctdtr(n - 1, np.sqrt(n) * effect, critical)
    return np.asarray(1 - np.nan_to_num(missed), dtype=float)  # too near to 0 for its series: nan


def _middle_half(values_RN: Floats) -> Floats:
    """Per row, the mean without a quarter of the values, rounded down, at each end. Shape [R]."""
    n = values_RN.shape[1]
    cut = n // 4
    middle = np.partition(values_RN, (cut, n - cut - 1), axis=1)[:, cut : n - cut]
    return np.asarray(middle.mean(axis=1))


@cache
def _resamples(n: int) -> tuple[Floats, Floats]:
    """How often each of n values is drawn, one row per distinct resample, and its probability."""
    rows = list(_compositions(n, n))
    ways = [math.factorial(n) / math.prod(map(math.factorial, counts)) for counts in rows]
    return np.array(rows, dtype=float), np.array(ways) / float(n) ** n


@lru_cache(maxsize=4)
def _drawn_resamples(n: int, seed: int) -> tuple[Floats, Floats]:
    """The same for `DRAWS` random resamples."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return counts.astype(float), np.full(DRAWS, 1 / DRAWS)


def _compositions(total: int, parts: int) -> Iterable[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


@cache
def _signs(n: int) -> Floats:
    """All sign patterns of n values that start with +, one a row."""
    rest = itertools.product((1.0, -1.0), repeat=n - 1)
    return np.array([(1.0, *signs) for signs in rest])


def _at_probability(values_RD: Floats, weights_D: Floats, order_RD: Any, goal: float) -> Floats:
    """Per row, the first value in the given order whose cumulative probability reaches `goal`."""
    before_R = (np.cumsum(weights_D[order_RD], axis=1) < goal).sum(axis=1)
    rows = np.arange(len(values_RD))
    return np.asarray(values_RD[rows, order_RD[rows, before_R]])
