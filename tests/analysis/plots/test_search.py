"""Figures of the search: their tables against slow loops, and that they draw them."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from analysis.numbers.early import early_ranks
from analysis.numbers.importance import COLUMNS
from analysis.plots import (
    contour,
    expected,
    importance,
    parallel,
    rungs,
    search,
    slices,
    stability,
    style,
)
from analysis.read.load import load_runs
from analysis.read.search_space import Key, finished, search_cells, searched_keys
from tests.analysis.conftest import checked

SOURCES = (search, expected, rungs, slices, parallel, importance, stability)
SPACE = {
    "optim.lr": {"log_uniform": [1e-4, 1e-1]},
    "method.aug": {"choice": [None, True, 1, "strong"]},
    "method.m": {"int": [1, 10]},
    "losses.cluster.weight": {"uniform": [0.0, 2.0]},
}
BAD = ("diverged", "collapsed", "failed")


def some_trials(count=24, seed=0, bad=True):
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        config = {
            "optim.lr": float(10 ** rng.uniform(-4, -1)),
            "method.aug": [None, True, 1, "strong"][number % 4],
            "method.m": int(rng.integers(1, 11)),
            "losses.cluster.weight": float(rng.uniform(0, 2)),
        }
        value = float(0.9 - 0.1 * (math.log10(config["optim.lr"]) + 2) ** 2)
        more = {"history": {20: value - 0.2, 60: value - 0.1, 100: value}}
        if bad and number % 5 == 4:
            more = {"status": "stopped_early", "step": 60, "history": {20: 0.1, 60: 0.2}}
        if bad and number % 7 == 6:
            more = {"status": "diverged", "step": 30, "history": {20: 0.3}}
            value = None
        if bad and number == count - 1:
            more = {"status": None, "history": {20: 0.4}}
        found.append((value, config | more))
    return found


def every_plot(runs):
    colours = style.colours(runs.labels)
    return [plot for source in SOURCES for plot in source.plots(runs, {}, colours)]


def drawn(figure, axis):
    """All numbers of the traces, without the legend's own."""
    values = [value for trace in figure.data for value in np.ravel(getattr(trace, axis))]
    return sorted(float(value) for value in values if value is not None)


@pytest.fixture(name="runs")
def _runs(tmp_path, searched_run):
    return load_runs([searched_run(tmp_path / "a", some_trials(), SPACE, searcher="random")])


# Keys


def test_keys_and_where_trials_stand(runs):
    weight, aug, m, lr = searched_keys(runs.studies[0])  # in the order of the file
    assert (lr.log, m.whole, aug.choices) == (True, True, (None, True, 1, "strong"))
    assert aug.column(runs.trials).to_list() == [number % 4 for number in range(24)]
    assert lr.unit(pd.Series([1e-4, 1e-1, 10**-2.5])).to_list() == pytest.approx([0, 1, 0.5])
    assert m.unit(pd.Series([1, 10])).to_list() == pytest.approx([0.05, 0.95])
    for key in (lr, m, weight):
        parts = pd.Series([0.1, 0.5])
        assert key.unit(key.place(parts)).to_list() == pytest.approx([0.1, 0.5])


def test_whole_numbers_that_a_table_turned_into_floats_are_still_choices():
    key = Key("choice", (8, 16, None), name="x")
    table = pd.DataFrame({"config.x": [8.0, 16.0, math.nan, 9.0]})
    assert key.column(table).to_list()[:3] == [0, 1, 2] and math.isnan(key.column(table)[3])


def test_leaves_that_are_no_domain_are_no_keys(tmp_path, searched_run):
    search = {"a": 3, "b": {"choice": [1]}, "c": {"uniform": [2, 1]}, "d": {"int": "x"}}
    runs = load_runs([searched_run(tmp_path / "a", some_trials(), search)])
    assert searched_keys(runs.studies[0]) == []
    assert {plot.section for plot in every_plot(runs)} == {"search", "stability"}


# Progress and cost


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_against_compute_is_a_running_sum(tmp_path, searched_run, mode):
    runs = load_runs([searched_run(tmp_path / "a", some_trials(), SPACE, mode=mode)])
    table = search.search_cost(runs)
    steps, best, expected_rows = 0.0, None, []
    pick = max if mode == "max" else min
    for row in runs.trials[runs.trials["status"] != "running"].to_dict("records"):
        steps += row["step"]
        if row["status"] == "finished":
            best = row["value"] if best is None else pick(best, row["value"])
        if best is not None:
            expected_rows.append((row["trial"], steps, steps / 10, best))
    found = table[["trial", "steps", "seconds", "best"]].itertuples(index=False, name=None)
    for ours, theirs in zip(found, expected_rows, strict=True):
        assert ours[0] == theirs[0] and ours[1:] == pytest.approx(theirs[1:])
    figure = checked(search.search_cost_figure(table, style.colours(runs.labels)))
    by_steps, by_seconds = figure.data
    assert list(by_steps.x) == list(table["steps"]) and list(by_seconds.x) == list(table["seconds"])
    assert list(by_steps.y) == pytest.approx(list(100 * table["best"]))


