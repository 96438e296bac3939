import json
import re

import numpy as np
import pytest

from analysis.numbers import comparisons, tables
from analysis.plots import (
    ablation,
    base,
    calibration,
    compute,
    curves,
    errors,
    results,
    search,
    style,
)
from analysis.read.load import load_runs
from tests.analysis.conftest import checked

SOURCES = (results, errors, calibration, ablation, curves, compute)


def tables_of(runs):
    found = {"results": tables.results_table(runs)}
    return {**found, "differences": comparisons.difference_table(runs)}


def drawn_from(runs):
    found = tables_of(runs)
    colours = style.colours(runs.labels)
    return [plot for source in SOURCES for plot in source.plots(runs, found, colours)]


def panels(drawn, diagnostics):
    found = dict.fromkeys(drawn["panel"])
    return [panel for panel in found if panel.startswith("diag/") == diagnostics]


def test_label_efficiency(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50, 1000))])
    measured = tables.results_table(runs)
    figure = checked(results.label_efficiency_figure(measured, style.colours(runs.labels)))
    band, line = figure.data
    assert list(line.x) == [50, 1000] and list(line.y) == pytest.approx([83, 86])
    assert line.line.color == style.COLOURS[0]
    assert max(band.y) == pytest.approx(100 * measured["high"].max())
    assert figure.layout.xaxis.type == "log"


def test_conditions_with_one_label_count_stand_apart_as_points(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50, 50), conditions=["x=1", "x=2"])
    runs = load_runs([path])
    measured = tables.results_table(runs)
    (points,) = checked(results.label_efficiency_figure(measured, style.colours(runs.labels))).data
    assert points.mode == "markers" and points.error_y.array is not None
    assert list(points.x) == ["x=1", "x=2"]


def test_methods_differ_without_colour(tmp_path, write_run):
    methods = [f"m{number}" for number in range(11)]
    runs = load_runs([write_run(tmp_path / method, method=method) for method in methods])
    figure = checked(
        results.label_efficiency_figure(tables.results_table(runs), style.colours(runs.labels))
    )
    lines = [trace for trace in figure.data if trace.name]
    assert len({(t.line.color, t.line.dash, t.marker.symbol) for t in lines}) == 11
    assert len({t.line.dash for t in lines[:8]}) == len({t.marker.symbol for t in lines[:8]}) == 8


def test_differences_over_labels(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", shift=0.1)
    b = write_run(tmp_path / "b", method="supervised")
    c = write_run(tmp_path / "c", method="uda", shift=-0.02)
    runs = load_runs([a, b, c])
    table = comparisons.difference_table(runs)
    figure = checked(results.difference_figure(table, style.colours(runs.labels)))
    for trace, method, points in zip(figure.data, ("fixmatch", "uda"), (10, -2), strict=True):
        assert trace.name == method and list(trace.y) == pytest.approx([points, points])
        assert list(trace.x) == pytest.approx([50, 200], rel=0.05)
        assert "5 pairs" in trace.text[0]
    assert figure.data[0].x[0] < figure.data[1].x[0]  # set apart
    (zero,) = figure.layout.shapes
    assert zero.y0 == zero.y1 == 0
    plots = list(results.plots(runs, tables_of(runs), style.colours(runs.labels)))
    assert [plot.name for plot in plots] == ["label-efficiency", "label-differences"]
    assert "minus that of supervised" in plots[1].caption
    assert "chosen by 'best final value' on validation data, 5 fresh seeds" in plots[1].caption


def test_training_curves(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,))])
    drawn = curves.training_curves(runs)
    assert set(drawn["source"]) == {"confirm"}
    assert panels(drawn, False) == [
        "val/mean_class_accuracy",
        "loss/total",
        "loss/cluster",
        "loss/supervised",
    ]
    assert panels(drawn, True) == ["diag/mask_rate"]
    term = drawn[drawn["panel"] == "loss/cluster"]
    raw, weighted, weight = (term[term["curve"] == c] for c in ("value", "weighted", "weight"))
    # Stage two starts at step 0 again, and is put behind stage one, which ended at 10.
    assert raw["step"].to_list() == [0, 10, 10, 30, 50]
    assert raw["stage"].to_list() == ["pretrain"] * 2 + ["train"] * 3
    assert set(raw["n"]) == {5}
    assert weight["mean"].to_list() == pytest.approx([0, 0.25, 0, 0.5, 1])
    assert weighted["mean"].to_list() == pytest.approx([0, 0.5, 0, 1, 2])
    assert 50 not in drawn.loc[drawn["panel"] == "loss/total", "step"].to_list()
    figure = checked(curves.curves_figure(drawn, "loss/cluster", style.colours(runs.labels)))
    # Each stage has a line of its own; those of the second one come last.
    band, whole = figure.data[2:4]
    thin, strip = figure.data[5], figure.data[7]
    assert max(band.y) == min(band.y) == 2 and whole.line.width > thin.line.width
    assert [whole.yaxis, thin.yaxis, strip.yaxis] == ["y", "y", "y2"]
    strips = [trace for trace in figure.data if trace.yaxis == "y2"]
    assert [y for trace in strips for y in trace.y] == weight["mean"].to_list()


