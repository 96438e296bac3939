import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from analysis.numbers import comparisons, stats, tables
from analysis.numbers.stats import mean_interval
from analysis.read.load import load_runs
from analysis.read.values import NONE
from analysis.report.paper import PaperTable
from tests.analysis.conftest import shown
from tune_ssl.records import log, predictions


@pytest.fixture
def pair(tmp_path, write_run):
    """fixmatch, which is 10 points better, and supervised, with fewer trials."""
    better = write_run(tmp_path / "a", method="fixmatch", shift=0.1)
    base = write_run(tmp_path / "b", method="supervised", search=(("finished", 0.6, None),))
    return load_runs([better, base])


def test_results(pair):
    table = tables.results_table(pair)
    assert table[["condition", "method"]].to_numpy().tolist() == [
        ["data.num_labels=50", "fixmatch"],
        ["data.num_labels=50", "supervised"],
        ["data.num_labels=200", "fixmatch"],
        ["data.num_labels=200", "supervised"],
    ]
    values = np.array([0.80, 0.84, 0.82, 0.86, 0.83])
    assert table["mean"].to_list() == pytest.approx([0.93, 0.83, 0.96, 0.86])
    assert table["std"].to_list() == pytest.approx([values.std(ddof=1)] * 4)
    expected = mean_interval(values)
    assert table.loc[1, ["low", "high"]].to_list() == pytest.approx([expected.low, expected.high])
    assert table["best"].to_list() == [True, False, True, False]
    assert (table["n"] == 5).all() and (table["missing"] == 0).all()


def test_results_against_plain_pandas(pair):
    trials = pair.trials[pair.trials["phase"] == "confirm"]
    plain = trials.groupby(["condition", "label"])["test/mean_class_accuracy"].mean()
    found = tables.results_table(pair).set_index(["condition", "method"])["mean"]
    pd.testing.assert_series_equal(found.sort_index(), plain, check_names=False)


def scores(values, split="same", first=0):
    seeds = range(first, first + len(values))
    return pd.DataFrame(
        {"value": values, "split": [f"{split}-{seed}" for seed in seeds]}, index=list(seeds)
    )


def test_what_the_paired_test_does_not_tell_from_the_best_is_best(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50,))
    noisy = {0: 0.79, 1: 0.86, 2: 0.81, 3: 0.84, 4: 0.84}
    b = write_run(tmp_path / "b", method="uda", labels=(50,), confirm=noisy)
    # One point lower in every seed, and far inside the interval of the best.
    c = write_run(tmp_path / "c", method="kmeans", labels=(50,), shift=-0.01)
    table = tables.results_table(load_runs([a, b, c])).set_index("method")
    assert table["best"].to_dict() == {"fixmatch": True, "uda": True, "kmeans": False}
    assert table.loc["kmeans", "mean"] > table.loc["fixmatch", "low"]


def slow_not_worse(rows):
    """By scipy, for complete rows of pairs: the best, and what Holm's steps leave beside it."""
    top = int(np.argmax([np.mean(row) for row in rows]))
    left = [k for k in range(len(rows)) if k != top]
    p = {k: ttest_rel(rows[top], rows[k]).pvalue for k in left}
    while left:
        worst = min(left, key=p.get)
        if p[worst] * len(left) >= 0.05:
            break
        left.remove(worst)
    return [k == top or k in left for k in range(len(rows))]


def test_bold_agrees_with_a_slow_procedure():
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows = rng.normal([[0.0], [1.0], [1.5], [2.0]], 1, size=(4, 6))
        assert tables.not_worse([scores(row) for row in rows]) == slow_not_worse(rows)


def test_equal_methods_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    parted = 0
    for _ in range(200):
        shared = rng.normal(0, 1, size=6)
        rows = shared + rng.normal(0, 1, size=(4, 6))
        parted += not all(tables.not_worse([scores(row) for row in rows]))
    assert parted / 200 <= 0.08


def test_best_without_pairs_is_by_welchs_test():
    best, near, far = [0.90, 0.92, 0.91, 0.93], [0.89, 0.92, 0.90, 0.92], [0.5, 0.52, 0.51, 0.49]
    for own in ({"first": 4}, {"split": "other"}):  # other seeds; other labeled images
        found = tables.not_worse([scores(best), scores(near, **own), scores(far, **own)])
        assert found == [True, True, False]
    assert tables.not_worse([]) == []
    nothing = scores([np.nan, np.nan])
    assert tables.not_worse([nothing, scores(best)]) == [False, True]
    assert tables.not_worse([nothing]) == [False]
    # The highest mean is of one seed: nothing can be tested.
    assert tables.not_worse([scores([0.95]), scores(best)]) == [False, False]


