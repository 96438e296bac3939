"""Tables for a paper: a method per row, the best in bold, the protocol in the caption."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import pandas as pd
import pytest

from analysis.numbers.tables import budget_table, results_table
from analysis.read.load import load_runs
from analysis.report import latex, typeset
from analysis.report.paper import PaperTable, protocol, wide_table
from analysis.report.report import all_captions, all_tables
from analysis.words.display import is_bold


@pytest.fixture
def results():
    columns = ["method", "condition", "labels", "mean", "low", "high", "best"]
    rows = [
        ("a_1", "data.num_labels=50", 50, 0.8, 0.75, 0.85, True),
        ("b", "data.num_labels=50", 50, 0.7, 0.65, 0.74, False),
        ("a_1", "data.num_labels=200", 200, 0.9, math.nan, math.nan, False),
        ("b", "data.num_labels=200", 200, math.nan, math.nan, math.nan, False),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_wide_table_has_a_column_per_condition(results):
    table = wide_table(results)
    assert list(table["method"]) == ["a_1", "b"]
    assert table.loc[1, "50 labels mean"] == 0.7 and math.isnan(table.loc[1, "200 labels mean"])
    tex = PaperTable(table, "results_wide").latex
    assert r"\begin{tabular}{@{}lrr@{}}" in tex and r"Method & 50 labels & 200 labels \\" in tex
    assert (
        "a\\_1 & \\textbf{80.0} & 90.0 \\\\\n & \\scriptsize [75.0, 85.0] & \\scriptsize (no" in tex
    )
    assert r"b & 70.0 & -- \\" in tex
    assert "| b | 70.0 [65.0, 74.0] | \u2013 |" in PaperTable(table, "results_wide").md


def test_conditions_that_share_a_label_count_go_by_their_ids(results):
    table = wide_table(results.assign(labels=50))
    assert "data.num_labels=50 mean" in table and "data.num_labels=200 mean" in table


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
    event(path, "locked", "c0-t0005", "data.num_labels=50", digest="g5", phase="confirm")
    searched = write_run(
        tmp_path / "b", method="uda", search=(("finished", 0.5, None),), confirm={}
    )
    runs = load_runs([path, searched])
    found = protocol(runs, results_table(runs), budget_table(runs))
    assert "once" not in found and "(6 begun) and locked; 1 condition had" in found


ENGINES = ("pdflatex", "xelatex", "lualatex", "tectonic")
ENGINE = next(filter(shutil.which, ENGINES), None)
EVIL = r"x_y & 50% #1 {z} $d ~e ^f \g <i> |j| - [k] " + "w" * 60 + " m.n_o=" * 9


def set_as(intervals, results):
    return PaperTable(wide_table(results), "results_wide", "All.", intervals).latex


def test_intervals_are_set_as_asked_for(results):
    assert r"\textbf{80.0 [75.0, 85.0]} & 90.0 (no interval) \\" in set_as("brackets", results)
    assert "scriptsize" in set_as("stacked", results)
    assert set_as("", results) == set_as("stacked", results)
    uneven = results.assign(low=results["mean"] - 0.0149, high=results["mean"] + 0.0349)
    tex = set_as("plusminus", uneven)
    assert r"\textbf{80.0 $\pm$ 2.5} & 90.0 $\pm$ 2.5 \\" in tex
    assert r"\caption{All. The number after $\pm$ is half the width of the interval.}" in tex
    plain = pd.DataFrame({"a": ["b"]})
    assert "pm" not in PaperTable(plain, "other", "All.", "plusminus").latex


def test_half_a_width_is_of_the_raw_numbers_and_not_of_what_is_cut_at_100(two):
    runs = load_runs(two.runs)
    found = PaperTable(results_table(runs), "results", "", "plusminus")
    row = found.table.iloc[0]
    half = 100 * (row["high"] - row["low"]) / 2
    assert f"{100 * row['mean']:.1f} $\\pm$ {half:.1f}" in found.latex
    cut = found.table.assign(mean=0.99, low=0.95, high=1.03)
    assert r"99.0 $\pm$ 4.0" in PaperTable(cut, "results", "", "plusminus").latex


def test_intervals_that_are_not_symmetric_stay_in_brackets(two):
    table = all_tables(load_runs(two.runs))["differences"]
    tex = PaperTable(table, "differences", "", "plusminus").latex
    assert r"+10.0 $\pm$ 0.0" in tex
    saved = {"method": "a", "labels": 20, "reference": "b", "equals": 46.0, "low": 31.0}
    saved |= {"high": 70.0, "least": 20.0, "most": 100.0, "n": 5}
    tex = PaperTable(pd.DataFrame([saved]), "labels_saved", "", "plusminus").latex
    assert "46 [31, 70]" in tex and "pm" not in tex


def test_columns_of_more_are_left_out(two):
    for stem, table in all_tables(load_runs(two.runs)).items():
        found = PaperTable(table, stem)
        titles = [head.title for head in found.layout.heads]
        assert titles == [column.title for column in found.columns if not column.more], stem
    assert "P(better)" not in PaperTable(all_tables(load_runs(two.runs))["differences"], "x").latex


def test_minus_signs_are_no_hyphens():
    head = [latex.Head("Points")]
    rows = [[latex.Cell("-3.6 [-5.8, +1.4]")], [latex.Cell("c0-t1")]]
    tex = latex.Layout("t", head, rows).text
    assert "$-$3.6 [$-$5.8, +1.4]" in tex and "c0-t1" in tex


def measured_again(line, points):
    """A second estimate of a line's width: every character of cmr10, the designs scaled, no margin."""
    plain = re.sub(r"\\(raggedright|allowbreak\{\}|scriptsize|textbf)", "", line)
    plain = re.sub(r"\\text[a-z]+\{\}|\$\\pm\$|\$-\$", "+", plain)
    plain = re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\)[{}]", "", plain))
    design = {9.0: 1.028, 8.0: 1.0625, 7.0: 1.139}[points]
    bold = 1.15 if "textbf" in line else 1.0
    units = sum(typeset.CMR10[ord(c) - 33] for c in plain if "!" <= c <= "~")
    return bold * design * points * (units + 333 * plain.strip(" {}").count(" ")) / 1000


