"""Tables for a paper: a method per row, the best in bold, the protocol in the caption."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from analysis.numbers.tables import budget_table, results_table
from analysis.read.load import load_runs
from analysis.report.paper import PaperTable, protocol, wide_table
from analysis.words.display import is_bold


@pytest.fixture
def results():
    columns = ["method", "condition", "labels", "mean", "low", "high", "best"]
    rows = [
        ("a_1", "x=1", 50, 0.8, 0.75, 0.85, True),
        ("b", "x=1", 50, 0.7, 0.65, 0.74, False),
        ("a_1", "x=2", 200, 0.9, math.nan, math.nan, False),
        ("b", "x=2", 200, math.nan, math.nan, math.nan, False),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_wide_table_has_a_column_per_condition(results):
    table = wide_table(results)
    assert list(table["method"]) == ["a_1", "b"]
    assert table.loc[1, "50 labels mean"] == 0.7 and math.isnan(table.loc[1, "200 labels mean"])
    tex = PaperTable(table, "results_wide").latex
    assert r"\begin{tabular}{lrr}" in tex and r"Method & 50 labels & 200 labels \\" in tex
    assert r"a\_1 & \textbf{80.0 [75.0, 85.0]} & 90.0 (no interval) \\" in tex
    assert r"b & 70.0 [65.0, 74.0] & -- \\" in tex
    assert "| b | 70.0 [65.0, 74.0] | \u2013 |" in PaperTable(table, "results_wide").md


def test_conditions_that_share_a_label_count_go_by_their_ids(results):
    table = wide_table(results.assign(labels=50))
    assert "x=1 mean" in table and "x=2 mean" in table


def test_nothing_is_bold_without_a_rival(results):
    table = wide_table(results[results["method"] == "a_1"])
    assert not table["50 labels best"].any()
    assert wide_table(results.iloc[:0]).empty


def test_caption_states_the_protocol(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", confirm={1: 0.8})])
    found = protocol(runs, results_table(runs), budget_table(runs))
    for part in (
        "(%) on the test images of digits",
        "mean over 1 to 5 fresh seeds with Student's t intervals (95 % from 4 seeds on)",
        "chosen on validation data among 3 finished search trials (6 begun) and locked before test data was opened",
        "Bold: a condition's highest mean, and every one that paired t tests against it",
    ):
        assert part in found


def test_latex_escapes_what_would_break_it(results):
    caption = r"50 % of a_b & {c} $d #e ~f ^g \h <i> |j|"
    tex = PaperTable(wide_table(results), "results_wide", caption).latex
    assert (
        r"\caption{50 \% of a\_b \& \{c\} \$d \#e \textasciitilde{}f \textasciicircum{}g "
        r"\textbackslash{}h \textless{}i\textgreater{} \textbar{}j\textbar{}}"
    ) in tex
    assert r"\label{tab:results_wide}" in tex and r"\bottomrule" in tex


def test_runs_that_differ_in_labels_under_one_id_share_no_column_and_no_bold(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50, 99), conditions=["x=1", "x=2"])
    b = write_run(tmp_path / "b", method="uda", labels=(60, 99), conditions=["x=1", "x=2"])
    results = results_table(load_runs([a, b]))
    assert results["best"].all()  # 50 and 60 labels each have a best of their own
    table = wide_table(results)
    titles = [column for column in table if column.endswith(" mean")]
    assert titles == ["x=1, 50 labels mean", "x=1, 60 labels mean", "x=2 mean"]
    assert table["x=2 best"].all() and not table[
        ["x=1, 50 labels best", "x=1, 60 labels best"]
    ].any(axis=None)
    assert is_bold(results) == [False, False, True, True]


def test_caption_claims_no_single_opening_where_two_configs_were_locked(tmp_path, write_run, event):
    path = write_run(tmp_path / "a")
    event(path, "locked", "c0-t0005", "data.labels=50", digest="g5", phase="confirm")
    searched = write_run(
        tmp_path / "b", method="uda", search=(("finished", 0.5, None),), confirm={}
    )
    runs = load_runs([path, searched])
    found = protocol(runs, results_table(runs), budget_table(runs))
    assert "once" not in found and "(6 begun) and locked; 1 condition had" in found