def test_null_and_unfinished_confirm_trials_are_missing(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,), confirm={0: 0.8, 1: None, 2: 0.9})
    own = {"phase": log.CONFIRM}
    for trial, seed in (("c0-confirm-s3", 3), ("c0-confirm-s4", 4)):
        event(path, log.STARTED, trial, "data.num_labels=50", seed=seed, digest="g1", **own)
    metrics = {"test/mean_class_accuracy": 0.1}
    event(path, log.DIVERGED, "c0-confirm-s4", "data.num_labels=50", metrics=metrics, **own)
    row = tables.results_table(load_runs([path])).iloc[0]
    assert (row["n"], row["missing"]) == (2, 3)
    assert row["mean"] == pytest.approx(0.85)


def test_one_seed_has_no_interval_and_no_best(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="uda", labels=(50,), confirm={0: 0.8})
    b = write_run(tmp_path / "b", method="fixmatch", labels=(50,))
    table = tables.results_table(load_runs([a, b])).set_index("method")
    assert np.isnan(table.loc["uda", "low"])
    assert table["best"].to_dict() == {"uda": False, "fixmatch": True}
    assert "80.0 (no interval)" in PaperTable(table.reset_index(), "results").md


def test_a_second_lock_does_not_count(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,))
    more = {"phase": log.CONFIRM}
    event(path, log.LOCKED, "c0-t0005", "data.num_labels=50", digest="g5", **more)
    event(path, log.STARTED, "late", "data.num_labels=50", seed=9, config={"optim.lr": 0.5}, **more)
    metrics = {"test/mean_class_accuracy": 1.0}
    event(path, log.FINISHED, "late", "data.num_labels=50", metrics=metrics, **more)
    runs = load_runs([path])
    assert tables.results_table(runs)["mean"].to_list() == pytest.approx([0.83])
    assert tables.chosen_table(runs)["trial"].to_list() == ["c0-t0001"]


def test_budget(pair):
    table = tables.budget_table(pair).set_index(["condition", "method"])
    row = table.loc[("data.num_labels=50", "fixmatch")]
    assert row[["trials", "finished", "stopped_early", "diverged", "failed"]].to_list() == [
        6,
        3,
        1,
        1,
        1,
    ]
    assert row[["steps", "images_seen", "seconds", "running"]].to_list() == [600, 3840, 60, 0]
    assert row[["confirm_trials", "confirm_seconds"]].to_list() == [5, 60]
    assert row["flag"] == ""
    flag = table.loc[("data.num_labels=50", "supervised"), "flag"]
    assert flag == "trials 1 against 6; steps 100 against 600"


def test_steps_within_ten_percent_are_equal(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="uda", labels=(50,), steps=100)
    b = write_run(tmp_path / "b", method="fixmatch", labels=(50,), steps=91)
    assert tables.budget_table(load_runs([a, b]))["flag"].to_list() == ["", ""]


def test_trials(pair):
    table = tables.trial_table(pair)
    assert len(table) == len(pair.trials)
    row = table[(table["method"] == "fixmatch") & (table["trial"] == "c0-t0003")].iloc[0]
    assert row["config"] == "optim.lr=0.04"
    assert row["config.method.temperature"] == 0.5
    text = shown(table, "trials").iloc[3]
    assert (text["Status"], text["Validation"]) == ("diverged", NONE)
    assert text["Reason"] == "loss/total is nan at step 40"


def test_chosen(tmp_path, write_run):
    row = tables.chosen_table(load_runs([write_run(tmp_path / "a")])).iloc[0]
    assert (row["trial"], row["tuned"], row["ties"], row["digest"]) == ("c0-t0001", 0.81, 1, "g1")
    assert row["confirmed"] == pytest.approx(0.78) and row["confirmed_n"] == 5
    assert row["locked"] and row["rule_agrees"] and row["opened"] == 1_760_000_000
    row = tables.chosen_table(load_runs([write_run(tmp_path / "b", confirm={})])).iloc[0]
    assert not row["locked"] and np.isnan(row["confirmed"])
    assert (row["trial"], row["ties"], row["config"]) == ("c0-t0001", 1, "optim.lr=0.02")


def test_stability(tmp_path, write_run):
    row = tables.stability_table(load_runs([write_run(tmp_path / "a")])).iloc[0]
    assert row[["trials", "finished", "diverged", "failed"]].to_list() == [22, 16, 2, 2]
    assert row["reasons"] == "2 x loss/total is nan at step 40; 2 x out of memory"


