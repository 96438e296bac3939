import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.numbers import ranks

# Demsar 2006, table 6: AUC of C4.5, C4.5 + m, C4.5 + cf and C4.5 + m + cf on 14 data sets.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def test_agrees_with_the_example_of_the_paper():
    found = ranks.average_ranks(DEMSAR)
    assert found == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=0.001)
    assert ranks.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert ranks.rank_groups(found, ranks.critical_difference(4, 14)) == ["a", "a", "a", "a"]


def test_friedman_is_the_formula_of_the_paper():
    # Without ties: chi2 = 12 N / (k (k + 1)) * (sum R_j^2 - k (k + 1)^2 / 4).
    scores = np.random.default_rng(0).normal(np.arange(4) * 0.4, size=(9, 4))
    found = ranks.average_ranks(scores)
    chi2 = 12 * 9 / 20 * ((found**2).sum() - 4 * 25 / 4)
    assert ranks.friedman_p_value(scores) == pytest.approx(scipy_stats.chi2.sf(chi2, 3))


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (8, 3.031), (10, 3.164)]
)
def test_nemenyi_has_the_quantiles_of_the_table(methods, q):
    blocks = methods * (methods + 1) / 6  # then the root is 1
    assert ranks.critical_difference(methods, blocks) == pytest.approx(q, abs=0.001)


def test_ties_share_a_rank_and_rounding_is_a_tie():
    assert ranks.average_ranks([[0.9, 0.8, 0.9]]).tolist() == [1.5, 3, 1.5]
    assert ranks.average_ranks([[0.1 + 0.2, 0.3]]).tolist() == [1.5, 1.5]
    assert math.isnan(ranks.friedman_p_value([[0.5, 0.5, 0.5]] * 6))


def test_groups_are_all_that_are_close_and_no_group_is_part_of_another():
    assert ranks.rank_groups([1.0, 2.0, 3.5], 1.6) == ["a", "a b", "b"]
    assert ranks.rank_groups([3.0, 1.0, 1.5], 1.0) == ["b", "a", "a"]
    assert ranks.rank_groups([1.0, 2.0], 1.0) == ["a", "b"]


def test_a_false_difference_is_as_rare_as_it_says():
    rng, wrong = np.random.default_rng(6), 0
    for _ in range(400):
        found = ranks.average_ranks(rng.normal(size=(6, 4)))
        wrong += np.ptp(found) >= ranks.critical_difference(4, 6)
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_hole_is_an_error_not_a_rank():
    with pytest.raises(ValueError, match="finite scores"):
        ranks.average_ranks([[0.5, math.nan]])
