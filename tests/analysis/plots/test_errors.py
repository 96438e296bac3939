import json

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from analysis.numbers.stats import mean_interval
from analysis.plots import calibration, errors, style
from analysis.read.load import load_runs
from tests.analysis.conftest import checked
from tune_ssl.records import log
from tune_ssl.training import metrics

NAMES = ("ant", "bee", "cat")


def rewrite(path, change):
    """Apply `change(seed, metrics)` to the ending of each confirm trial of a run folder."""
    lines = [json.loads(line) for line in (path / log.TRIALS).read_text().splitlines()]
    for event in lines:
        if event["phase"] == log.CONFIRM and event["event"] == log.FINISHED:
            change(int(event["trial"].rsplit("s", 1)[-1]), event["metrics"])
    (path / log.TRIALS).write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def guesses(seed, classes=3, images=60):
    """True and predicted labels: a fixed test set, `seed` the network. The last class is never given."""
    true = np.random.default_rng(99).integers(classes, size=images)
    rng = np.random.default_rng(seed)
    wrong = rng.random(images) < 0.3
    return true, np.where(wrong, rng.integers(classes - 1, size=images), true % (classes - 1))


def confuse(classes=3):
    def change(seed, found):
        counts = metrics.confusion_matrix(*guesses(seed, classes), classes)
        found["test/confusion"] = counts.tolist()

    return change


@pytest.fixture(name="cells")
def _cells(tmp_path, write_run):
    path = rewrite(write_run(tmp_path / "a", labels=(50,), classes=NAMES), confuse())
    return list(errors.confusions(load_runs([path])))


def test_confusion_is_the_mean_share_over_seeds(cells):
    table = errors.confusion_table(cells)
    pairs = [guesses(seed) for seed in range(5)]
    assert len(table) == 6  # cells without images are left out: the last class is never given
    for row in table.to_dict("records"):
        i, j = NAMES.index(row["true"]), NAMES.index(row["predicted"])
        counts = [int(np.sum((true == i) & (given == j))) for true, given in pairs]
        images = [int(np.sum(true == i)) for true, _ in pairs]
        assert (row["count"], row["images"], row["n"]) == (sum(counts), sum(images), 5)
        shares = [c / n for c, n in zip(counts, images, strict=True)]
        assert row["share"] == pytest.approx(np.mean(shares))


def test_the_confusion_figure_draws_the_table(cells):
    table = errors.confusion_table(cells)
    figure = checked(errors.confusion_figure(table, list(NAMES)))
    (heat,) = figure.data
    for row in table.to_dict("records"):
        i, j = NAMES.index(row["true"]), NAMES.index(row["predicted"])
        assert heat.z[i][j] == pytest.approx(100 * row["share"], rel=1e-6)
        assert heat.customdata[i][j] == row["count"]
        assert heat.text[i][j] == f"{100 * row['share']:.0f}"
    assert list(heat.z[:, 2]) == [0, 0, 0] and list(heat.x) == list(NAMES)
    assert figure.layout.yaxis.autorange == "reversed"  # the first class is at the top


def test_classes_agree_with_scikit_learn(cells):
    table = errors.class_table(cells)
    found = [
        precision_recall_fscore_support(*guesses(seed), labels=range(3), zero_division=0)
        for seed in range(5)
    ]
    for row in table.to_dict("records"):
        k, m = NAMES.index(row["class"]), errors.MEASURES.index(row["measure"])
        expected = mean_interval([values[m][k] for values in found])
        mine = (row["mean"], row["low"], row["high"], row["n"])
        assert mine == pytest.approx((expected.mean, expected.low, expected.high, 5))
    assert len(table) == 9
    last = table[(table["class"] == "cat") & (table["measure"] == "precision")]
    assert last["mean"].to_list() == [0]


def test_classes_agree_with_the_macro_metrics(cells):
    table = errors.class_table(cells)
    per_seed = [metrics.macro_scores(*guesses(seed)) for seed in range(5)]
    for measure, expected in zip(errors.MEASURES, np.mean(per_seed, axis=0), strict=True):
        own = table[table["measure"] == measure]
        assert own["mean"].mean() == pytest.approx(expected)


def test_the_class_figure_draws_the_table(cells):
    table = errors.class_table(cells)
    figure = checked(errors.class_figure(table, {"soft_kmeans": "#0072B2"}))
    for trace, measure in zip(figure.data, errors.MEASURES, strict=True):
        own = table[table["measure"] == measure]
        assert list(trace.y) == pytest.approx(list(100 * own["mean"]))
        assert list(trace.x) == [0, 1, 2]
        assert list(trace.error_y.array) == pytest.approx(list(100 * (own["high"] - own["mean"])))