def test_empty_run(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", search=(), confirm={})])
    assert tables.results_table(runs).empty and tables.chosen_table(runs).empty
    assert tables.trial_table(runs).empty
    assert tables.budget_table(runs)["trials"].to_list() == [0, 0]


def test_models_of_unequal_length_are_flagged(tmp_path, write_run):
    long = write_run(tmp_path / "a", method="fixmatch", labels=(50,))
    short = write_run(tmp_path / "b", method="uda", labels=(50,))
    text = (short / "trials.jsonl").read_text().splitlines()
    text = [
        line.replace('"step": 100', '"step": 60') if '"phase": "confirm"' in line else line
        for line in text
    ]
    (short / "trials.jsonl").write_text("\n".join(text) + "\n")
    budget = tables.budget_table(load_runs([long, short])).set_index("method")
    assert budget["model_steps"].to_dict() == {"fixmatch": 100, "uda": 60}
    assert budget["flag"].to_dict() == {"fixmatch": "", "uda": "steps of a model 60 against 100"}


def test_ties_are_counted_among_all_that_finished_and_not_among_the_finalists(
    tmp_path, write_run, event
):
    """Seven finished within 8 points; two of them ran again on further seeds."""
    search = tuple((log.FINISHED, 0.80 - n / 200, None) for n in range(7))
    path = write_run(tmp_path / "a", labels=(50,), search=search, confirm={})
    for trial in ("c0-t0000", "c0-t0001"):
        own = {"phase": log.FINALIST, "repeats": trial, "seed": 101, "config": {}, "number": 9}
        event(path, log.STARTED, f"{trial}-again", "data.num_labels=50", **own)
        ending = {"phase": log.FINALIST, "value": 0.7, "step": 100, "metrics": {}}
        event(path, log.FINISHED, f"{trial}-again", "data.num_labels=50", **ending)
    (row,) = tables.chosen_table(load_runs([path])).to_dict("records")
    assert row["trial"] == "c0-t0000" and row["ties"] == 6


def test_the_doubt_of_the_images_stands_beside_that_of_the_seeds(tmp_path, write_run):
    """Each seed is right on most of 40 images; the paired difference is of the same images."""
    rng = np.random.default_rng(0)
    true = np.arange(40) % 2
    paths, right = [], {}
    for method in ("supervised", "fixmatch"):
        path = write_run(tmp_path / method, method=method, labels=(50,))
        for seed in range(5):
            right[method, seed] = rng.random(40) < 0.8
            line = {
                "trial": f"c0-confirm-s{seed}",
                "condition": "data.num_labels=50",
                "seed": seed,
                "test": predictions.record_of_test(true, right[method, seed]),
                "pool": None,
            }
            log.append(path / log.PREDICTIONS, line)
        paths.append(path)
    runs = load_runs(paths)
    table = tables.results_table(runs).set_index("method")
    differences = comparisons.difference_table(runs)
    ours = {m: np.array([right[m, s] for s in range(5)], dtype=float) for m in table.index}
    for method, scores in ours.items():
        expected = stats.seeds_and_images(scores, true)
        found = table.loc[method]
        assert (found["images_low"], found["images_high"]) == (expected.low, expected.high)
    expected = stats.seeds_and_images(ours["fixmatch"] - ours["supervised"], true)
    (row,) = differences.to_dict("records")
    assert (row["images_low"], row["images_high"]) == (expected.low, expected.high)
    # Of a run that was begun by an earlier version some seeds are not on record: then there is no interval
    runs.predictions[runs.studies[0].run].pop("c0-confirm-s3")
    gone = tables.results_table(runs).set_index("method")["images_low"]
    assert np.isnan(gone["supervised"]) and not np.isnan(gone["fixmatch"])
    assert comparisons.difference_table(runs)["images_low"].isna().all()
    runs = load_runs(paths)
    text = shown(tables.results_table(runs), "results")["Seeds and images, %"][0]
    assert text.startswith("[") and "," in text


def test_writers(pair, tmp_path):
    table = tables.results_table(pair)
    paths = PaperTable(table, "results", "Means in %.").write(tmp_path / "out")
    assert [path.name for path in paths] == ["results.csv", "results.md", "results.tex"]
    again = pd.read_csv(paths[0])
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert "| **93.0 [90.2, 95.8]** |" in paths[1].read_text()
    tex = paths[2].read_text()
    assert r"\caption{Means in \%.}" in tex and r"\toprule" in tex
    assert r"50 & fixmatch & \textbf{93.0 [90.2, 95.8]} &" in tex
    assert r"supervised & 83.0 [80.2, 85.8] &" in tex


def test_latex_and_markdown_escape():
    table = pd.DataFrame({"a_b": ["50% & #1\n{x}~^\\", None]})
    tex = PaperTable(table, "other").latex
    assert r"a\_b" in tex
    assert r"50\% \& \#1 \{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} \\" in tex
    assert r"a\_b" in PaperTable(table, "other").md
    assert f"| {NONE} |" in PaperTable(table, "other").md
    assert r"x\|y" in PaperTable(pd.DataFrame({"a": ["x|y"]}), "other").md
