import numpy as np
import pandas as pd
import pytest

from analysis.numbers import tables
from analysis.numbers.stats import mean_interval
from analysis.plots import base, compute, style
from analysis.read.load import load_runs
from tests.analysis.conftest import checked
from tune_ssl.records import log


@pytest.fixture(name="runs")
def _runs(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch")
    b = write_run(tmp_path / "b", method="supervised")
    runs = load_runs([a, b])
    rng = np.random.default_rng(0)
    runs.trials["seconds"] *= rng.uniform(1, 2, len(runs.trials))
    runs.trials.loc[runs.trials["label"] == "fixmatch", "images_seen"] *= 8
    return runs


def test_costs_are_those_of_the_trials(runs):
    results = tables.results_table(runs)
    costs = compute.cost_table(runs, results)
    assert len(costs) == 4
    for row, measured in zip(costs.to_dict("records"), results.to_dict("records"), strict=True):
        own = [
            trial
            for trial in runs.trials.to_dict("records")
            if (trial["label"], trial["condition"]) == (row["method"], row["condition"])
        ]
        seconds = [t["seconds"] for t in own if t["phase"] == log.CONFIRM]
        expected = mean_interval(seconds)
        mine = (row["seconds_mean"], row["seconds_low"], row["seconds_high"])
        assert mine == pytest.approx((expected.mean, expected.low, expected.high))
        tuning = [t["seconds"] for t in own if t["phase"] == log.SEARCH]
        assert row["tuning_seconds"] == pytest.approx(np.nansum(tuning))
        assert row["images_seen"] == (5120 if row["method"] == "fixmatch" else 640)
        assert row["accuracy_mean"] == measured["mean"] and row["n"] == 5


def test_ablations_and_running_trials_are_no_tuning_cost(runs):
    results = tables.results_table(runs)
    before = compute.cost_table(runs, results)
    more = runs.trials[runs.trials["phase"] == log.SEARCH]
    more = pd.concat([more.assign(phase="ablate"), more.assign(status="running")])
    runs.trials = pd.concat([runs.trials, more], ignore_index=True)
    pd.testing.assert_frame_equal(compute.cost_table(runs, results), before)


def test_the_figure_draws_the_table_and_its_front(runs):
    found = {"results": tables.results_table(runs)}
    (plot,) = compute.plots(runs, found, style.colours(runs.labels))
    assert plot.name == "cost" and "wall-clock" in plot.caption
    assert "pretraining" not in plot.caption.split("Mean over")[0]  # none was shared
    figure = checked(plot.figure)
    assert figure.layout.xaxis.type == "log"
    points = [trace for trace in figure.data if trace.mode == "markers"]
    for trace in points:
        own = plot.table[plot.table["method"] == trace.name]
        assert list(trace.x) == pytest.approx(list(own["seconds_mean"]))
        assert list(trace.y) == pytest.approx(list(100 * own["accuracy_mean"]))
    fronts = [trace for trace in figure.data if trace.mode != "markers"]
    assert [trace.text[-1].strip() for trace in fronts] == ["50 labels", "200 labels"]


def test_the_front_is_what_nothing_cheaper_beats():
    seconds, scores = (1, 2, 3, 4, 2, np.nan), (0.5, 0.7, 0.6, 0.8, 0.7, 0.9)
    group = pd.DataFrame({"seconds_mean": seconds, "accuracy_mean": scores})
    assert compute.front(group) == [True, True, False, True, True, False]


def test_what_cannot_be_charged_is_said_and_no_method_vanishes(runs):
    results = tables.results_table(runs)
    colours = style.colours(runs.labels)
    mine = runs.trials["label"] == "fixmatch"
    runs.trials.loc[mine, "reused"] = 60  # the pretraining of another run
    (plot,) = compute.plots(runs, {"results": results}, colours)
    assert len(plot.table) == 4 and plot.table["seconds_mean"].notna().all()
    assert "no trial of the run trained it: the shared pretraining of fixmatch." in plot.caption
    runs.trials.loc[mine, "reused"] = np.nan  # a run of an earlier version
    (plot,) = compute.plots(runs, {"results": results}, colours)
    assert "is not recorded, and not charged: fixmatch." in plot.caption


def test_the_pace_is_that_of_trials_that_ended_and_trained_all_of_it(runs):
    """A running trial, and one that waited 4 seconds, say nothing else of a step."""
    results = tables.results_table(runs)
    mine = (runs.trials["label"] == "fixmatch") & (runs.trials["phase"] == log.CONFIRM)
    runs.trials.loc[mine, "reused"] = 60
    before = compute.cost_table(runs, results)["pretraining"]
    one = runs.trials.index[(runs.trials["label"] == "fixmatch") & ~mine][0]
    runs.trials.loc[one, "waited"] = 4.0
    rows = runs.history["trial"] == runs.trials.loc[one, "trial"]
    rows &= runs.history["label"] == "fixmatch"
    runs.history.loc[rows, "seconds"] += 4.0
    running = runs.trials.loc[[one]].assign(trial="runs", reused=np.nan, status="running")
    runs.trials = pd.concat([runs.trials, running], ignore_index=True)
    quick = runs.history[rows].assign(trial="runs", seconds=0.0)
    runs.history = pd.concat([runs.history, quick], ignore_index=True)
    assert compute.cost_table(runs, results)["pretraining"].to_list() == pytest.approx(
        before.to_list()
    )


def test_shared_pretraining_is_charged_in_full_to_each_model(runs):
    """fixmatch's networks took 60 of their steps from another trial, in no time."""
    results = tables.results_table(runs)
    before = compute.cost_table(runs, results)
    mine = (runs.trials["label"] == "fixmatch") & (runs.trials["phase"] == log.CONFIRM)
    runs.trials.loc[mine, ["reused", "waited"]] = [60, 2.0]
    own = runs.trials[(runs.trials["label"] == "fixmatch") & ~mine]
    first = runs.history[
        runs.history["trial"].isin(own["trial"]) & (runs.history["label"] == "fixmatch")
    ]
    first = first[first["stage"] == first["stage"].iloc[0]]
    ends = first.groupby("trial")[["seconds", "step"]].max()
    pace = (ends["seconds"] / ends["step"]).mean()
    after = compute.cost_table(runs, results)
    added = (after["seconds_mean"] - before["seconds_mean"]).where(after["method"] == "fixmatch")
    assert added.dropna().to_list() == pytest.approx([60 * pace - 2] * 2)
    assert after["pretraining"].to_list() == pytest.approx(
        [60 * pace if method == "fixmatch" else 0 for method in after["method"]]
    )
    assert after["tuning_seconds"].equals(before["tuning_seconds"])  # counted once, as spent
    (plot,) = compute.plots(runs, {"results": results}, style.colours(runs.labels))
    assert "charged in full to each of them" in plot.caption


def test_ticks_of_a_wide_axis_are_written_out():
    values = pd.Series([2.0, 30.0])
    assert base.spans_wide(values) and not base.spans_wide(pd.Series([0.0, 30.0]))
    assert base.wide_ticks(values)["ticktext"] == ["1", "2", "5", "10", "20", "50"]
    many = base.wide_ticks(pd.Series([0.5, 40_000.0]))["ticktext"]
    assert many == ["1", "10", "100", "1,000", "10,000"]
