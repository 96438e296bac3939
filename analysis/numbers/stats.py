"""Intervals and tests on a handful of seeds.

One rule decides everywhere, in words, bold cells, marks and seeds still needed: the two-sided paired
Student's t test, corrected by Holm over a stated family, at `ALPHA`. The interval of a mean is
Student's t too, so that one of differences leaves out 0 exactly where its p before correction is
below `ALPHA`. `benchmarks/coverage.py` measures how often the intervals hold the truth and the tests
err.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special  # and not scipy.stats, which takes a second to import

from tune_ssl.records.decisions import ALPHA as ALPHA
from tune_ssl.records.decisions import LEAST_SEEDS as LEAST_SEEDS

ROUNDING = 1e-12  # a difference or a spread up to this is none
DRAWS = 50_000
ALL_SIGNS = 16  # up to 2^15 sign patterns; a pattern and its opposite count alike
MOST_SEEDS = 1_000  # more than this nobody will train
LEAST_FOR_OUTLIERS = 5  # seeds
OUTLIERS_AT = 0.01
NOTABLE = 0.05  # of an accuracy: how far off an outlying seed must be to be named

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


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean: mean +- t_{n-1} std / sqrt(n) (Student 1908).

    Values that are not finite are left out; `n` says how many were used. The ends are not cut where
    the values have bounds: those of an accuracy near 1 may lie above 1. Equal values give a point.
    """
    x = np.asarray(list(values), dtype=float)
    x = x[np.isfinite(x)]
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, math.nan)
    if n == 1:
        return Interval(float(x[0]), math.nan, math.nan, 1, math.nan)
    if np.ptp(x) == 0:
        return Interval(float(x[0]), float(x[0]), float(x[0]), n, 0.0)
    mean, std = float(x.mean()), float(x.std(ddof=1))
    reach = float(t_quantile(n - 1, level)) * std / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, n, std)


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> Interval:
    """The interval of the mean of a - b over the keys (seeds) that both have."""
    return mean_interval(paired(a, b), level)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Floats:
    """a - b, shape [n], for the n keys that both have with finite values, in the keys' order.

    Values that differ by rounding alone are equal.
    """
    keys = sorted(set(a) & set(b))
    ours, theirs = (np.array([side[key] for key in keys], dtype=float) for side in (a, b))
    found = ours - theirs
    found[np.abs(found) <= ROUNDING] = 0.0
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


