import math

import pandas as pd
import pytest

from analysis.numbers.ablations import ABLATION_COLUMNS, EFFECT_COLUMNS
from analysis.plots import ablation, style
from analysis.read.load import load_runs
from tests.analysis.conftest import checked

NAN = math.nan
METRIC = "val/mean_class_accuracy"


def row(variant, diff=NAN, half=0.01, p_holm=NAN, **more):
    known = {
        "method": "soft_kmeans",
        "condition": "data.num_labels=50",
        "variant": variant,
        "changes": "",
        "retuned": False,
        "metric": METRIC,
        "pairs": 10,
        "missing": 0,
        "diff": diff,
        "diff_low": diff - half,
        "diff_high": diff + half,
        "p_better": 0.25,
        "p_holm": p_holm,
    }
    return {**known, **more}


ROWS = [
    row("reference", p_better=NAN),
    row("no_ramp_up", 0.004, p_holm=1.0),
    row("no_cluster", -0.03, p_holm=0.01, changes="losses.cluster.weight=0", retuned=True),
    row("crashed", pairs=0, missing=10, p_better=NAN),
    row("one_seed", -0.1, NAN, pairs=1),
]
TABLE = pd.DataFrame(ROWS, columns=ABLATION_COLUMNS)


@pytest.fixture(name="runs")
def _runs(tmp_path, write_run):
    return load_runs([write_run(tmp_path / "a", labels=(50,))])


def test_a_forest_of_variants(runs):
    (plot,) = ablation.plots(runs, {"ablation": TABLE}, style.colours(runs.labels))
    assert (
        plot.name == "ablation-data.num_labels=50-soft_kmeans"
        and plot.group == "data.num_labels=50"
    )
    assert plot.title == "Variant minus reference: soft_kmeans"
    assert "0 to 10 seed(s) per row" in plot.caption and METRIC in plot.caption
    shown = plot.table["row"].to_list()
    assert shown == ["one_seed", "no_cluster (retuned)", "no_ramp_up", "crashed"]
    axis = checked(plot.figure).layout.yaxis
    assert list(axis.ticktext) == shown and axis.range[0] > axis.range[1]  # the first at the top
    at = {}
    for trace in checked(plot.figure).data:
        for x, y, text in zip(trace.x, trace.y, trace.text, strict=True):
            at[axis.ticktext[axis.tickvals.index(y)]] = (x, trace.marker.symbol, text)
    assert at["no_cluster (retuned)"][:2] == (pytest.approx(-3), "circle")
    assert at["no_ramp_up"][:2] == (pytest.approx(0.4), "circle-open")
    assert at["one_seed"][:2] == (pytest.approx(-10), "circle-open")
    assert "-3.0 [-4.0, -2.0] points, 10 seed(s)" in at["no_cluster (retuned)"][2]
    assert (
        "P(above the reference) 0.25<br>p (Holm) 0.01<br>losses.cluster"
        in (at["no_cluster (retuned)"][2])
    )
    assert "-10.0 (no interval) points, 1 seed(s)" in at["one_seed"][2]
    assert [note.text for note in checked(plot.figure).layout.annotations] == ["no pairs"]
    (zero,) = checked(plot.figure).layout.shapes
    assert zero.x0 == zero.x1 == 0


def test_a_lower_loss_is_no_harm(runs):
    rows = ablation.variant_rows(TABLE.assign(metric="val/loss"))
    ordered = ablation.worst_first(rows, "min")["row"].to_list()
    assert ordered == ["no_ramp_up", "no_cluster (retuned)", "one_seed", "crashed"]
    figure = checked(ablation.forest_figure(ablation.worst_first(rows, "min"), "#0072B2"))
    assert figure.layout.xaxis.title.text == "difference"
    assert min(x for trace in figure.data for x in trace.x) == pytest.approx(-0.1)


def test_a_forest_of_effects(runs):
    found = [("a", -0.02, 0.03), ("b", 0.0, 1.0), ("a x b", 0.02, 0.06)]
    own = {"method": "soft_kmeans", "condition": "data.num_labels=50", "metric": METRIC, "n": 10}
    table = pd.DataFrame(
        [{**own, "effect": e, "mean": m, "p_holm": p} for e, m, p in found],
        columns=EFFECT_COLUMNS,
    )
    (plot,) = ablation.plots(runs, {"effects": table}, style.colours(runs.labels))
    assert plot.table["row"].to_list() == ["a", "b", "a x b"]
    assert plot.table["significant"].to_list() == [True, False, False]


def test_no_ablation_no_figure(runs):
    colours = style.colours(runs.labels)
    empty = {"ablation": TABLE[:0], "effects": pd.DataFrame(columns=EFFECT_COLUMNS)}
    assert list(ablation.plots(runs, empty, colours)) == []
    assert list(ablation.plots(runs, {}, colours)) == []
    for unfinished in (TABLE[:1], TABLE[TABLE["variant"] == "crashed"]):
        assert list(ablation.plots(runs, {"ablation": unfinished}, colours)) == []


def test_long_names_wrap_and_make_room():
    long = "losses.cluster.temperature_schedule_with_a_long_name=0.25 and more"
    lines = ablation.broken_name(long).split("<br>")
    assert len(lines) == 3 and max(map(len, lines)) <= ablation.LONGEST
    assert "".join(lines).replace(" ", "") == long.replace(" ", "")
    assert ablation.broken_name("<b>x") == "&lt;b&gt;x" and ablation.broken_name("") == ""
    short, tall = (
        checked(ablation.forest_figure(ablation.variant_rows(table), "#0072B2")).layout.height
        for table in (TABLE[1:2], TABLE[1:2].assign(variant=long))
    )
    assert tall == short + 2 * ablation.LINE