def test_many_trials_are_thinned_but_not_their_best(runs):
    progress = search.search_progress(runs)
    kept = search.thinned(progress, 5)
    best = progress["best"].dropna().drop_duplicates()
    assert set(best) <= set(kept["best"]) and len(kept) < len(progress)
    assert search.subset_note(len(kept), 24) == f" A random {len(kept)} of 24 trials are drawn."
    assert search.thinned(progress, 24) is progress


# Expected best


def brute_force(values, k, mode="max"):
    pick = max if mode == "max" else min
    return np.mean([pick(chosen) for chosen in itertools.combinations(values, k)])


@pytest.mark.parametrize("mode", ["max", "min"])
def test_expected_best_is_the_mean_over_all_subsets(tmp_path, searched_run, mode):
    trials = some_trials(9, bad=False)
    path = searched_run(tmp_path / "a", trials, SPACE, searcher="random", mode=mode)
    runs = load_runs([path])
    table = expected.expected_best(runs)
    values = list(finished(runs.trials)["value"])
    assert table["trials"].to_list() == list(range(1, len(values) + 1))
    assert table["mean"].to_list() == pytest.approx(
        [brute_force(values, k, mode) for k in table["trials"]]
    )
    assert (table["low"] <= table["high"]).all() and (table["n"] == len(values)).all()
    figure = checked(expected.expected_figure(table, style.colours(runs.labels)))
    assert list(figure.data[1].y) == pytest.approx(list(100 * table["mean"]))


def test_no_expected_best_where_a_trial_did_not_finish(tmp_path, searched_run):
    path = searched_run(tmp_path / "a", some_trials(9), SPACE, searcher="random")
    runs = load_runs([path])
    assert (runs.trials["status"] == "stopped_early").any()
    assert expected.expected_best(runs).empty


def test_expected_best_weights_do_not_overflow():
    weights = expected.best_of_weights(5000, np.array([1, 2500, 5000]))
    assert weights.sum(axis=0) == pytest.approx([1, 1, 1]) and weights[-1, -1] == pytest.approx(1)


def test_only_a_random_search_has_an_expected_best(tmp_path, searched_run):
    runs = load_runs([searched_run(tmp_path / "a", some_trials(), SPACE, searcher="optuna")])
    assert expected.expected_best(runs).empty


# Rungs


def test_rung_survival_counts_each_trial_once(runs):
    table = rungs.rung_survival(runs)
    last = runs.history.groupby("trial")["step"].max()
    assert table["step"].to_list() == [0, 20, 60, 100]
    for row in table.to_dict("records"):
        assert row["reached"] == sum(step >= row["step"] for step in last)
        for status in ("finished", "stopped_early", "diverged", "running"):
            own = runs.trials.loc[runs.trials["status"] == status, "trial"]
            assert row[status] == sum(last[trial] == row["step"] for trial in own)
    (line,) = checked(rungs.rung_figure(table, style.colours(runs.labels))).data
    assert list(line.y) == list(table["reached"]) and line.line.shape == "vh"
    assert "stopped early" in line.text[2]


def test_a_trial_stopped_in_its_pretraining_is_lost_where_it_was_stopped(tmp_path, searched_run):
    """Its evaluations there have no value of the study's metric."""
    pretrained = {"status": "stopped_early", "step": 60, "history": {20: None, 60: None}}
    trials = [*some_trials(3, bad=False), *[(None, {"optim.lr": 0.01, **pretrained})] * 2]
    runs = load_runs([searched_run(tmp_path / "a", trials, SPACE)])
    table = rungs.rung_survival(runs)
    assert table["step"].to_list() == [0, 20, 60, 100]
    assert table["stopped_early"].to_list() == [0, 0, 2, 0]
    ranks = early_ranks(runs)
    assert not len(ranks) or ranks.loc[ranks["step"] == 60, "stopped"].to_list() == [2]
    (plot,) = slices.plots(runs, {}, style.colours(runs.labels))
    assert plot.caption.startswith(
        "3 of 5 search trials, one seed each; the other 2 ended before the metric was measured."
    )


