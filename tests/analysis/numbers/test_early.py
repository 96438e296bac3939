"""Ranks on the way against the end: the table against scipy and slow loops, and the figure that it draws."""

import numpy as np
import pytest
from scipy import stats

from analysis.numbers.early import early_ranks
from analysis.plots import early, style
from analysis.read.load import load_runs
from analysis.report.report import all_tables
from tests.analysis.conftest import checked, shown

SPACE = {"optim.lr": {"log_uniform": [1e-4, 1e-1]}}


def trial(value, history, **more):
    return value, {"optim.lr": 0.01, "history": history, **more}


def noisy(finished=8, evaluations=5, stopped=(), seed=0):
    """Trials that end at 0.1, 0.2, ... and are seen with noise on the way; `stopped` steps end others."""
    rng = np.random.default_rng(seed)
    steps = [20 * i for i in range(1, evaluations + 1)]
    found = []
    for number in range(finished):
        end = 0.1 * (number + 1)
        way = {step: float(end + rng.normal(0, 0.3)) for step in steps[:-1]}
        found.append(trial(end, {**way, steps[-1]: end}))
    for step in stopped:
        way = {at: 0.05 for at in steps if at <= step}
        found.append(trial(0.05, way, status="stopped_early", step=step))
    return found


def read(folder, searched_run, trials, **more):
    return load_runs([searched_run(folder / "a", trials, SPACE, **more)])


def test_each_evaluation_is_correlated_with_the_end_over_finished_trials(tmp_path, searched_run):
    trials = noisy(stopped=(40, 40, 80))
    trials.append(trial(None, {20: 0.9}, status="diverged"))
    table = early_ranks(read(tmp_path, searched_run, trials))
    assert table["step"].to_list() == [20, 40, 60, 80, 100]
    ended = [(value, config["history"]) for value, config in trials[:8]]
    for row in table.to_dict("records"):
        here = [history[row["step"]] for _, history in ended]
        by_scipy = stats.spearmanr(here, [value for value, _ in ended]).statistic
        assert row["correlation"] == pytest.approx(by_scipy)
        assert (row["trials"], row["share"]) == (8, row["step"] / 100)
    assert table["stopped"].to_list() == [0, 2, 0, 1, 0]
    assert table["rung"].to_list() == [False, True, False, True, False]
    assert table["correlation"].iloc[-1] == pytest.approx(1)


def test_values_that_tie_share_their_ranks_and_ties_of_all_are_left_out(tmp_path, searched_run):
    here = {20: [0.1] * 5, 40: [0.1, 0.1, 0.2, 0.2, 0.3], 60: [0.5, 0.4, 0.3, 0.2, 0.1]}
    ends = [0.1, 0.2, 0.3, 0.3, 0.4]
    trials = [trial(ends[i], {step: v[i] for step, v in here.items()}) for i in range(5)]
    table = early_ranks(read(tmp_path, searched_run, trials)).set_index("step")
    assert list(table.index) == [40, 60]
    for step in table.index:
        expected = stats.spearmanr(here[step], ends).statistic
        assert table.loc[step, "correlation"] == pytest.approx(expected)
    assert table.loc[60, "correlation"] < 0


def test_fewer_than_four_finished_trials_say_nothing(tmp_path, searched_run):
    trials = [trial(0.1 * i, {20: 0.1 * i} if i < 4 else {}) for i in range(1, 8)]
    for _, config in trials:
        config["history"][40] = config["optim.lr"] * len(config["history"])
    runs = read(tmp_path, searched_run, trials)
    assert list(early_ranks(runs)["step"]) == [40]  # at 20 there are three
    three = read(tmp_path / "three", searched_run, noisy(finished=3, stopped=(40,)))
    table = early_ranks(three)
    assert table.empty and list(early.plots(three, {"early_ranks": table}, {})) == []


def test_many_evaluations_are_thinned_but_not_those_where_trials_were_stopped(
    tmp_path, searched_run
):
    runs = read(tmp_path, searched_run, noisy(evaluations=60, stopped=(60, 500)))
    table = early_ranks(runs)
    assert {20, 60, 500, 1200} <= set(table["step"]) and len(table) <= 12
    assert table.loc[table["rung"], "step"].to_list() == [60, 500]


def test_a_trial_that_took_too_long_makes_no_rung(tmp_path, searched_run, event):
    path = searched_run(tmp_path / "a", noisy(), SPACE)
    text = (path / "trials.jsonl").read_text()
    late = '"c0-t0007", "condition": "data.num_labels=50"'
    lines = [
        line.replace('"finished"', '"stopped_early"').replace(
            '"reason": null', '"reason": "longer than budget.max_minutes, 3 min"'
        )
        if late in line
        else line
        for line in text.splitlines()
    ]
    (path / "trials.jsonl").write_text("\n".join(lines) + "\n")
    runs = load_runs([path])
    assert (runs.trials["status"] == "stopped_early").sum() == 1
    assert not early_ranks(runs)["rung"].any()


def test_the_figure_marks_where_trials_were_stopped(tmp_path, searched_run):
    runs = read(tmp_path, searched_run, noisy(stopped=(40,)))
    tables = all_tables(runs)
    (plot,) = early.plots(runs, tables, style.colours(runs.labels))
    (line,) = checked(plot.figure).data
    assert list(line.x) == pytest.approx([20, 40, 60, 80, 100])
    assert list(line.y) == pytest.approx(list(plot.table["correlation"]))
    assert [size > 0 for size in line.marker.size] == [False, True, False, False, False]
    assert "stopped there: 1" in line.text[1]
    assert "those that survived" in plot.caption
    assert shown(tables["early_ranks"], "early_ranks")["Stopped there"].to_list() == list("01000")


def test_a_run_without_history_has_no_ranks(tmp_path, write_run):
    assert early_ranks(load_runs([write_run(tmp_path / "a", diag=False)])).empty