def test_a_class_without_test_images_is_absent(tmp_path, write_run):
    def change(seed, found):
        found["test/confusion"] = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]

    path = rewrite(write_run(tmp_path / "a", labels=(50,), classes=NAMES), change)
    cells = list(errors.confusions(load_runs([path])))
    table = errors.class_table(cells)
    assert set(table["class"]) == {"ant", "bee"} and table["mean"].notna().all()
    heat = checked(errors.confusion_figure(errors.confusion_table(cells), list(NAMES))).data[0]
    assert np.isnan(heat.z[2]).all() and list(heat.text[2]) == ["", "", ""]


@pytest.mark.parametrize("classes", [2, 31, 100])
def test_any_number_of_classes(tmp_path, write_run, classes):
    names = tuple(f"class number {number}" for number in range(classes))
    path = rewrite(write_run(tmp_path / "a", labels=(50,), classes=names), confuse(classes))
    runs = load_runs([path])
    whole, matrix = errors.plots(runs, {}, style.colours(runs.labels))
    ticks = checked(matrix.figure).layout.xaxis
    assert len(ticks.tickvals) == min(classes, 16) or 12 < len(ticks.tickvals) <= 16
    assert max(map(len, ticks.ticktext)) <= 12 and ticks.ticktext[0] == "class…mber 0"
    assert (checked(matrix.figure).data[0].text is None) == (classes > 30)
    assert (
        len(json.dumps(matrix.figure.to_dict())) < 170_000
        and len(json.dumps(whole.figure.to_dict())) < 60_000
    )


def test_matrices_that_do_not_fit_are_left_out_and_said(tmp_path, write_run):
    bad = {
        0: [[1, 2], [3, 4]],
        1: [[1, 2, 3], [4]],
        2: None,
        3: [[1, 0, float("nan")], [0, 1, 0], [0, 0, 1]],
    }

    def change(seed, found):
        good = metrics.confusion_matrix(*guesses(seed), 3).tolist()
        found["test/confusion"] = bad.get(seed, good)

    path = rewrite(write_run(tmp_path / "a", labels=(50,), classes=NAMES), change)
    runs = load_runs([path])
    plots = list(errors.plots(runs, {}, style.colours(runs.labels)))
    assert "1 fresh seed per mean" in plots[1].caption
    # Seed 2 has none at all.
    assert "3 trial(s) whose matrix does not fit the classes are left out" in plots[1].caption
    assert set(plots[0].table["n"]) == {1} and plots[0].table["low"].isna().all()


def bins_of(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((0.5, 0.5, 0.5), size=80)
    labels = np.where(rng.random(80) < 0.6, probabilities.argmax(axis=1), rng.integers(3, size=80))
    return probabilities, labels


@pytest.fixture(name="calibrated")
def _calibrated(tmp_path, write_run):
    def change(seed, found):
        found["test/reliability"] = metrics.reliability(*bins_of(seed)).tolist()

    return load_runs([rewrite(write_run(tmp_path / "a", labels=(50,)), change)])


def test_reliability_pools_the_seeds_and_leaves_empty_bins_out(calibrated):
    table = calibration.reliability_table(calibrated)
    data = [bins_of(seed) for seed in range(5)]
    confidence = np.concatenate([probabilities.max(axis=1) for probabilities, _ in data])
    right = np.concatenate([p.argmax(axis=1) == labels for p, labels in data])
    assert table["images"].sum() == 400 and (table["images"] > 0).all()
    assert table["high"].min() > 1 / 3  # three classes: no confidence is below a third
    for row in table.to_dict("records"):
        own = (confidence > row["low"]) & (confidence <= row["high"])
        assert row["images"] == own.sum()
        assert row["confidence"] == pytest.approx(confidence[own].mean())
        assert row["accuracy"] == pytest.approx(right[own].mean())


def test_the_calibration_error_is_the_mean_of_the_seeds(calibrated):
    table = calibration.reliability_table(calibrated)
    expected = mean_interval(
        [metrics.expected_calibration_error(*bins_of(seed)) for seed in range(5)]
    )
    row = table.iloc[0]
    mine = (row["ece"], row["ece_low"], row["ece_high"], row["n"])
    assert mine == pytest.approx((expected.mean, expected.low, expected.high, 5))
    (plot,) = calibration.plots(calibrated, {}, style.colours(calibrated.labels))
    assert f"soft_kmeans {100 * expected.mean:.1f} [" in plot.caption
    (trace,) = checked(plot.figure).data
    assert list(trace.y) == pytest.approx(list(100 * table["accuracy"]))
    assert list(trace.customdata[:, 2]) == list(table["images"])
    assert sum(trace.marker.size) == pytest.approx(1)


def test_old_runs_without_matrices_have_no_figure(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a")])
    assert calibration.reliability_table(runs).empty
    assert list(calibration.plots(runs, {}, style.colours(runs.labels))) == []
    runs.trials = runs.trials.drop(columns="test/confusion")
    assert list(errors.plots(runs, {}, style.colours(runs.labels))) == []