def tabulars(tex):
    """(what is aligned how, rows of cells, tabcolsep, type size) of each tabular or longtable."""
    size = latex.SIZES[re.search(r"\\(small|footnotesize|scriptsize)", tex)[1]]
    begin = r"tabcolsep\}\{([\d.]+)pt\}\n\\begin\{(?:tabular|longtable)\}"
    pattern = begin + r"\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{(?:tab|long)"
    for space, spec, body in re.findall(
        pattern, re.sub(r"\\begin\{tabular\}\[b\].*?\\end\{tabular\}", "", tex), re.S
    ):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)&", line)]
            for line in body.split("\n")
            if re.search(r"(?<!\\)&", line) and not line.startswith(r"\caption")
        ]
        yield re.findall(r"p\{[\d.]+pt\}|[lr]", spec), rows, float(space), size


def assert_fits(tex):
    count = 0
    for aligned, rows, space, size in tabulars(tex):
        total = 2 * space * (len(aligned) - 1)
        for place, kind in enumerate(aligned):
            if kind.startswith("p"):
                total += float(kind[2:-3])
                continue
            lines = [re.sub(r"\\\\.*$|\\tabularnewline.*$", "", row[place]) for row in rows]
            total += max(measured_again(c, 7.0 if "scriptsize" in c else size) for c in lines)
        assert total <= latex.WIDTH + 0.5, (total, aligned)
        count += 1
    assert count


def wide(budgets, methods):
    rows = [
        (method, f"x={n}", 10 * n, 0.8, 0.751, 0.849, True) for method in methods for n in budgets
    ]
    columns = ["method", "condition", "labels", "mean", "low", "high", "best"]
    return wide_table(pd.DataFrame(rows, columns=columns))


@pytest.fixture(scope="module")
def all_layouts(two, tmp_path_factory):
    """Every table of a report of two methods, and some that are hard to fit, in the three settings."""
    runs = load_runs(two.runs)
    found = all_tables(runs)
    captions = all_captions(runs, found)
    hard = {
        "many budgets": (wide(range(1, 15), ["fixmatch", "b"]), "results_wide", ""),
        "many methods": (wide((1, 2), [f"method_{n}" for n in range(90)]), "results_wide", ""),
        "evil methods": (wide((1, 2, 3), [EVIL, "b"]), "results_wide", EVIL),
        "evil text": (pd.DataFrame({EVIL: [EVIL, "b"], "b": ["", EVIL]}), "other", EVIL),
        "evil places": (found["places"].assign(method=EVIL, key=EVIL * 3), "places", EVIL),
        "many columns": (pd.DataFrame([{f"c{n}": EVIL for n in range(40)}]), "other", ""),
        "one word": (pd.DataFrame({"a": ["v" * 500]}), "other", ""),
    }
    hard |= {stem: (table, stem, captions.get(stem, "")) for stem, table in found.items()}
    return {
        f"{name} {intervals}": PaperTable(*arguments, intervals).layout
        for name, arguments in hard.items()
        for intervals in latex.INTERVALS
    }


