"""The page's section on what the model sees: strips, captions, and lines that are no galleries."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from analysis.read.galleries import agreement
from analysis.read.load import load_runs
from tests.analysis.conftest import report
from tune_ssl.records import log


def png(width=30, height=10):
    content = io.BytesIO()
    Image.new("L", (width, height), 7).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def gallery(path, condition="data.num_labels=50", trial="c0-confirm-s0", **more):
    """Append a gallery of three neighbours."""
    row = {"title": "cat", "png": png(), "width": 30, "captions": ["cat", "cat", "dog"]}
    line = {
        "trial": trial,
        "condition": condition,
        "seed": 0,
        "name": "neighbours",
        "title": "Nearest",
        "rows": [row],
        "values": {"class_agreement": 0.8716, "k": 5, "images": 1234},
        "error": None,
    }
    log.append(path / log.GALLERIES, {**line, **more})


class Page(HTMLParser):
    """The images, the text of their captions, and the marked ones."""

    def __init__(self, page):
        super().__init__()
        self.images, self.captions, self.others = [], [], []
        self.inside = self.span = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.images += [found] if tag == "img" else []
        self.inside = True if found.get("class") == "strip" else self.inside
        self.span = found.get("class", "") if tag == "span" and self.inside else None

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "div"
        self.span = None if tag == "span" else self.span

    def handle_data(self, data):
        if self.span is not None:
            self.captions.append(data)
            self.others += [data] if self.span == "other" else []


def test_a_report_without_galleries_has_no_such_section(one):
    assert "s-sees" not in one.page and "What the model sees" not in one.page


def test_each_condition_shows_its_strips_captions_and_agreement(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    gallery(run)
    rows = [{"title": "weak", "png": png(), "width": 30, "captions": []}]
    gallery(run, name="pictures", title="Views", rows=rows, values={})
    gallery(run, "data.num_labels=200", "c1-confirm-s0", values={"class_agreement": None, "k": 5})
    text = report(tmp_path, run).page
    found = Page(text)
    assert text.count('href="#s-sees"') == text.count('id="s-sees"') == 1
    assert (
        "Over all 1,234 validation images: of the 5 nearest validation images, 87.2 % have the "
        "query&#39;s class." in text
    )
    assert text.count("nearest validation images, ") == 1 and "None" not in text.split("<script")[0]
    assert [image["src"] for image in found.images] == ["data:image/png;base64," + png()] * 3
    assert found.images[0]["alt"] == "cat; nearest: cat, dog" and found.images[1]["alt"] == "weak"
    assert found.captions == ["cat", "cat", "dog"] * 2 and found.others == ["dog", "dog"]
    section = text[text.index('id="s-sees"') : text.index('id="s-search"')]
    assert section.index("data.num_labels=50") < section.index("Views")
    assert section.index("Views") < section.index("data.num_labels=200")
    assert "weak</p>" in section and "soft_kmeans" not in section


def test_several_runs_are_told_apart(tmp_path, write_run):
    runs = [write_run(tmp_path / m, method=m, diag=False) for m in ("fixmatch", "uda")]
    for run in runs:
        gallery(run)
    gallery(runs[0], title="other kind", schema=99)
    text = report(tmp_path, *runs).page
    section = text[text.index('id="s-sees"') : text.index('id="s-search"')]
    assert "fixmatch. Over all" in section and "uda. Over all" in section
    assert section.count("<details open><summary>") == 1
    assert "1 strange line(s) left out." in text


def test_the_last_gallery_of_a_trial_counts(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    gallery(run, title="before the crash")
    gallery(run, title="after it")
    assert [g.title for g in load_runs([run]).galleries] == ["after it"]


STRANGE = (
    {"rows": None},
    {"rows": []},
    {"rows": ["x"]},
    {"rows": [{"png": 3, "width": 30}]},
    {"rows": [{"png": 'iVBORw0KGgo" onload="x', "width": 30}]},
    {"rows": [{"png": "R0lGODlh", "width": 30}]},
    {"rows": [{"png": "iVBORw0KGgo=", "width": "30"}]},
    {"rows": [{"png": "iVBORw0KGgo=", "width": 10**9}]},
    {"rows": [{"png": "iVBORw0KGgo=", "width": 30, "captions": "cat"}]},
    {"trial": None},
    {"name": 3},
    {"condition": "of another study"},
    {"schema": 99},
)


def test_strange_lines_are_left_out_and_noted(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    gallery(run, title="sound")
    for number, change in enumerate(STRANGE):
        gallery(run, **{"name": f"strange {number}", **change})
    runs = load_runs([run])
    assert [g.title for g in runs.galleries] == ["sound"]
    assert runs.notes == ["a: galleries.jsonl: 13 strange line(s) left out."]


def test_torn_lines_and_values_of_the_wrong_kind_are_tolerated(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    gallery(run, values={"class_agreement": "high", "k": None})
    with open(run / log.GALLERIES, "a") as file:
        file.write('{"trial": "c0-con')
    runs = load_runs([run])
    assert [g.sentence for g in runs.galleries] == [""]
    assert runs.notes == ["a: galleries.jsonl: 1 torn line(s) dropped."]


def test_a_gallery_that_could_not_be_made_is_a_caveat(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    gallery(run, rows=[], error="ValueError: features are not finite")
    runs = load_runs([run])
    assert runs.galleries == []
    assert runs.notes == [
        "a: galleries.jsonl: neighbours of c0-confirm-s0 could not be made: "
        "ValueError: features are not finite."
    ]


@pytest.mark.parametrize("values", [{}, {"class_agreement": None}, {"class_agreement": 1.0}])
def test_no_number_no_sentence(values):
    assert agreement(values) == ""