def paired_t_p_value(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """`t_p_value` of a - b over the keys (seeds) that both have."""
    return t_p_value(paired(a, b))


def t_p_value(differences: Iterable[float]) -> float:
    """Student's two-sided t test that the mean is 0; nan with fewer than `LEAST_SEEDS` values: they decide nothing."""
    x = np.asarray(list(differences), dtype=float)
    return float(t_p_values(x[None])[0]) if len(x) >= LEAST_SEEDS else math.nan


def t_p_values(differences_RN: Floats) -> Floats:
    """`t_p_value` of R samples of n >= 2 differences each, all at once. Shape [R].

    p = 2 P(T_{n-1} > sqrt(n) |mean| / std). Without spread the statistic has no value: then p is 1
    where all differences are 0; else 0 from `LEAST_SEEDS` differences on, and nan with fewer, which
    may be equal by chance where a test set is small.
    """
    n = differences_RN.shape[1]
    size_R = np.abs(differences_RN.mean(axis=1))
    std_R = differences_RN.std(axis=1, ddof=1)
    flat_R = std_R <= ROUNDING
    with np.errstate(divide="ignore", invalid="ignore"):
        p_R = 2 * special.stdtr(n - 1, -math.sqrt(n) * size_R / std_R)
    alike = 0.0 if n >= LEAST_SEEDS else math.nan
    p_R[flat_R] = np.where(size_R[flat_R] <= ROUNDING, 1.0, alike)
    return np.asarray(p_R)


def welch_p_value(a: Iterable[float], b: Iterable[float]) -> float:
    """Welch's two-sided t test that two independent samples have one mean (Welch 1947).

    nan with fewer than `LEAST_SEEDS` values on a side. Where neither side varies: 1 where they are equal,
    else 0.
    """
    x, y = (np.asarray(list(side), dtype=float) for side in (a, b))
    if min(len(x), len(y)) < LEAST_SEEDS:
        return math.nan
    size = float(abs(x.mean() - y.mean()))
    parts = np.array([side.var(ddof=1) / len(side) for side in (x, y)])
    error = math.sqrt(parts.sum())
    if error <= ROUNDING:
        return 1.0 if size <= ROUNDING else 0.0
    freedom = error**4 / (parts**2 / (np.array([len(x), len(y)]) - 1)).sum()
    return float(2 * special.stdtr(freedom, -size / error))


def sign_flip_p_value(a: Mapping[int, float], b: Mapping[int, float], seed: int = 0) -> float:
    """Two-sided sign-flip (permutation) test that the mean of a - b is 0; nan with fewer than 2 pairs.

    Fisher 1935, "The Design of Experiments", section 21: if A and B do not differ, each pair's
    difference is as likely to have the other sign. All 2^n sign patterns are counted up to n = 16;
    beyond, `DRAWS` random ones, as (1 + hits) / (1 + draws) (Phipson and Smyth 2010), so that p is
    never 0. It assumes no distribution, but n pairs give no p below 2^(1 - n), too much to pass a
    correction at the usual numbers of seeds. So it is shown beside the t test and decides nothing.
    """
    difference = paired(a, b)
    if len(difference) < 2:
        return math.nan
    return float(sign_flip_p_values(difference[None], seed)[0])


def sign_flip_p_values(differences_RN: Floats, seed: int = 0) -> Floats:
    """`sign_flip_p_value` of R samples of n >= 2 differences each, all at once. Shape [R]."""
    n = differences_RN.shape[1]
    observed_R = np.abs(differences_RN.sum(axis=1))
    # Sums that are equal on paper may differ in their last digits.
    least_R = observed_R - 1e-9 * np.abs(differences_RN).sum(axis=1)
    if n <= ALL_SIGNS:
        return np.asarray((np.abs(_signs(n) @ differences_RN.T) >= least_R).mean(axis=0))
    signs_DN = np.random.default_rng(seed).choice((-1.0, 1.0), size=(DRAWS, n))
    hits_R = (np.abs(signs_DN @ differences_RN.T) >= least_R).sum(axis=0)
    return np.asarray((1 + hits_R) / (1 + DRAWS))


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
    differences: Iterable[float], comparisons: int = 1, power: float = 0.8
) -> float:
    """How many more pairs the rule would take to decide, were the difference seen the true one.

    The smallest total N, of at least one pair more and at least `LEAST_SEEDS`, at which Student's t
    test rejects at `ALPHA` / `comparisons` with probability `power`, by the noncentral t (Cohen 1988,
    chapter 2), less the n pairs there are:

        P(|T'_{N-1}(sqrt(N) |mean| / std)| > t_{1 - alpha/2, N-1}) >= power

    That level is what Holm asks of the smallest p of a family; of the others it asks less. nan when
    it cannot be told, from fewer than `LEAST_SEEDS` pairs or from pairs that all differ alike; inf when it
    would take more than `MOST_SEEDS`. The mean and the std seen are guesses from a few pairs: a true
    difference of half the size needs four times as many. It is a plan, and no promise; nor may one
    add pairs until a test rejects and state its p as if their number were fixed.
    """
    seen = mean_interval(differences)
    if seen.n < LEAST_SEEDS or seen.std <= ROUNDING:
        return math.nan
    totals = np.arange(max(seen.n + 1, LEAST_SEEDS), MOST_SEEDS + 1)
    level = 1 - ALPHA / max(comparisons, 1)
    reached = _power(totals, abs(seen.mean) / seen.std, level) >= power
    return float(totals[reached.argmax()] - seen.n) if reached.any() else math.inf


