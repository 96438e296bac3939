"""Keys that only some configs have (`when`): no figure counts a trial in which a key is inactive."""

import math

import pandas as pd
import pytest

from analysis.numbers.importance import COLUMNS
from analysis.plots import contour, parallel, slices, stability, style
from analysis.read.load import load_runs
from analysis.read.search_space import searched_keys
from analysis.report.report import write_report
from tests.analysis.conftest import checked

SGD, ADAM = {"optim.name": "sgd"}, {"optim.name": "adam"}
SPACE = {
    "optim.lr": {"log_uniform": [1e-4, 1e-1]},
    "optim.name": {"choice": ["sgd", "adam"]},
    "optim.momentum": {"uniform": [0.0, 1.0], "step": 0.1, "when": SGD},
    "optim.nesterov": {"choice": [None, True], "when": SGD},
    "optim.beta": {"uniform": [0.5, 0.9], "when": ADAM},
}


def some_trials(count=24):
    found = []
    for number in range(count):
        config = {"optim.lr": 10 ** (-4 + 3 * number / count), "optim.name": "sgd"}
        if number % 2:
            config |= {"optim.name": "adam", "optim.beta": 0.5 + 0.4 * number / count}
        else:
            config |= {"optim.momentum": round(0.1 * (number % 10), 1)}
            config |= {"optim.nesterov": None if number % 4 else True}
        status = {"status": "diverged"} if number % 6 == 5 else {}
        found.append((0.5 + 0.01 * (number % 7), config | status))
    return found


@pytest.fixture(name="runs")
def _runs(tmp_path, searched_run):
    return load_runs([searched_run(tmp_path / "a", some_trials(), SPACE, searcher="random")])


def having(key):
    """The trials whose config has the key, by number."""
    return [number for number, (_, config) in enumerate(some_trials()) if key in config]


def trial(number):
    return f"c0-t{number:04d}"


def test_an_inactive_key_is_no_choice_of_null(runs):
    keys = {key.name: key for key in searched_keys(runs.studies[0])}
    for name, key in keys.items():
        column = key.column(runs.trials)
        assert list(column.index[column.notna()]) == having(name)
    places = keys["optim.nesterov"].column(runs.trials)
    assert places[0] == 1 and places[2] == 0 and math.isnan(places[1])


def test_slices_show_trials_in_which_the_key_is_active(runs):
    (plot,) = slices.plots(runs, {}, style.colours(runs.labels))
    for name in SPACE:
        rows = plot.table[plot.table["panel"] == name]
        assert list(rows["trial"]) == [trial(number) for number in having(name)]
    assert (
        "Of optim.beta, optim.momentum, optim.nesterov only trials in which the key is active"
        in plot.caption
    )
    checked(plot.figure)


def test_two_runs_with_other_ranges_and_steps_of_a_key_share_a_panel(tmp_path, searched_run):
    a = searched_run(tmp_path / "a", some_trials(), SPACE)
    wide = {**SPACE, "optim.momentum": {"uniform": [0.0, 1.5], "step": 0.5}}
    b = searched_run(tmp_path / "b", some_trials(), wide, method="uda")
    log_scale = {**SPACE, "optim.momentum": {"log_uniform": [0.01, 1.0]}}
    c = searched_run(tmp_path / "c", some_trials(), log_scale, method="fixmatch")
    runs = load_runs([a, b, c])
    (plot,) = slices.plots(runs, {}, style.colours(runs.labels))
    assert set(plot.table.loc[plot.table["panel"] == "optim.momentum", "method"]) == set(
        runs.labels
    )


def test_parallel_lines_break_at_inactive_keys(runs):
    (plot,) = parallel.plots(runs, {}, style.colours(runs.labels))
    finished = set(runs.trials.loc[runs.trials["status"] == "finished", "trial"])
    assert set(plot.table["trial"]) == finished
    for name in SPACE:
        rows = plot.table[plot.table["axis"] == name]
        assert set(rows["trial"]) == {trial(number) for number in having(name)} & finished
    assert plot.table.notna().all(axis=None)
    axes = len(SPACE) + 1
    drawn = [y for trace in checked(plot.figure).data for y in trace.y]
    assert len(drawn) == len(finished) * (axes + 1)
    assert sum(y is not None for y in drawn) == len(plot.table)


def test_contour_takes_two_keys_that_are_active_together(runs):
    empty = pd.DataFrame(columns=COLUMNS)
    table = contour.contour_table(runs, empty)
    points = table[table["kind"] == "trial"]
    (x,), (y,) = set(points["x_key"]), set(points["y_key"])
    ended = runs.trials.loc[runs.trials["status"] == "finished", "number"]
    both = [n for n in ended if n in having(x) and n in having(y)]
    assert list(points["trial"]) == [trial(int(n)) for n in both]
    for plot in contour.plots(runs, empty):
        checked(plot.figure)


def test_keys_that_exclude_each_other_have_no_contour(tmp_path, searched_run):
    space = {key: SPACE[key] for key in ("optim.name", "optim.momentum", "optim.beta")}
    runs = load_runs([searched_run(tmp_path / "a", some_trials(), space)])
    assert list(contour.plots(runs, pd.DataFrame(columns=COLUMNS))) == []


def test_stability_counts_trials_in_which_the_key_is_active(runs):
    table = stability.bad_regions(runs)
    trials = runs.trials
    for name in SPACE:
        rows = table[table["key"] == name]
        own = trials[trials["number"].isin(having(name))]
        assert rows["of"].sum() == len(own)
        assert rows["bad"].sum() == (own["status"] == "diverged").sum()
    for plot in stability.plots(runs, {}, style.colours(runs.labels)):
        checked(plot.figure)


def test_the_page_is_written(tmp_path, searched_run):
    path = searched_run(tmp_path / "a", some_trials(), SPACE)
    assert "optim.nesterov" in write_report([path], tmp_path / "report", ["csv"]).read_text()
