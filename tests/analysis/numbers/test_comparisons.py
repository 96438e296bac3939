import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.numbers import comparisons, stats
from analysis.numbers.helps import questions
from analysis.numbers.tables import chosen_table, results_table
from analysis.read.load import load_runs
from analysis.read.values import NONE
from analysis.report.report import all_tables
from analysis.words.answer import answer_lines
from analysis.words.summary import summary
from tests.analysis.conftest import shown

SEEDS = range(8)
BASE = dict(zip(SEEDS, (0.80, 0.84, 0.82, 0.86, 0.83, 0.81, 0.85, 0.79), strict=True))
GAIN = (0.05, 0.07, 0.06, 0.04, 0.08, 0.05, 0.06, 0.07)
NOISE = (0.02, -0.03, 0.01, -0.02, 0.03, -0.01, 0.02, -0.015)
BETTER = {seed: BASE[seed] + GAIN[seed] for seed in SEEDS}
SAME = {seed: BASE[seed] + NOISE[seed] for seed in SEEDS}


@pytest.fixture
def three(tmp_path, write_run):
    """supervised; fixmatch, which wins every pair; and uda, which does not differ."""
    folders = [
        write_run(tmp_path / method, method=method, confirm=values)
        for method, values in (("supervised", BASE), ("fixmatch", BETTER), ("uda", SAME))
    ]
    return load_runs(folders)


def sentences(runs):
    results, differences = results_table(runs), comparisons.difference_table(runs)
    return summary(runs, results, chosen_table(runs), differences)


def test_differences(three):
    table = comparisons.difference_table(three)
    assert table["method"].to_list() == ["fixmatch", "uda"] * 2
    assert set(table["reference"]) == {"supervised"}
    row = table.iloc[0]
    expected = stats.mean_interval(GAIN)
    assert row[["mean", "low", "high"]].to_list() == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )
    assert (row["n"], row["unpaired"], row["p_sign_flip"]) == (8, 0, 2**-7)
    t_test = scipy_stats.ttest_rel(list(BETTER.values()), list(BASE.values()))
    assert row["p"] == pytest.approx(t_test.pvalue)
    assert row["p_better"] == 1 and row["p_better_low"] == pytest.approx(0.025 ** (1 / 8))
    assert table["p_holm"].to_list() == pytest.approx(stats.holm(table["p"].to_list()))
    assert table["p_holm"].iloc[0] == pytest.approx(4 * t_test.pvalue)
    undecided = stats.seeds_for_decision(NOISE, 4)
    assert table["seeds_needed"].to_list() == [0, undecided] * 2
    text = shown(table, "differences").iloc[0]
    assert (text["p"], text["p, Holm"], text["Pairs"]) == ("< 0.001", "< 0.001", "8")
    assert text["p, sign flip"] == "0.0078"
    assert text["P(better), %"] == "100.0 [63.1, 100.0]"


def test_differences_only_between_the_same_labeled_images(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="uda", labels=(50,), confirm={0: 0.8, 1: 0.9, 7: 0.1})
    b = write_run(tmp_path / "b", method="fixmatch", labels=(50,), split="other")
    runs = load_runs([a, b])
    table = comparisons.difference_table(runs)
    row = table.iloc[0]
    assert (row["reference"], row["n"], row["unpaired"]) == ("uda", 0, 2)
    assert math.isnan(row["p"]) and math.isnan(row["p_holm"])
    assert shown(table, "differences").iloc[0]["Points"] == NONE
    assert comparisons.difference_table(load_runs([a])).empty
    lines = sentences(runs)
    said = (
        "fixmatch and uda share no split, and are not compared, at 50 labels "
        "(2 seeds with different splits)."
    )
    assert lines[0] == said
    assert not any("ahead" in line or "Highest" in line for line in lines)
    pooled = comparisons.gain_table(runs)
    assert pooled["mean"].isna().all() and pooled["p"].isna().all()
    assert pooled["left_out"][0] == "data.num_labels=50: no seed and split in common"


def test_gains_are_means_over_conditions_with_seeds_as_units(three):
    table = comparisons.gain_table(three)
    assert table["method"].to_list() == ["fixmatch", "uda"]  # the best first
    trials = three.trials[three.trials["phase"] == "confirm"]
    values = trials.pivot_table(
        index="seed", columns=["label", "condition"], values="test/mean_class_accuracy"
    )
    for row in table.to_dict("records"):
        gains = [
            np.mean(
                [values[row["method"], c][s] - values["supervised", c][s] for c in values["uda"]]
            )
            for s in SEEDS
        ]
        expected = stats.mean_interval(gains)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(
            (expected.mean, expected.low, expected.high)
        )
        assert row["p"] == pytest.approx(scipy_stats.ttest_1samp(gains, 0).pvalue)
        assert row["score"] == pytest.approx(values[row["method"]].to_numpy().mean())
        assert (row["n"], row["conditions"], row["left_out"]) == (8, 2, "")
    assert table["p_holm"].to_list() == pytest.approx(stats.holm(table["p"].to_list()))


