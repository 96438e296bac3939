"""Labels saved: what is read off the reference's curve, and how sure it is."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.numbers.labels_saved import equivalent, labels_saved
from analysis.read.load import load_runs
from analysis.read.values import only_budgets
from analysis.words.display import labels_equal
from tests.analysis.conftest import shown

SEEDS = range(6)
# 0.70 with 10 labels, 0.80 with 20 and 0.90 with 80, all seeds alike but for their own level
LEVELS = dict(zip(SEEDS, (0.0, 0.01, -0.01, 0.02, -0.02, 0.005), strict=True))
CURVE = {
    count: {seed: mean + LEVELS[seed] for seed in SEEDS}
    for count, mean in ((10.0, 0.70), (20.0, 0.80), (80.0, 0.90))
}


def test_the_curve_is_read_over_the_logarithm_of_the_labels():
    found = equivalent({seed: 0.85 + LEVELS[seed] for seed in SEEDS}, CURVE)
    assert found["equals"] == pytest.approx(40, rel=0.01)  # half way from 20 to 80
    assert found["n"] == 6
    # Pairs that all differ alike leave no doubt
    assert found["low"] == pytest.approx(40, rel=0.01) == found["high"]


def test_the_interval_inverts_the_paired_t_test():
    noise = dict(zip(SEEDS, (0.01, -0.02, 0.015, 0.0, -0.01, 0.02), strict=True))
    values = {seed: 0.85 + LEVELS[seed] + noise[seed] for seed in SEEDS}
    found = equivalent(values, CURVE)

    def p(labels):
        theirs = [
            np.interp(math.log(labels), np.log(list(CURVE)), [CURVE[c][s] for c in CURVE])
            for s in SEEDS
        ]
        return scipy_stats.ttest_rel(list(values.values()), theirs).pvalue

    assert found["low"] < found["equals"] < found["high"]
    for end in (found["low"], found["high"]):
        assert p(end) == pytest.approx(0.05, abs=0.01)
    assert p(found["low"] * 0.9) < 0.05 < p(found["equals"]) and p(found["high"] * 1.1) < 0.05


def test_nothing_is_guessed_beyond_what_was_measured():
    above = equivalent({seed: 0.95 + LEVELS[seed] for seed in SEEDS}, CURVE)
    assert (above["equals"], above["low"], above["high"]) == (math.inf,) * 3
    below = equivalent({seed: 0.5 + LEVELS[seed] for seed in SEEDS}, CURVE)
    assert (below["equals"], below["low"], below["high"]) == (0, 0, 0)
    assert labels_equal(math.inf, math.inf, math.inf, 10, 80) == "more than 80"
    assert labels_equal(0, 0, 0, 10, 80) == "fewer than 10"
    assert labels_equal(46.4, 31, math.inf, 10, 80) == "46 [31, more than 80]"
    assert labels_equal(46.4, 31, 70, 10, 80) == "46 [31, 70]"


def test_few_seeds_have_no_interval_and_seeds_must_be_shared():
    three = equivalent({seed: 0.85 for seed in range(3)}, CURVE)
    assert three["n"] == 3 and math.isnan(three["low"]) and not math.isnan(three["equals"])
    assert equivalent({9: 0.85}, CURVE)["n"] == 0


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """The method has exactly what the reference has with 40 labels, plus independent noise."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        levels = rng.normal(0, 0.02, 6)
        noisy = {
            count: {s: mean + levels[s] + rng.normal(0, 0.01) for s in range(6)}
            for count, mean in ((10.0, 0.70), (20.0, 0.80), (80.0, 0.90))
        }
        values = {s: 0.85 + levels[s] + rng.normal(0, 0.01) for s in range(6)}
        found = equivalent(values, noisy)
        held += found["low"] <= 40 <= found["high"]
    assert 0.92 <= held / 300 <= 0.99


def test_runs_have_a_row_for_each_method_and_label_count(tmp_path, write_run):
    base = write_run(tmp_path / "a", method="supervised", labels=(10, 40), shift={10: 0.0, 40: 0.1})
    better = write_run(
        tmp_path / "b", method="fixmatch", labels=(10, 40), shift={10: 0.05, 40: 0.2}
    )
    table = labels_saved(load_runs([base, better]))
    assert table["method"].to_list() == ["fixmatch"] * 2
    assert table["equals"].to_list() == [pytest.approx(20, rel=0.02), math.inf]
    assert shown(table, "labels_saved")["With this many labels"].to_list() == ["20", "more than 40"]
    one = write_run(tmp_path / "c", method="supervised", labels=(10,))
    assert labels_saved(load_runs([one, better])).empty  # no curve
    same = write_run(
        tmp_path / "d", method="supervised", labels=(10, 10), conditions=["x=1", "x=2"]
    )
    assert labels_saved(load_runs([same])).empty
    tails = write_run(
        tmp_path / "e",
        method="supervised",
        labels=(40, 10),
        conditions=["data.imbalance=1", "data.imbalance=100"],
    )
    assert labels_saved(load_runs([tails])).empty  # other images, too


def test_only_names_of_label_counts_and_shares_are_budgets():
    assert only_budgets(["all"]) and only_budgets(["data.num_labels=20", "data.num_labels=50"])
    assert only_budgets(["data.labeled_ratio=0.1"])
    assert not only_budgets(["data.num_labels=20,data.imbalance=1", "data.num_labels=50"])
