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


def test_the_figures_draw_the_table(runs):
    found = {"results": tables.results_table(runs)}
    plots = list(compute.plots(runs, found, style.colours(runs.labels)))
    # Every model was trained for 100 steps, which makes no figure but a sentence.
    assert [plot.name for plot in plots] == ["model-seconds", "model-images", "tuning-seconds"]
    for plot, column in zip(plots, ("seconds_mean", "images_seen", "tuning_seconds"), strict=True):
        assert "All models were trained for 100 steps." in plot.caption
        for trace in checked(plot.figure).data:
            own = plot.table[plot.table["method"] == trace.name]
            assert list(trace.x) == pytest.approx(list(own[column]))
            assert list(trace.y) == pytest.approx(list(100 * own["accuracy_mean"]))
            assert list(trace.text) == ["50", "200"]
    assert "wall-clock" in plots[0].caption and "wall-clock" in plots[2].caption
    assert checked(plots[0].figure).data[0].error_x.array is not None


def test_ticks_of_a_wide_axis_are_written_out():
    values = pd.Series([2.0, 30.0])
    assert base.spans_wide(values) and not base.spans_wide(pd.Series([0.0, 30.0]))
    assert base.wide_ticks(values)["ticktext"] == ["1", "2", "5", "10", "20", "50"]
    many = base.wide_ticks(pd.Series([0.5, 40_000.0]))["ticktext"]
    assert many == ["1", "10", "100", "1,000", "10,000"]