def test_a_collapse_at_one_label_count_counts_in_the_mean_gain(tmp_path, write_run):
    """A method loses 20 points with the fewest labels, and gains 2 elsewhere."""
    shifts = {20: -0.2, 50: 0.02, 100: 0.02, 200: 0.02}
    runs = load_runs(
        [
            write_run(
                tmp_path / "a",
                method="supervised",
                labels=(*shifts,),
                confirm=BASE,
                shift=dict.fromkeys(shifts, 0.0),
            ),
            write_run(tmp_path / "b", method="uda", labels=(*shifts,), confirm=BASE, shift=shifts),
        ]
    )
    (row,) = comparisons.gain_table(runs).to_dict("records")
    assert row["mean"] == pytest.approx(-0.035)


def test_only_what_all_methods_share_is_pooled_and_the_rest_is_named(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50, 200), confirm=BASE)
    some = {**BASE, 3: None}
    b = write_run(tmp_path / "b", method="supervised", labels=(50, 99), confirm=some)
    c = write_run(tmp_path / "c", method="uda", confirm={})
    (row,) = comparisons.gain_table(load_runs([a, b, c])).to_dict("records")
    assert (row["method"], row["reference"]) == ("fixmatch", "supervised")
    assert (row["conditions"], row["n"]) == (1, 7)
    assert row["left_out"] == (
        "uda: no test value; data.num_labels=200: no seed and split in common; "
        "data.num_labels=99: no seed and split in common; 1 seed(s) that some method or condition lacks"
    )
    kept = [value for seed, value in BASE.items() if seed != 3]
    assert row["score"] == pytest.approx(np.mean(kept))


def test_nothing_confirmed_or_nothing_at_all(tmp_path, write_run):
    for name, more in (("a", {}), ("b", {"search": ()})):
        runs = load_runs([write_run(tmp_path / name, confirm={}, **more)])
        assert comparisons.difference_table(runs).empty
        assert comparisons.gain_table(runs).empty


def test_summary_says_who_beats_the_baseline(three):
    lines = sentences(three)
    assert lines[0].startswith("Highest mean per-class accuracy on test: fixmatch at 50 labels (")
    low, high = (
        100 * end for end in (stats.mean_interval(GAIN).low, stats.mean_interval(GAIN).high)
    )
    size = f"by 6.0 points [{low:.1f}, {high:.1f}] (Holm p < 0.001)"
    assert lines[1] == (
        f"fixmatch beats supervised at 50 labels {size} and at 200 labels {size}; "
        "8 paired seeds each."
    )
    assert lines[2].startswith("uda and supervised tie at 50 labels (+0.1 [") and (
        "were the difference seen the true one) and at 200 labels (" in lines[2]
    )
    assert "8 paired seeds each." in lines[2]


def test_the_table_and_the_sentence_ask_for_the_same_seeds(tmp_path, write_run):
    some = dict(zip(SEEDS, (0.03, -0.02, 0.04, 0.0, 0.03, -0.01, 0.02, 0.01), strict=True))
    found = {seed: BASE[seed] + gain for seed, gain in some.items()}
    a = write_run(tmp_path / "a", method="supervised", confirm=BASE)
    runs = load_runs([a, write_run(tmp_path / "b", method="uda", confirm=found)])
    table = comparisons.difference_table(runs)
    asked = stats.seeds_for_decision(some.values(), 2)  # two conditions, two comparisons
    assert table["seeds_needed"].to_list() == [asked, asked] and 1 < asked < 100
    assert shown(table, "differences")["More pairs needed"].to_list() == [f"{asked:.0f}"] * 2
    line = sentences(runs)[1]
    assert line.startswith("uda and supervised tie at 50 labels (+1.3 [")
    assert f"; about {asked:.0f} more seeds for a corrected p < 0.05" in line


def test_a_loss_of_fifty_points_in_five_seeds_is_a_loss(tmp_path, write_run):
    """Among ten comparisons, of which nine show nothing."""
    labels = tuple(range(10, 110, 10))
    base = {seed: BASE[seed] for seed in range(5)}
    low = {seed: BASE[seed] - 0.5 + NOISE[seed] for seed in range(5)}
    same = {seed: SAME[seed] for seed in range(5)}
    folders = [
        write_run(tmp_path / "a", method="supervised", labels=labels, confirm=base),
        write_run(tmp_path / "b", method="kmeans", labels=labels[:1], confirm=low),
        write_run(tmp_path / "c", method="uda", labels=labels[1:], confirm=same),
    ]
    runs = load_runs(folders)
    table = comparisons.difference_table(runs)
    row = table[table["method"] == "kmeans"].iloc[0]
    assert len(table) == 10 and row["p_holm"] < 0.001 and row["p_sign_flip"] > 0.05
    (line,) = [line for line in sentences(runs) if line.startswith("kmeans loses")]
    assert line.startswith("kmeans loses to supervised at 10 labels by 49.8 points [")
    assert line.endswith("5 paired seeds (Holm p < 0.001).")
    assert results_table(runs).set_index("method")["best"]["kmeans"].sum() == 0


