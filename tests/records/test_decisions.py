"""What a number of seeds can decide, known before anything is trained."""

import math

import numpy as np
import pytest

from analysis.numbers.stats import holm, t_p_values
from tune_ssl.records.decisions import ALPHA, smallest_effect


@pytest.mark.parametrize(("seeds", "comparisons"), [(4, 1), (6, 8), (10, 12)])
def test_the_smallest_effect_is_where_holm_begins_to_reject(seeds, comparisons):
    noise = np.random.default_rng(0).normal(size=seeds)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # of spread 1 around 0
    effect = smallest_effect(seeds, comparisons)
    for factor, decided in ((1.01, True), (0.99, False)):
        p = float(t_p_values((noise + factor * effect)[None])[0])
        assert (holm([p, *[0.9] * (comparisons - 1)])[0] < ALPHA) is decided


def test_more_seeds_decide_more_and_one_decides_nothing():
    assert smallest_effect(10, 8) < smallest_effect(6, 8) < smallest_effect(4, 8) < math.inf
    assert smallest_effect(6, 1) < smallest_effect(6, 8)
    assert smallest_effect(1) == math.inf