def seeds_and_images(
    scores_SN: npt.ArrayLike, classes_N: npt.ArrayLike, level: float = 0.95
) -> Interval:
    """The interval of a mean per-class score for other seeds and other test images of the same classes.

    scores_SN: of S seeds on each of N test images, 1 where it is right and 0 where not, or a difference
    of two methods. classes_N: each image's true class. Seeds and images are crossed random factors
    (Searle, Casella and McCulloch 1992, "Variance Components", chapter 4), images within their class:
    with K classes of n_k images,

        V = V_seeds + V_images - V_rest
        V_seeds  = var_s(mean_k y_sk) / S
        V_images = 1/K^2 sum_k var_i(mean_s y_si) / n_k
        V_rest   = 1/K^2 sum_k MS_k / (S n_k), MS_k the mean square of the interaction

    since both of the first contain the third. The mean +- t sqrt(V), with Satterthwaite's degrees of
    freedom; it is never narrower than Student's interval over the seeds alone, which those of few seeds would
    be, as t falls with the freedom that images bring. nan ends where S < 2, or no class has two images. `n` is
    S, `std` nan.
    """
    scores, classes = np.asarray(scores_SN, dtype=float), np.asarray(classes_N)
    names, places_N = np.unique(classes, return_inverse=True)
    seeds, count = len(scores), len(names)
    columns = [scores[:, places_N == k] for k in range(count)]
    by_class_SK = np.column_stack([own.mean(axis=1) for own in columns])
    mean = float(by_class_SK.mean())
    sizes_K = np.array([own.shape[1] for own in columns])
    freedom = int((sizes_K - 1).sum())
    if seeds < 2 or not freedom:
        return Interval(mean, math.nan, math.nan, seeds, math.nan)
    images_K, rest_K = np.full(count, math.nan), np.full(count, math.nan)
    for k, own in enumerate(columns):
        if sizes_K[k] > 1:
            image_mean = own.mean(axis=0)
            rest = own - image_mean - own.mean(axis=1, keepdims=True) + own.mean()
            images_K[k] = image_mean.var(ddof=1)
            rest_K[k] = (rest**2).sum() / ((seeds - 1) * (sizes_K[k] - 1))
    # A class of one image is taken to vary as the others do.
    images_K[np.isnan(images_K)], rest_K[np.isnan(rest_K)] = np.nanmean([images_K, rest_K], axis=1)
    of_images = float((images_K / sizes_K).sum()) / count**2
    of_rest = float((rest_K / (seeds * sizes_K)).sum()) / count**2
    of_seeds = float(by_class_SK.mean(axis=1).var(ddof=1)) / seeds
    whole = max(of_seeds, of_images, of_seeds + of_images - of_rest)
    if whole <= ROUNDING**2:
        # All are alike: of scores what so many images can exclude (Clopper-Pearson)
        if not np.isin(scores, (0, 1)).all():
            return Interval(mean, mean, mean, seeds, math.nan)
        low, high = share_bounds(mean * scores.shape[1], scores.shape[1], level)
        return Interval(mean, float(low), float(high), seeds, math.nan)
    doubt = of_seeds**2 / (seeds - 1) + of_images**2 / freedom
    doubt += of_rest**2 / (freedom * (seeds - 1))
    reach = float(t_quantile(max(whole**2 / doubt, 1.0), level)) * math.sqrt(whole)
    reach = max(reach, float(t_quantile(seeds - 1, level)) * math.sqrt(of_seeds))
    return Interval(mean, mean - reach, mean + reach, seeds, math.nan)


def outlying(values: Sequence[float], least: float = NOTABLE) -> list[int]:
    """The places of values that are far from the others: none among fewer than `LEAST_FOR_OUTLIERS`.

    Rosner's generalized extreme studentized deviate test (1983, Technometrics 25) for up to a third of
    the values, at 0.01; such a value must also be `least` away from the median of the others. A seed
    that collapsed moves the mean and widens the interval of all.
    """
    x = np.asarray(values, dtype=float)
    places = np.flatnonzero(np.isfinite(x))
    if len(places) < LEAST_FOR_OUTLIERS:
        return []
    taken: list[int] = []
    found = 0
    for number in range(1, len(places) // 3 + 1):
        rest = np.setdiff1d(places, taken)
        n, std = len(rest), x[rest].std(ddof=1)
        if std <= ROUNDING:
            break
        away = np.abs(x[rest] - x[rest].mean()) / std
        taken.append(int(rest[away.argmax()]))
        t = float(special.stdtrit(n - 2, 1 - OUTLIERS_AT / (2 * n)))
        if away.max() > t * (n - 1) / math.sqrt((n - 2 + t**2) * n):
            found = number
    others = np.median(x[np.setdiff1d(places, taken[:found])])
    return sorted(place for place in taken[:found] if abs(x[place] - others) >= least)


def t_quantile(freedom: npt.ArrayLike, level: float = 0.95) -> Any:
    """What Student's t stays below in absolute value with probability `level`."""
    return special.stdtrit(freedom, 0.5 + level / 2)


def _power(n: npt.NDArray[np.int_], effect: float, level: float) -> Floats:
    """The power of the two-sided one-sample t test at n values and the effect |mean| / std."""
    critical = t_quantile(n - 1, level)
    # The share of the far tail is below 1 - level, and of no account where the power matters.
    missed = special.nctdtr(n - 1, np.sqrt(n) * effect, critical)
    return np.asarray(1 - np.nan_to_num(missed), dtype=float)  # too near to 0 for its series: nan


@cache
def _signs(n: int) -> Floats:
    """All sign patterns of n values that start with +, one a row."""
    rest = itertools.product((1.0, -1.0), repeat=n - 1)
    return np.array([(1.0, *signs) for signs in rest])
