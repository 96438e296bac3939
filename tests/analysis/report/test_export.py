"""Figures as files: drawn by a real browser, or refused in one line before anything is written."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.plots import Plot, style
from analysis.report import export
from analysis.report.report import write_report
from tests.analysis.conftest import checked
from tests.support.runs import called
from tune_ssl.base.errors import UserError

KALEIDO = importlib.util.find_spec("kaleido")
STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<svg"}


@pytest.fixture
def plot():
    figure = style.figure("labels", "accuracy, %")
    figure.add_scatter(x=[1, 2], y=[3, 4], line={"color": style.NEUTRAL})
    return Plot("efficiency", "one-figure", "One & all", figure, None)


@pytest.mark.skipif(not (KALEIDO and export.browser()), reason="no kaleido or no browser")
def test_figures_are_written_by_a_browser(tmp_path, plot):
    written = export.write_figures([plot], tmp_path / "figures", export.FORMATS)
    assert {path.name for path in written} == {f"one-figure.{name}" for name in export.FORMATS}
    for path in written:
        assert path.read_bytes().startswith(STARTS[path.suffix[1:]])
    drawn = (tmp_path / "figures" / "one-figure.svg").read_text()
    assert "accuracy, %" in drawn and "One &amp; all" in drawn
    assert style.NEUTRAL.lower() not in drawn.lower() and "rgb(255, 255, 255)" in drawn


def test_on_paper_is_black_on_white_and_leaves_the_original_alone(plot):
    copy = checked(style.on_paper(plot.figure, "A title", 500))
    assert copy.layout.paper_bgcolor == "#ffffff" and copy.layout.font.color == "#000000"
    assert copy.data[0].line.color == "#000000" and copy.layout.xaxis.linecolor == "#000000"
    assert copy.layout.width == 500 and copy.layout.title.text == "A title"
    assert checked(plot.figure).layout.paper_bgcolor == "rgba(0,0,0,0)"


@pytest.mark.skipif(not KALEIDO, reason="no kaleido")
def test_no_browser_is_one_line_and_nothing_is_written(tmp_path, write_run, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nonexistent")
    with pytest.raises(UserError, match="^--format png,svg needs Chromium or Chrome, and none was"):
        write_report([write_run(tmp_path / "a")], tmp_path / "out", ["csv", "png", "svg"])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (KALEIDO and Path("/bin/true").exists()), reason="no kaleido")
def test_a_browser_that_does_not_start_is_one_line(tmp_path, plot, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/bin/true")
    with pytest.raises(UserError, match=r"^/bin/true could not draw the figures: .+$"):
        export.write_figures([plot], tmp_path, ["svg"])


def test_no_kaleido_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="^--format svg needs kaleido: pip install"):
        export.check(["svg"])


def named(*names):
    """Figures of these names; what stands after a double hyphen is the condition."""
    figure = style.figure("a", "b")
    parts = [name.partition("--") for name in names]
    return [
        Plot("s", f"{name}-{group}" if group else name, "T", figure, None, group=group)
        for name, _, group in parts
    ]


FIGURES = named(
    "label-efficiency",
    "search--x=1",
    "search--x=2",
    "search-curves--x=1",
    "search-curves--x=2",
    "confusion--x=1",
    "cost",
)


@pytest.mark.parametrize(
    ("wanted", "drawn"),
    [
        (["cost", "label-efficiency"], ["label-efficiency", "cost"]),
        (["search-curves"], ["search-curves-x=1", "search-curves-x=2"]),
        (["search"], ["search-x=1", "search-x=2"]),
        (["search-curves-x=2"], ["search-curves-x=2"]),
        (["label"], ["label-efficiency"]),
        (["cost", "cost"], ["cost"]),
        ([], [plot.name for plot in FIGURES]),
    ],
)
def test_figures_are_picked_by_name_family_or_beginning(wanted, drawn):
    assert [plot.name for plot in export.picked(FIGURES, wanted)] == drawn


def test_an_unknown_figure_is_one_line_with_the_nearest_and_all_others():
    with pytest.raises(UserError) as error:
        export.picked(FIGURES, ["cost", "label-eficiency"])
    assert str(error.value) == (
        "--figures is 'label-eficiency', but must be a known figure; did you mean "
        "'label-efficiency'? (known: confusion, cost, label-efficiency, search, search-curves)"
    )
    with pytest.raises(UserError, match="must be a known figure"):
        export.picked(FIGURES, ["cos"])  # a name begins with whole words


def test_figures_that_differ_in_an_odd_condition_are_one_family():
    found = named("search-curves--a b/c", "cost")
    odd = [replace(found[0], name="search-curves-a_b_c-0a1b2c3d"), found[1]]
    assert list(export.families(odd)) == ["search-curves", "cost"]


def test_command_lists_the_figures_and_writes_nothing(tmp_path, write_run, monkeypatch, capsys):
    path = write_run(tmp_path / "a")
    code, out, err = called(monkeypatch, capsys, "report", str(path), "--figures", "list")
    assert code == 0 and not err and not (path / "report").exists()
    assert {"label-efficiency", "cost", "search (2)", "confusion (2)"} <= set(out.splitlines())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--figures", "cost"],
            "--figures names figures to draw as files, but --format is csv,md,latex: "
            "add one of png, svg, pdf",
        ),
        (["--figures", ","], "--figures is ',', but must name figures: a,b"),
        (
            ["--intervals", "stack"],
            "--intervals is 'stack', but must be a known setting; did you mean 'stacked'? "
            "(known: brackets, plusminus, stacked)",
        ),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(
    tmp_path, write_run, monkeypatch, capsys, options, line
):
    path = write_run(tmp_path / "a")
    code, out, err = called(monkeypatch, capsys, "report", str(path), *options)
    assert (code, out, err) == (2, "", line + "\n")
    assert not (path / "report").exists()


def test_command_draws_the_named_figures_alone(tmp_path, write_run, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(export, "check", lambda formats: None)
    monkeypatch.setattr(export, "write_figures", lambda plots, *_: drawn.extend(plots))
    path = write_run(tmp_path / "a")
    command = ["report", str(path), "--format", "latex,pdf", "--figures"]
    code, _, err = called(monkeypatch, capsys, *command, "cost, search-curvs")
    assert code == 2 and "did you mean 'search-curves'?" in err and err.count("\n") == 1
    assert not (path / "report").exists() and not drawn
    options = ["label-efficiency,search-curves", "--intervals", "plusminus"]
    assert called(monkeypatch, capsys, *command, *options)[0] == 0
    conditions = ("data.num_labels=50", "data.num_labels=200")
    names = ["label-efficiency", *(f"search-curves-{where}" for where in conditions)]
    assert [plot.name for plot in drawn] == names
    assert r"83.0 $\pm$ 2.8" in (path / "report/tables/results.tex").read_text()
