"""The first screen: what the grid and its sentences say is what the tables say."""

import numpy as np
import pytest

from analysis.plots import all_plots
from analysis.read.load import load_runs
from analysis.report.report import all_captions, all_tables
from analysis.words.display import LONGEST_CAPTION, brief
from analysis.words.overview import grid, method_sentences
from analysis.words.sections import TITLES
from tests.analysis.conftest import CONFIRMED, said

BASE = dict(zip(range(8), (0.80, 0.84, 0.82, 0.86, 0.83, 0.81, 0.85, 0.79), strict=True))
NOISE = (0.02, -0.03, 0.01, -0.02, 0.03, -0.01, 0.02, -0.015)


@pytest.fixture(name="runs")
def _runs(tmp_path, write_run):
    """supervised; fixmatch, better with 20 labels and the same with 80; kmeans, worse."""
    same = {seed: BASE[seed] + NOISE[seed] for seed in BASE}
    flat = {"labels": (20, 80), "diag": False}
    return load_runs(
        [
            write_run(
                tmp_path / "a", method="supervised", confirm=BASE, shift={20: 0.0, 80: 0.1}, **flat
            ),
            write_run(
                tmp_path / "b", method="kmeans", confirm=same, shift={20: -0.2, 80: -0.1}, **flat
            ),
            write_run(
                tmp_path / "c", method="fixmatch", confirm=same, shift={20: 0.06, 80: 0.1}, **flat
            ),
        ]
    )


def test_the_grid_is_the_table_of_differences(runs):
    tables = all_tables(runs)
    found = grid(runs, tables)
    assert found.columns == ("20 labels", "80 labels", "Mean")
    assert [method for method, _ in found.rows] == ["supervised", "fixmatch", "kmeans"]
    cells = dict(found.rows)
    assert [cell.text for cell in cells["supervised"]] == ["82.5 %", "92.5 %", "87.5 %"]
    assert [cell.kind for cell in cells["fixmatch"]] == ["win", "tie", "win"]
    assert [cell.kind for cell in cells["kmeans"]] == ["loss", "loss", "loss"]
    assert [cell.mark for cell in cells["kmeans"]] == ["▼"] * 3
    rows = tables["differences"].set_index(["method", "labels"])
    for method in ("fixmatch", "kmeans"):
        for cell, labels in zip(cells[method][:2], (20, 80), strict=True):
            row = rows.loc[(method, labels)]
            assert cell.text == f"{100 * row['mean']:+.1f}"
            assert cell.below == f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            assert (cell.kind == "tie") == (row["p_holm"] >= 0.05)
    assert "gained over supervised" in found.legend and "Holm" in found.legend
    assert found.facts == (
        "300 test images; chosen on 200 labeled validation images (known to ±9.6 points); 8 fresh seeds each."
    )


def test_each_method_has_a_sentence(runs):
    lines = [*method_sentences(runs, all_tables(runs))]
    assert (
        lines[0]
        == "supervised: 82.5 % [80.5, 84.5] with 20 labels, 92.5 % [90.5, 94.5] with 80 labels."
    )
    assert (
        lines[1].startswith("fixmatch: +3.1 points [") and "over supervised on average" in lines[1]
    )
    assert "better with 20 labels, not told apart with 80 labels" in lines[1]
    assert "; with 20 labels it equals supervised with 46 [3" in lines[1]
    assert lines[2].startswith("kmeans: -19.9 points [")
    assert lines[2].endswith("worse with 20 labels and 80 labels.")


def test_one_method_has_what_it_reaches(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", labels=(50,))])
    found = grid(runs, all_tables(runs))
    assert found.columns == ("50 labels",) and found.rows[0][1][0].text == "83.0 %"
    assert "gained" not in found.legend
    assert [*method_sentences(runs, all_tables(runs))] == [
        "soft_kmeans: 83.0 % [80.2, 85.8] with 50 labels."
    ]


def test_without_a_test_value_there_is_no_grid(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a", confirm={})])
    assert grid(runs, all_tables(runs)) is None


def test_an_outlying_seed_is_named_where_the_reader_looks(tmp_path, write_run):
    collapsed = {**CONFIRMED, 5: 0.81, 6: 0.1}
    runs = load_runs([write_run(tmp_path / "a", labels=(50,), confirm=collapsed)])
    others = np.mean([value for seed, value in collapsed.items() if seed != 6])
    shift = 100 * (np.mean(list(collapsed.values())) - others)
    line = (
        "soft_kmeans, data.num_labels=50: seed 6 (10.0) is far from the other seeds: the mean is "
        f"{shift:+.1f} points from theirs, which t intervals and tests are not made for."
    )
    assert line in said(runs)
    (sentence,) = method_sentences(runs, all_tables(runs))
    assert sentence.endswith("; with 50 labels seed 6 (10.0) is far from the others.")
    assert "far from" not in "\n".join(said(load_runs([write_run(tmp_path / "b")])))


def test_captions_stand_in_two_lines(runs, tmp_path, write_run):
    found = all_tables(runs)
    captions = {**all_captions(runs, found)}
    whole = load_runs([write_run(tmp_path / "all")])
    for one in (runs, whole):
        tables = all_tables(one)
        captions |= {plot.name: plot.caption for plot in all_plots(one, tables)}
    long = {name: brief(text)[0] for name, text in captions.items()}
    assert {name: text for name, text in long.items() if len(text) > LONGEST_CAPTION} == {}
    for name, text in captions.items():
        first, rest = brief(text)
        assert f"{first} {rest}".strip() == text, name


def test_conditions_that_methods_do_not_share_have_no_mean(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="supervised", labels=(50,))
    b = write_run(tmp_path / "b", method="uda", labels=(200,))
    runs = load_runs([a, b])
    found = grid(runs, all_tables(runs))
    assert found.columns == ("50 labels", "200 labels")
    texts = [cell.text for _, cells in found.rows for cell in cells]
    assert not any("nan" in text for text in texts)
    assert "nan" not in " ".join(method_sentences(runs, all_tables(runs)))


def test_labels_are_saved_only_where_the_rule_says_that_it_wins(runs):
    tables = all_tables(runs)
    kinds = dict(grid(runs, tables).rows)["fixmatch"]
    assert [cell.kind for cell in kinds[:2]] == ["win", "tie"]
    blind = {**tables, "differences": tables["differences"].assign(p_holm=0.2)}
    assert not any("it equals" in line for line in method_sentences(runs, blind))


def test_titles_are_titles():
    assert {name: text for name, text in TITLES.items() if len(text) > 60} == {}