def test_a_trial_without_a_report_is_lost_at_step_0(tmp_path, searched_run):
    trials = [*some_trials(4, bad=False), (None, {"status": "failed", "step": 0})]
    runs = load_runs([searched_run(tmp_path / "a", trials, SPACE)])
    table = rungs.rung_survival(runs)
    assert table["failed"].to_list() == [1, 0, 0, 0]
    assert table["reached"].to_list() == [5, 4, 4, 4]


def test_a_trial_restarted_from_0_stays_in_its_stage(tmp_path, searched_run):
    trials = [
        (0.5, {"optim.lr": 0.1, "history": {20: 0.4, 100: 0.5, 60: 0.1}}),
        *some_trials(2, bad=False),
    ]
    runs = load_runs([searched_run(tmp_path / "a", trials, SPACE)])
    assert rungs.rung_survival(runs)["step"].max() == runs.history["step"].max()


def test_stages_count_on_and_no_loss_means_no_figure(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,), search=(("finished", 0.5, None),))])
    assert rungs.rung_survival(runs)["step"].to_list() == [0, 10, 30, 50]
    assert list(rungs.plots(runs, {}, style.colours(runs.labels))) == []


# Slices, parallel coordinates, contour


def test_slices_draw_every_trial_with_a_value(runs):
    (plot,) = slices.plots(runs, {}, style.colours(runs.labels))
    trials = runs.trials.assign(shown=runs.trials["value"].fillna(runs.trials["last"]))
    assert len(plot.table) == 4 * trials["shown"].notna().sum()
    lr = plot.table[plot.table["panel"] == "optim.lr"]
    assert lr["x"].to_list() == trials["config.optim.lr"].to_list()
    assert lr["value"].to_list() == pytest.approx(trials["shown"].to_list())
    aug = plot.table[plot.table["panel"] == "method.aug"]
    assert (aug["x"].round() == [number % 4 for number in range(24)]).all()
    assert aug["setting"].to_list()[:4] == ["None", "True", "1", "strong"]
    points = [trace for trace in checked(plot.figure).data if trace.text is not None]
    assert sorted(x for trace in points for x in trace.x) == sorted(plot.table["x"])
    assert (
        checked(plot.figure).layout.xaxis4.type == "log"
        and checked(plot.figure).layout.xaxis.type != "log"
    )
    stopped = [trace for trace in points if trace.marker.symbol == "triangle-down-open"]
    assert sum(len(trace.x) for trace in stopped) == 4 * (trials["status"] == "stopped_early").sum()


def test_runs_with_other_choices_share_an_axis_of_all(tmp_path, searched_run):
    a = searched_run(tmp_path / "a", [(0.5, {"x": "p"})], {"x": {"choice": ["p", "q"]}})
    b = searched_run(
        tmp_path / "b", [(0.6, {"x": "r"})], {"x": {"choice": ["q", "r"]}}, method="fixmatch"
    )
    c = searched_run(
        tmp_path / "c", [(0.6, {"x": 0.3})], {"x": {"uniform": [0, 1]}}, method="kmeans"
    )
    runs = load_runs([a, b])
    axes = slices.slice_axes(runs)
    assert axes["soft_kmeans", "x"][1].choices == ("p", "q", "r")
    assert slices.slice_table(runs, axes)["x"].round().to_list() == [0, 2]
    assert set(
        slices.slice_table(load_runs([a, c]), slices.slice_axes(load_runs([a, c])))["panel"]
    ) == {
        "x (soft_kmeans)",
        "x (kmeans)",
    }


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-4, 1e-1, [1e-4, 1e-3, 1e-2, 1e-1]),
        (1e-6, 1e-2, [1e-6, 1e-4, 1e-2]),
        (0.3, 3, [0.3, 1, 3]),
        (0.001, 0.01, [0.001, 0.003, 0.01]),
    ],
)
def test_log_ticks(low, high, ticks):
    assert slices.log_ticks(low, high) == pytest.approx(ticks)


def test_parallel_lines_of_finished_trials(runs):
    (plot,) = parallel.plots(runs, {}, style.colours(runs.labels))
    done = finished(runs.trials)
    assert set(plot.table["trial"]) == set(done["trial"]) and len(plot.table) == 5 * len(done)
    assert drawn(checked(plot.figure), "y") == pytest.approx(sorted(plot.table["place"]))
    best = plot.table[plot.table["group"] == plot.table["group"].max()]
    assert best["value"].min() >= plot.table.loc[plot.table["group"] == 0, "value"].max()
    assert plot.table["place"].between(-0.01, 1.01).all()
    assert checked(plot.figure).data[-1].line.color == style.SCALE[-1]


