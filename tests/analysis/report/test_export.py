"""Figures as files: drawn by a real browser, or refused in one line before anything is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from analysis.plots import Plot, style
from analysis.report import export
from analysis.report.report import write_report
from tests.analysis.conftest import checked
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