def test_curves_are_the_mean_and_range_of_the_trials(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,))])
    rng = np.random.default_rng(0)
    runs.history["loss/supervised"] = rng.random(len(runs.history))
    drawn = curves.training_curves(runs)
    drawn = drawn[drawn["panel"] == "loss/supervised"]
    own = runs.history[runs.history["phase"] == "confirm"]
    for row in drawn.to_dict("records"):
        step = row["step"] - (10 if row["stage"] == "train" else 0)
        values = own[(own["stage"] == row["stage"]) & (own["step"] == step)]["loss/supervised"]
        assert (row["mean"], row["low"], row["high"], row["n"]) == pytest.approx(
            (np.mean(list(values)), min(values), max(values), 5)
        )


def test_stages_are_marked(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,))])
    drawn = curves.training_curves(runs)
    assert curves.stage_starts(drawn).to_dict("records") == [
        {"method": "soft_kmeans", "stage": "train", "step": 10}
    ]
    figure = checked(curves.curves_figure(drawn, "loss/total", style.colours(runs.labels)))
    (mark,), (name,) = figure.layout.shapes, figure.layout.annotations
    assert mark.x0 == mark.x1 == 10 and name.text == "train"
    one = drawn[drawn["stage"] == "train"]
    assert curves.stage_starts(one).empty


def test_panels_have_readable_titles():
    assert curves.panel_title("diag/mask_rate").startswith("Mask rate")
    assert curves.panel_title("loss/cluster") == "Loss term: cluster"
    assert "nearest neighbours (k200,t0.1)" in curves.panel_title("val/knn@k200,t0.1")
    assert curves.panel_title("diag/unheard_of") == "diag/unheard_of"


def test_a_caption_tells_whose_curves_are_not_confirmed(tmp_path, write_run):
    runs = load_runs(
        [
            write_run(tmp_path / "a", method="uda", labels=(50,), confirm={}),
            write_run(tmp_path / "b", method="fixmatch", labels=(50,)),
        ]
    )
    plot = next(iter(curves.plots(runs, {}, style.colours(runs.labels))))
    assert "Of uda: the search trial that the rule 'best final value' picks" in plot.caption
    assert "5 fresh seeds per mean." in plot.caption
    assert set(plot.table["source"]) == {"search", "confirm"}


def test_curves_of_the_search_before_confirm(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,), confirm={})])
    drawn = curves.training_curves(runs)
    assert set(drawn["source"]) == {"search"} and drawn["n"].max() <= 2
    none = load_runs([write_run(tmp_path / "b", confirm={}, diag=False)])
    assert curves.training_curves(none).empty


def test_search_progress(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,))])
    progress = search.search_progress(runs)
    assert progress["order"].to_list() == [1, 2, 3, 4, 5, 6]
    # The stopped trial's 0.95 never counts as the best so far.
    assert progress["best"].to_list() == pytest.approx([0.70, 0.81, 0.81, 0.81, 0.81, 0.81])
    assert progress["value"].to_list() == pytest.approx([0.70, 0.81, 0.95, 0.9, 0.9, 0.79])
    assert search.all_search_trials(progress, 6).startswith("All 6 search trials, one seed each.")
    lost = progress.assign(value=progress["value"].where(progress["order"] > 2))
    assert search.all_search_trials(lost, 6).startswith(
        "4 of 6 search trials, one seed each; the other 2 ended before the metric was measured."
    )
    figure = checked(search.search_figure(progress, style.colours(runs.labels)))
    symbols = [trace.marker.symbol for trace in figure.data if trace.mode == "markers"]
    assert symbols == ["circle", "triangle-down-open", "x", "cross"]
    assert np.nanmax(figure.data[1].y) == pytest.approx(95)