def test_one_seed_says_nothing(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50,), confirm={0: 0.9})
    b = write_run(tmp_path / "b", method="supervised", labels=(50,), confirm={0: 0.8})
    lines = sentences(load_runs([a, b]))
    assert lines[1] == (
        "One paired seed cannot tell fixmatch and supervised apart at 50 labels (+10.0 points)."
    )


def test_each_condition_has_the_supervised_run_that_has_it_for_its_reference(tmp_path, write_run):
    fixmatch = write_run(tmp_path / "c", method="fixmatch", labels=(50, 200, 800), confirm=BETTER)
    folders = [
        write_run(tmp_path / "a", method="supervised", labels=(50,), confirm=BASE),
        write_run(tmp_path / "b", method="supervised", labels=(50, 200), confirm=BASE),
        fixmatch,
        write_run(tmp_path / "d", method="uda", labels=(800,), confirm=BASE),
    ]
    table = comparisons.difference_table(load_runs(folders))
    assert table[["method", "reference", "labels"]].to_numpy().tolist() == [
        ["b", "a", 50],
        ["fixmatch", "a", 50],
        ["fixmatch", "b", 200],
        ["uda", "fixmatch", 800],
    ]


def test_one_condition_id_with_two_label_counts_is_not_compared(tmp_path, write_run):
    own = {"conditions": ["noise=0"], "confirm": BASE}
    a = write_run(tmp_path / "a", method="supervised", labels=(50,), **own)
    b = write_run(tmp_path / "b", method="fixmatch", labels=(60,), shift=0.1, **own)
    runs = load_runs([a, b])
    assert comparisons.difference_table(runs).empty
    assert comparisons.shared_scores(runs).left_out == "noise=0: no seed and split in common"
    lines = sentences(runs)
    assert lines[0].startswith("Under noise=0 with 50 labels, supervised reaches 82.5 %")
    assert lines[1].startswith("Under noise=0 with 60 labels, fixmatch reaches 92.5 %")


def test_a_run_without_conditions_is_an_empty_report(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=())])
    assert comparisons.shared_scores(runs).conditions == []
    assert all(table.empty for stem, table in all_tables(runs).items() if stem != "stability")


def test_the_answer_and_the_grid_have_one_p_for_one_comparison(three):
    """The floor is the reference: what helps is what the table of differences says."""
    differences = comparisons.difference_table(three)
    stated = {(row["method"], row["condition"]): row["p_holm"] for row in rows_of(differences)}
    found = questions(three, differences)
    assert len(found) == 2
    for question in found:
        assert question.floor == "supervised"
        for one in question.contenders:
            assert one.family == 0 and one.p_holm == stated[one.label, question.condition[0]]


def test_where_all_conditions_have_as_many_labels_the_answer_names_the_conditions(
    tmp_path, write_run
):
    own = {"conditions": ["data.imbalance=1", "data.imbalance=10"], "labels": (50, 50)}
    a = write_run(tmp_path / "a", method="supervised", confirm=BASE, **own)
    b = write_run(tmp_path / "b", method="fixmatch", confirm=BETTER, **own)
    runs = load_runs([a, b])
    lines = [*answer_lines(runs, questions(runs, comparisons.difference_table(runs)))]
    assert [line.partition(":")[0] for line in lines[:2]] == [
        "Under data.imbalance=1",
        "Under data.imbalance=10",
    ]
    assert lines[2] == (
        "in short: a method that uses the unlabeled images helps in every condition tried"
    )


def test_against_another_floor_the_answer_names_its_family(tmp_path, write_run):
    """A method without unlabeled images that beats supervised is the floor."""
    raised = {seed: value + 0.02 for seed, value in SAME.items()}
    folders = [
        write_run(tmp_path / name, method=name, labels=(50,), confirm=values)
        for name, values in (("supervised", BASE), ("logistic_regression", raised), ("uda", BETTER))
    ]
    study = folders[1] / "study.yaml"
    study.write_text(study.read_text() + "unlabeled: false\n")
    runs = load_runs(folders)
    (question,) = questions(runs, comparisons.difference_table(runs))
    assert question.floor == "logistic_regression"
    (one,) = question.contenders
    assert one.family == 1
    assert one.p_holm == pytest.approx(
        scipy_stats.ttest_rel(list(BETTER.values()), list(raised.values())).pvalue
    )


def rows_of(table):
    return table.to_dict("records")
