import json

import numpy as np
import pytest

from analysis import style, tables
from analysis.load import load_runs
from analysis.plots import curves, results, search


def panels(drawn, diagnostics):
    found = dict.fromkeys(drawn["panel"])
    return [panel for panel in found if panel.startswith("diag/") == diagnostics]


def test_label_efficiency(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50, 1000))])
    measured = tables.results_table(runs)
    figure = results.label_efficiency_figure(measured, style.colours(runs.labels))
    band, line = figure.data
    assert list(line.x) == [50, 1000] and list(line.y) == pytest.approx([83, 86])
    assert line.line.color == style.OKABE_ITO[0]
    assert max(band.y) == pytest.approx(100 * measured["high"].max())
    assert figure.layout.xaxis.type == "log"


def test_conditions_with_one_label_count_are_points(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50, 50), conditions=["x=1", "x=2"])
    runs = load_runs([path])
    measured = tables.results_table(runs)
    (points,) = results.label_efficiency_figure(measured, style.colours(runs.labels)).data
    assert points.mode == "markers" and points.error_y.array is not None


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
    raw, weighted = term[~term["weighted"]], term[term["weighted"]]
    # Stage two starts at step 0 again, and is put behind stage one, which ended at 10.
    assert raw["step"].to_list() == [0, 10, 30, 50]
    assert raw["n"].to_list() == [5, 10, 5, 5]
    assert weighted["mean"].to_list() == pytest.approx([0, 0.25, 1, 2], abs=0.3)
    assert 50 not in drawn.loc[drawn["panel"] == "loss/total", "step"].to_list()
    figure = curves.curves_figure(drawn, "loss/cluster", style.colours(runs.labels))
    assert [trace.line.dash for trace in figure.data if trace.name] == ["solid", "dash"]


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
    assert search.unplaced(progress) == 0
    figure = search.search_figure(progress, style.colours(runs.labels))
    symbols = [trace.marker.symbol for trace in figure.data if trace.mode == "markers"]
    assert symbols == ["circle", "triangle-down-open", "x", "cross"]
    assert np.nanmax(figure.data[1].y) == pytest.approx(95)


def test_text_is_legible_on_both_pages():
    figure = style.figure("x", "y")
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    for page in style.PAGE.values():
        assert style.contrast(figure.layout.font.color, page) >= 4
        for colour in style.OKABE_ITO:
            assert style.contrast(colour, page) > 2
    assert style.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_names_are_not_markup():
    assert style.figure("<b>x", "y").layout.xaxis.title.text == "&lt;b&gt;x"


def test_a_pretraining_shows_the_accuracy_of_knn_and_probe_against_its_steps(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,))
    lines = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"] |= {"val/knn@k200,t0.1": 0.5, "val/probe_accuracy": 0.6}
    (path / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    drawn = curves.training_curves(load_runs([path]))
    assert panels(drawn, False)[1:3] == ["val/knn@k200,t0.1", "val/probe_accuracy"]
    figure = curves.curves_figure(
        drawn, "val/knn@k200,t0.1", dict.fromkeys(drawn["method"], "#0072B2")
    )
    assert set(figure.data[-1].y) == {50}
