import math

import pandas as pd
import pytest

from analysis.plots.search import value_scale
from analysis.words.display import metric_value
from analysis.words.verdicts import ablation_sentences, comparison_sentences, verdict

NAN = math.nan


def difference(mean, low, high, p_holm=0.01, n=10, labels=20, p=0.002, **more):
    own = {"method": "a", "reference": "b", "condition": f"labels={labels}", "labels": labels}
    numbers = {"mean": mean, "low": low, "high": high, "n": n, "p": p, "p_holm": p_holm}
    return {**own, **numbers, "unpaired": 0, "seeds_needed": NAN, **more}


def variant(name, diff=NAN, low=NAN, high=NAN, pairs=10, p_holm=0.01, **more):
    own = {"method": "fixmatch", "condition": "labels=20", "labels": 20, "variant": name}
    numbers = {"diff": diff, "diff_low": low, "diff_high": high, "pairs": pairs, "unpaired": 0}
    rest = {"p": 0.002, "p_holm": p_holm, "retuned": False, "metric": "val/accuracy"}
    return {**own, **numbers, **rest, **more}


def sentence(*rows):
    return list(comparison_sentences(pd.DataFrame(rows)))


def ablation(*rows, mode="max"):
    table = pd.DataFrame([variant("reference", pairs=NAN, p=NAN, p_holm=NAN), *rows])
    return list(ablation_sentences(table, {"fixmatch": mode}))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (difference(0.1, 0.05, 0.2), "beats"),
        (difference(-0.1, -0.2, -0.05), "loses"),
        (difference(0.1, 0.05, 0.2, p_holm=0.06), "leads"),
        (difference(-0.1, -0.2, -0.05, p_holm=0.05), "trails"),
        (difference(0.1, -0.05, 0.2, p=0.05, p_holm=0.2), "tie"),
        (difference(0.1, 0.1, 0.1, p=NAN, p_holm=NAN, n=3), "few pairs"),
        (difference(0.1, NAN, NAN, p=NAN, p_holm=NAN, n=1), "one pair"),
        (difference(NAN, NAN, NAN, n=0, unpaired=3), "apart"),
        (difference(NAN, NAN, NAN, n=0), "nothing"),
    ],
)
def test_a_win_takes_the_corrected_test(row, kind):
    assert verdict(row) == kind


def test_conditions_in_order_and_the_verdict_of_each():
    found = sentence(
        difference(0.07, 0.033, 0.101),
        difference(0.003, -0.004, 0.009, 1.0, 9, 200, p=0.4, seeds_needed=31),
    )
    assert found == [
        "a beats b at 20 labels by 7.0 points [3.3, 10.1], 10 paired seeds (Holm p = 0.01); "
        "they tie at 200 labels (+0.3 [-0.4, 0.9], 9 paired seeds; "
        "about 31 more seeds for a corrected p < 0.05, were the difference seen the true one)."
    ]


def test_what_more_seeds_are_for_is_said_once():
    own = {"p": 0.4, "p_holm": 0.8}
    ties = [difference(0.003, -0.004, 0.009, labels=n, seeds_needed=n, **own) for n in (20, 50)]
    (found,) = sentence(*ties)
    assert found.count("were the difference seen the true one") == 1
    assert (
        "about 20 more seeds for a corrected p < 0.05" in found and "about 50 more seeds)" in found
    )


def test_a_loss_is_told_with_its_ends_turned():
    assert sentence(difference(-0.03, -0.05, -0.01, p_holm=0.0001)) == [
        "a loses to b at 20 labels by 3.0 points [1.0, 5.0], 10 paired seeds (Holm p < 0.001)."
    ]


def test_significant_only_before_correction_says_so():
    rows = [difference(0.03, 0.01, 0.05, p_holm=0.08, n=6, labels=count) for count in (20, 50)]
    assert sentence(*rows) == [
        "a leads b at 20 labels by 3.0 points [1.0, 5.0], before correction only (Holm p = 0.08) "
        "and at 50 labels by 3.0 points [1.0, 5.0], before correction only (Holm p = 0.08); "
        "6 paired seeds each."
    ]