def test_text_is_legible_on_both_pages():
    figure = checked(style.figure("x", "y"))
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    for page in style.PAGE.values():
        assert style.contrast(figure.layout.font.color, page) >= 4
        for colour in (*style.COLOURS, *style.STATUS_COLOURS.values()):
            assert style.contrast(colour, page) >= 3
    assert style.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_names_are_not_markup():
    assert checked(style.figure("<b>x", "y")).layout.xaxis.title.text == "&lt;b&gt;x"


def test_a_pretraining_shows_the_accuracy_of_knn_and_probe_against_its_steps(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,))
    lines = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"] |= {"val/knn@k200,t0.1": 0.5, "val/probe_accuracy": 0.6}
    (path / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    drawn = curves.training_curves(load_runs([path]))
    assert panels(drawn, False)[1:3] == ["val/knn@k200,t0.1", "val/probe_accuracy"]
    figure = checked(
        curves.curves_figure(drawn, "val/knn@k200,t0.1", dict.fromkeys(drawn["method"], "#0072B2"))
    )
    assert {y for trace in figure.data if trace.name for y in trace.y} == {50}


def test_no_curve_joins_the_losses_of_two_stages(tmp_path, write_run):
    drawn = curves.training_curves(load_runs([write_run(tmp_path / "a", labels=(50,))]))
    figure = checked(
        curves.curves_figure(drawn, "loss/supervised", dict.fromkeys(drawn["method"], "#0072B2"))
    )
    lines = [list(trace.x) for trace in figure.data if trace.name]
    assert lines == [[0, 10], [10, 30, 50]]
    assert [trace.showlegend for trace in figure.data if trace.name] == [True, False]


EVIL = "<script>alert(1)</script>/../x y"
ODD = {
    "nothing was run": lambda t, w: [w(t / "a", search=(), confirm={}, diag=False)],
    "not confirmed": lambda t, w: [w(t / "a", confirm={})],
    "no test value": lambda t, w: [w(t / "a", confirm={0: None, 1: None})],
    "no label counts": lambda t, w: [w(t / "a", labels=(None, None), conditions=["x=1", "x=2"])],
    "one method twice, with one seed, beside one without any": lambda t, w: [
        w(t / "a", confirm={0: 0.8}),
        w(t / "b", shift=0.02),
        w(t / "c", method="uda", confirm={0: None}),
    ],
    "odd names": lambda t, w: [
        w(t / "a", EVIL, EVIL, (50,), conditions=[EVIL], classes=(EVIL, "b"))
    ],
}


@pytest.mark.parametrize("case", ODD)
def test_figures_survive(tmp_path, write_run, case):
    runs = load_runs(ODD[case](tmp_path, write_run))
    plots = drawn_from(runs)
    names = [plot.name for plot in plots]
    assert len(set(names)) == len(names)
    for plot in plots:
        assert re.fullmatch(r"[A-Za-z0-9._=,@+-]{1,120}", plot.name)
        assert len(plot.table) and checked(plot.figure).data and plot.caption and plot.title
        assert "nan" not in plot.caption and "<script" not in json.dumps(plot.figure.to_dict())
    sections = {plot.section for plot in plots}
    unmeasured = case in ("nothing was run", "not confirmed", "no test value")
    assert sections.isdisjoint({"efficiency", "errors", "compute"}) == unmeasured


def test_a_column_of_nan_is_not_drawn(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,))])
    runs.history["diag/mask_rate"] = np.nan
    runs.trials["seconds"] = np.nan
    names = [plot.name for plot in drawn_from(runs)]
    assert not [name for name in names if "mask_rate" in name or "seconds" in name]
    assert "label-efficiency" in names


def test_file_names_are_safe_and_differ():
    assert base.file_name("curve", "data.num_labels=20") == "curve-data.num_labels=20"
    odd = [base.file_name("x", name) for name in ("a b", "a/b", "a_b", "é" * 300, "e" * 300)]
    assert len(set(odd)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9._=-]{1,120}", name) for name in odd)
