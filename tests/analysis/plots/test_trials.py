"""The search's trials as they went: a curve for each, and a bar where each ran."""

import numpy as np
import pytest

from analysis.plots import style, trials
from analysis.read.load import load_runs
from tests.analysis.conftest import checked


@pytest.fixture(name="runs")
def _runs(tmp_path, write_run):
    return load_runs([write_run(tmp_path / "a", labels=(50,))])


def test_each_search_trial_has_its_curve(runs):
    curves = trials.trial_curves(runs)
    metric = "val/mean_class_accuracy"
    own = runs.history[(runs.history["phase"] == "search") & runs.history[metric].notna()]
    assert len(curves) == len(own) > 0 and set(curves["trial"]) == set(own["trial"])
    assert sorted(curves["value"]) == pytest.approx(sorted(own[metric]))
    figure = checked(trials.curves_figure(curves, style.colours(runs.labels)))
    assert len(figure.data) == curves["trial"].nunique()
    assert sum(trace.showlegend for trace in figure.data) == 1
    dashes = dict(
        zip(dict.fromkeys(curves["trial"]), (t.line.dash for t in figure.data), strict=True)
    )
    statuses = dict(zip(curves["trial"], curves["status"], strict=True))
    assert all((dashes[t] == "solid") == (statuses[t] == "finished") for t in dashes)


def test_slots_hold_one_trial_at_a_time_and_no_more_slots_than_trials_at_once(runs):
    spans = {"c0-t0000": (0, 10), "c0-t0001": (1, 4), "c0-t0002": (4, 6), "c0-t0003": (5, 9)}
    for trial, (start, end) in spans.items():
        runs.trials.loc[runs.trials["trial"] == trial, ["started", "ended"]] = [
            100 + start,
            100 + end,
        ]
    runs.trials = runs.trials[runs.trials["trial"].isin(list(spans))].assign(seconds=np.nan)
    slots = trials.slot_table(runs.trials)
    assert slots["slot"].to_list() == [1, 2, 2, 3]
    assert slots[["start", "end"]].to_numpy().tolist() == [
        list(map(float, s)) for s in spans.values()
    ]
    (plot,) = [
        p for p in trials.plots(runs, {}, style.colours(runs.labels)) if p.name == "timeline"
    ]
    assert "Trials cover 63 % of the slots' time" in plot.caption  # 19 of 3 x 10 seconds
    checked(plot.figure)
    # One that failed and was begun again 2 seconds before its end
    runs.trials.loc[runs.trials["trial"] == "c0-t0000", "seconds"] = 2
    slots = trials.slot_table(runs.trials).set_index("trial")
    assert slots.loc["c0-t0000", ["start", "end"]].to_list() == [7, 9]  # the first start is 1 later
    runs.trials["resumed"] = 1
    (plot,) = [
        p for p in trials.plots(runs, {}, style.colours(runs.labels)) if p.name == "timeline"
    ]
    assert "Trials cover" not in plot.caption
