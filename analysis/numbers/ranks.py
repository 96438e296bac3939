"""Average ranks of methods over blocks, and how far apart they must be (Demsar 2006).

"Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, section 3.2. A block is a
condition; repeated seeds are averaged within it first, since they are no blocks of their own.
"""

from __future__ import annotations

import math
from string import ascii_lowercase

import numpy as np
import numpy.typing as npt

LEAST_METHODS = 3  # of two, the paired difference says more
LEAST_BLOCKS = 5  # below, the tests' approximations are too coarse: Demsar asks for more than 10

Floats = npt.NDArray[np.float64]


def average_ranks(scores_BK: npt.ArrayLike) -> Floats:
    """The mean rank of each of K methods over B blocks; 1 is the highest score, ties share a rank.

    Shape [K]. Blocks with a score that is not finite must be left out before: they are an error.

    Raises:
        ValueError: a score that is not finite, or no block.
    """
    scores = _checked(scores_BK)
    # Means of the same seeds in another order may differ in their last digits.
    scores = scores.round(9)
    higher_BKK = scores[:, None, :] > scores[:, :, None]
    equal_BKK = scores[:, None, :] == scores[:, :, None]
    return np.asarray((higher_BKK.sum(axis=2) + (equal_BKK.sum(axis=2) + 1) / 2).mean(axis=0))


def friedman_p_value(scores_BK: npt.ArrayLike) -> float:
    """Friedman's test that all K >= 3 methods rank alike over B blocks (chi-squared, K - 1).

    nan where all scores are tied. With few blocks the chi-squared is conservative.
    """
    scores = _checked(scores_BK).round(9)
    if not np.ptp(scores, axis=1).any():
        return math.nan
    from scipy import stats  # a second's import, for the few reports that compare so many methods

    return float(stats.friedmanchisquare(*scores.T).pvalue)


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks: q_alpha sqrt(K (K + 1) / (6 B)).

    q_alpha is the studentized range's quantile for K methods and infinite degrees of freedom,
    divided by sqrt(2) (Demsar 2006, table 5a).
    """
    from scipy import stats

    q = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def rank_groups(ranks_K: npt.ArrayLike, difference: float) -> list[str]:
    """Letters per method: two methods share one exactly when their ranks differ by less than `difference`.

    These are the bars of a critical-difference diagram, `a` at the best rank.
    """
    ranks = np.asarray(ranks_K, dtype=float)
    bars: list[set[int]] = []
    for start in np.argsort(ranks, kind="stable"):
        ahead = ranks - ranks[start]
        bar = {int(i) for i in np.flatnonzero((ahead >= 0) & (ahead < difference))}
        if not any(bar <= other for other in bars):
            bars.append(bar)
    names = dict(enumerate(ascii_lowercase))
    return [
        " ".join(names.get(k, str(k)) for k, bar in enumerate(bars) if i in bar)
        for i in range(len(ranks))
    ]


def _checked(scores_BK: npt.ArrayLike) -> Floats:
    scores = np.asarray(scores_BK, dtype=float)
    if scores.ndim != 2 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError("ranks need a blocks x methods matrix of finite scores")
    return scores
