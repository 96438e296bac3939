"""What a number of fresh seeds can decide: the rule of the report, known before anything is trained."""

from __future__ import annotations

import math

ALPHA = 0.05
LEAST_SEEDS = 4  # no interval of a mean from fewer is called a 95 % one


def smallest_effect(seeds: int, comparisons: int = 1) -> float:
    """The mean paired difference, in its own standard deviations over seeds, from which on it is decided.

    Student's two-sided paired t test with as many pairs as seeds, at ALPHA / comparisons, which is what
    Holm's correction asks of the smallest p of a family: t_{1 - alpha / (2 m), n - 1} / sqrt(n). inf with
    fewer than 2 seeds.
    """
    from scipy.special import stdtrit  # takes a moment to load

    if seeds < 2:
        return math.inf
    level = 1 - ALPHA / (2 * max(1, comparisons))
    return float(stdtrit(seeds - 1, level)) / math.sqrt(seeds)