def test_surface_stays_in_the_range_of_values_and_near_trials(runs):
    table = contour.contour_table(runs, pd.DataFrame(columns=COLUMNS))
    trials, smooth = (table[table["kind"] == kind] for kind in ("trial", "surface"))
    pair = ("losses.cluster.weight", "method.m")  # the first two in the order of the file
    assert set(zip(table["x_key"], table["y_key"], strict=True)) == {pair}
    assert smooth["value"].between(trials["value"].min(), trials["value"].max()).all()
    assert 0 < len(smooth) <= contour.GRID**2
    keys = {("soft_kmeans", key.name): key for key in searched_keys(runs.studies[0])}
    heat, points = checked(contour.contour_figure(table, keys)).data
    assert list(points.x) == list(trials["x"]) and heat.z.shape[0] == smooth["y"].nunique()


# Stability


def test_shares_of_endings(runs):
    table = stability.ending_shares(runs)
    counts = runs.trials["status"].value_counts()
    assert dict(zip(table["status"], table["trials"], strict=True)) == {
        status: counts.get(status, 0) for status in table["status"]
    }
    assert table["share"].sum() == pytest.approx(1)
    figure = checked(stability.ending_figure(table))
    shown = {trace.name: trace.x[0] for trace in figure.data}
    assert shown["stopped early"] == pytest.approx(100 * counts["stopped_early"] / 24)


def test_bad_endings_by_region(runs):
    table = stability.bad_regions(runs)
    ended = runs.trials[runs.trials["status"] != "running"]
    lr = table[table["key"] == "optim.lr"]
    assert lr["region"].to_list() == ["0.0001 to 0.001", "0.001 to 0.01", "0.01 to 0.1"]
    for (low, high), row in zip([(-4, -3), (-3, -2), (-2, -1)], lr.to_dict("records"), strict=True):
        inside = ended[np.log10(ended["config.optim.lr"]).between(low, high)]
        assert (row["of"], row["bad"]) == (len(inside), inside["status"].isin(BAD).sum())
        assert row["low"] <= row["share"] <= row["high"]
    aug = table[table["key"] == "method.aug"]
    assert aug["region"].to_list() == ["None", "True", "1", "strong"]
    assert table[table["key"] == "method.m"]["region"].to_list() == ["1 to 3", "4 to 7", "8 to 10"]
    figure = checked(stability.region_figure(table, style.colours(runs.labels)))
    assert drawn(figure, "y") == pytest.approx(sorted(100 * table["share"]))


def test_no_bad_ending_no_region_figure(tmp_path, searched_run):
    runs = load_runs([searched_run(tmp_path / "a", some_trials(6, bad=False), SPACE)])
    assert stability.bad_regions(runs).empty


# Anything at all


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [(None, {"optim.lr": 0.01, "status": "failed"})] * 3,
        [(None, {"optim.lr": 0.01, "status": None})] * 2,
        [(None, {"optim.lr": 0.01}), (0.5, {"optim.lr": 0.01})],
        [(0.5, {})] * 12,
        [(0.5, {"optim.lr": None, "method.aug": "gone"})] * 12,
    ],
    ids=["none", "all failed", "running", "nan", "no config", "strange config"],
)
def test_every_figure_survives(tmp_path, searched_run, trials):
    runs = load_runs([searched_run(tmp_path / "a", trials, SPACE, searcher="random")])
    for plot in every_plot(runs):
        assert checked(plot.figure).data and len(plot.table) and plot.caption and plot.title


def test_several_spaces_modes_and_metrics(tmp_path, searched_run):
    paths = [
        searched_run(tmp_path / "a", some_trials(30), SPACE, searcher="random"),
        searched_run(
            tmp_path / "b",
            some_trials(30, 1),
            {"optim.lr": {"log_uniform": [1e-3, 1.0]}},
            method="<b>",
            mode="min",
            metric="val/loss",
            searcher="random",
        ),
        searched_run(tmp_path / "c", some_trials(30, 2), {}, method="supervised"),
    ]
    runs = load_runs(paths)
    plots = every_plot(runs)
    names = [plot.name for plot in plots]
    assert len(set(names)) == len(names)
    assert {"importance", "search", "stability"} == {plot.section for plot in plots}
    for plot in plots:
        assert "<b>" not in json.dumps(plot.figure.to_dict()).replace("\\u003cb\\u003e", "<b>")
        assert len(plot.table)
    cost = {p.table["metric"].iloc[0]: p for p in plots if p.name.startswith("search-cost")}
    assert checked(cost["val/loss"].figure).data[0].y[-1] == cost["val/loss"].table["best"].iloc[-1]
    assert [study.label for study, _, _ in search_cells(runs)] == runs.labels