def test_conditions_with_the_same_label_count_are_named_in_full():
    rows = [difference(0.1, 0.05, 0.2, condition=name) for name in ("noise=0", "noise=1")]
    assert "under noise=0 by" in sentence(*rows)[0] and "under noise=1 by" in sentence(*rows)[0]


def test_nothing_in_common_is_said():
    assert sentence(difference(NAN, NAN, NAN, n=0)) == [
        "a and b share no seed with a test value at 20 labels."
    ]


def test_ablation_names_what_costs_most_and_what_makes_no_difference():
    found = ablation(
        variant("no_ramp_up", 0.001, -0.004, 0.006, p=0.6, p_holm=1.0),
        variant("no_entropy", -0.02, -0.03, -0.01, p_holm=0.03),
        variant("no_consistency", -0.051, -0.072, -0.03),
        variant("raw_clusters", 0.02, 0.01, 0.03, retuned=True),
    )
    assert found == [
        "Ablation of fixmatch at 20 labels, on validation: without consistency it loses most, "
        "5.1 points [3.0, 7.2], 10 paired seeds (Holm p = 0.01); without entropy it loses "
        "2.0 points [1.0, 3.0], 10 paired seeds (Holm p = 0.03); as raw_clusters (tuned again) it "
        "gains 2.0 points [1.0, 3.0], 10 paired seeds (Holm p = 0.01); no difference is seen "
        "without ramp_up (+0.1 [-0.4, 0.6]), 10 paired seeds."
    ]


def test_ablation_without_enough_seeds_or_values():
    found = ablation(
        variant("no_x", -0.05, pairs=1, p=NAN, p_holm=NAN),
        variant("only_y", pairs=0, p=NAN, p_holm=NAN),
    )
    assert found == [
        "Ablation of fixmatch at 20 labels, on validation: one paired seed only without x, which "
        "cannot tell chance from difference; no seed has a value to compare with y alone."
    ]
    assert ablation() == []
    assert list(ablation_sentences(pd.DataFrame(columns=list(variant("a"))), {})) == []


def test_ablation_of_a_loss_is_worse_when_higher_and_in_its_own_unit():
    row = variant("no_x", 0.25, 0.1, 0.4, metric="val/loss")
    assert ablation(row, mode="min")[0].endswith(
        "without x it loses 0.25 [0.1, 0.4], 10 paired seeds (Holm p = 0.01)."
    )


def test_too_many_seeds_are_not_counted():
    row = difference(0.1, -1, 1, p=0.9, p_holm=0.9, seeds_needed=math.inf)
    assert "; over 1,000 more seeds for" in sentence(row)[0]


def test_ablation_claims_a_loss_or_gain_only_after_correction():
    found = ablation(
        variant("no_x", -0.05, -0.08, -0.02, p_holm=0.2),
        variant("no_y", -0.03, -0.04, -0.02),
        variant("no_z", 0.03, 0.02, 0.04, p_holm=0.3),
    )
    assert found[0].split("validation: ")[1] == (
        "without x it trails by 5.0 points [2.0, 8.0], 10 paired seeds, before correction only "
        "(Holm p = 0.2); without y it loses 3.0 points [2.0, 4.0], 10 paired seeds (Holm p = 0.01); "
        "without z it leads by 3.0 points [2.0, 4.0], 10 paired seeds, before correction only "
        "(Holm p = 0.3)."
    )


def test_a_tie_has_the_sign_of_the_table_and_knn_is_in_points():
    row = variant("no_x", 0.1, -0.2, 0.4, p=0.4, p_holm=0.8, metric="val/loss")
    assert "without x (+0.1 [-0.2, 0.4])" in ablation(row, mode="min")[0]
    row = variant("no_x", -0.02, -0.03, -0.01, metric="val/knn@k200,t0.1")
    assert "without x it loses 2.0 points [1.0, 3.0]" in ablation(row)[0]
    assert metric_value(0.5, "val/knn@k200,t0.1") == "50.0"
    assert metric_value(0.5, "val/loss") == "0.5"
    assert value_scale(["val/knn@k200,t0.1", "val/accuracy"])[0] == 100