def test_every_table_fits_the_text_of_an_article(all_layouts):
    for name, layout in all_layouts.items():
        assert all(block.width <= latex.WIDTH + 0.01 for block in layout.blocks), name
        assert_fits(layout.text)
        assert layout.text.startswith("% Needs the packages booktabs"), name
        shown = {place for block in layout.blocks for place in block.places}
        assert shown == set(range(len(layout.heads))), name


def test_columns_that_do_not_fit_side_by_side_stand_in_blocks_that_name_the_method():
    layout = PaperTable(wide(range(1, 15), ["fixmatch", "b"]), "results_wide", "All.").layout
    assert len(layout.blocks) > 1 and all(block.places[0] == 0 for block in layout.blocks)
    tex = layout.text
    assert f"% Its columns are in {len(layout.blocks)} blocks, one below the other." in tex
    assert tex.count(r"\caption") == tex.count(r"\begin{table}") == 1
    assert tex.count("Method &") == len(layout.blocks)


def test_a_table_taller_than_a_page_goes_on_and_one_of_thousands_of_rows_is_cut():
    table = pd.DataFrame({"a": [f"row {n}" for n in range(1234)]})
    tex = PaperTable(table, "other", "All.").latex
    assert tex.startswith("% Needs the packages booktabs, longtable; fits 345 pt")
    assert "% The first 200 of 1,234 rows; other.csv has all of them." in tex
    assert r"\caption{All. The first 200 of 1,234 rows.}" in tex
    assert "row 199" in tex and "row 200" not in tex
    assert tex.index(r"\caption") < tex.index(r"\endfirsthead") < tex.index(r"\endhead")
    assert tex.count(r"\caption") == 1  # not on every page
    short = PaperTable(table.head(5), "other").latex
    assert "longtable" not in short and "The first" not in short


@pytest.mark.skipif(ENGINE is None, reason="no TeX")
def test_tex_sets_every_table_without_an_overfull_line(all_layouts, tmp_path):
    document = [r"\documentclass{article}", r"\usepackage{booktabs,longtable}", r"\begin{document}"]
    for number, (name, layout) in enumerate(all_layouts.items()):
        (tmp_path / f"{number}.tex").write_text(layout.text, encoding="utf-8")
        document += [rf"\typeout{{TABLE {name}}}\input{{{number}}}\clearpage"]
    (tmp_path / "all.tex").write_text("\n".join([*document, r"\end{document}", ""]))
    options = [] if ENGINE == "tectonic" else ["-interaction=nonstopmode"]
    command = [ENGINE, *options, "--keep-logs"] if ENGINE == "tectonic" else [ENGINE, *options]
    done = subprocess.run([*command, "all.tex"], cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "all.log").read_text(encoding="utf-8", errors="replace")
    errors = [line for line in log.splitlines() if line.startswith("!")]
    assert done.returncode == 0 and not errors, errors[:3]
    over = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
    assert max(over, default=0) <= 1, log[: log.index("Overfull")][-500:]
    assert "Float too large" not in log


@pytest.mark.skipif(ENGINE is None, reason="no TeX")
def test_widths_are_those_of_tex_or_a_little_more(all_layouts, tmp_path):
    document = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}"]
    expected = []
    for layout in all_layouts.values():
        if layout.long:
            continue
        size = rf"\{layout.size}"
        found = re.findall(
            r"(\\setlength.*?)\n(\\begin\{tabular\}.*?\n\\end\{tabular\})", layout.text, re.S
        )
        for (space, tabular), block in zip(found, layout.blocks, strict=True):
            document.append(
                rf"{{{size}{space}\setbox0=\hbox{{{tabular}}}\typeout{{WIDTH \the\wd0}}}}"
            )
            expected.append(block.width)
    (tmp_path / "all.tex").write_text("\n".join([*document, r"\end{document}", ""]))
    subprocess.run(
        [ENGINE, "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    log = (tmp_path / "all.log").read_text(encoding="utf-8", errors="replace")
    widths = [float(points) for points in re.findall(r"^WIDTH ([\d.]+)pt", log, re.M)]
    assert len(widths) == len(expected) > 10
    for width, estimate in zip(widths, expected, strict=True):
        assert width <= estimate + 0.5 and estimate <= 1.08 * width + 1, (width, estimate)
