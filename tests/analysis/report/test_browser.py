"""The report in a real browser: it draws, sorts, filters, leads to trials, and asks for nothing."""

from __future__ import annotations

import io
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis.report.report import write_report
from tests.analysis.conftest import event, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome in PATH")

EVIL = "</script><img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
EVIL_CONDITION = f"data.x={EVIL}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as found:
        one = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A report of two runs, one with names that would do harm, moved away from its tables."""
    folder = tmp_path_factory.mktemp("report")
    conditions = ["data.num_labels=50", EVIL_CONDITION]
    a = write_run(folder / "a", method="fixmatch", shift=0.1, conditions=conditions)
    b = write_run(folder / "b", EVIL, EVIL, conditions=conditions, classes=("cat", EVIL))
    for number in range(60):  # more than one page of trials
        own = {"number": number, "config": {EVIL: EVIL}, "seed": 7, "digest": "x"}
        event(a, "started", f"extra-{number:03d}", "data.num_labels=50", **own)
        event(a, "failed", f"extra-{number:03d}", "data.num_labels=50", reason=f"line\n{EVIL}")
    page = write_report([a, b], folder / "out")
    return page.rename(folder / "moved.html").as_uri()


@pytest.fixture(scope="module")
def opened(browser, address):
    """The page at desktop width, with everything it said, asked for or broke on."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    tab.set_default_timeout(8000)
    seen = []
    tab.on("console", lambda message: seen.append(message.text))
    tab.on("pageerror", lambda error: seen.append(str(error)))
    tab.on("request", lambda request: seen.append(request.url))
    tab.goto(address)
    tab.wait_for_function("document.documentElement.dataset.ready")
    tab.click("#open-all")
    return SimpleNamespace(tab=tab, seen=seen, address=address)


def column(tab, table, number):
    return tab.locator(f"#{table} > tbody > tr > td:nth-child({number})").all_inner_texts()


def test_the_first_screen_has_the_grid_the_figure_and_folded_parts(browser, address):
    for width, screens in ((1280, 1), (390, 2)):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.goto(address)
        tab.wait_for_function("document.documentElement.dataset.ready")
        for found in ("#glance", "main .plot"):
            assert tab.locator(found).first.bounding_box()["y"] < 900 * screens, (width, found)
        assert tab.locator("main .part[open]").count() == 0
        assert tab.locator("#glance td.loss").count() == 3  # two conditions, and their mean
        tab.evaluate("location.hash = '#s-trials'")
        playwright.expect(tab.locator("#trials")).to_be_visible()
        assert tab.locator("main .part[open]").count() == 1
        tab.close()


def test_a_table_shows_all_its_columns_when_asked(opened):
    table = opened.tab.locator("#differences")
    hidden = table.locator("th", has_text="sign flip")
    playwright.expect(hidden).to_be_hidden()
    more = opened.tab.locator("section[aria-labelledby=s-results] .all").nth(1)
    more.click()
    playwright.expect(hidden).to_be_visible()
    more.click()
    playwright.expect(hidden).to_be_hidden()


def test_sorting_changes_the_order(opened):
    tab = opened.tab
    head = tab.locator("#results > thead th", has_text="Mean per-class")
    tab.evaluate("document.getElementById('results').scrollIntoView()")
    before = column(tab, "results", 4)
    head.locator("button").click()
    rising = column(tab, "results", 4)
    numbers = [float(text.split()[0]) for text in rising]
    assert numbers == sorted(numbers) and rising != before
    head.locator("button").press("Enter")  # with the keyboard
    assert [float(text.split()[0]) for text in column(tab, "results", 4)] == numbers[::-1]
    assert head.get_attribute("aria-sort") == "descending"


def test_filtering_hides_rows(opened):
    tab = opened.tab
    tools = tab.locator("p.tools:has(select)")
    tab.evaluate("document.getElementById('trials').scrollIntoView()")
    tab.wait_for_selector("#trials > tbody > tr")
    assert "page 1 of 3" in tools.locator("output").inner_text()
    assert len(column(tab, "trials", 1)) == 50
    tools.get_by_role("button", name="Next").click()
    assert "page 2 of 3" in tools.locator("output").inner_text()
    tools.locator("input").fill("c0-confirm-s3")
    assert set(column(tab, "trials", 1)) == {"c0-confirm-s3"}
    assert "2 of 104 rows" in tools.locator("output").inner_text()
    tools.locator("input").fill("")
    tools.locator("select[data-column=Status]").select_option("diverged")
    assert set(column(tab, "trials", 5)) == {"diverged"}
    tools.locator("select[data-column=Status]").select_option("")


def test_a_result_leads_to_its_trial_and_command(opened):
    tab = opened.tab
    row = (
        tab.locator("#results tr", has_text="fixmatch").filter(has_text="data.num_labels=50").first
    )
    row.locator("summary").click()
    link = row.locator("a", has_text="seed 3: 96.0")
    link.click()
    trial = tab.locator("#trial-fixmatch-c0-confirm-s3")
    playwright.expect(trial).to_have_class("target")
    playwright.expect(trial).to_be_in_viewport()
    shown = tab.locator("tr.more", has_text="Trains it again").inner_text()
    assert "tune-ssl train fixmatch.yaml data.num_labels=50" in shown and "seed=3" in shown
    assert "Test, mean per-class accuracy, %\n96.0" in shown and "g1" in shown


def test_figures_draw(opened):
    tab = opened.tab
    figures = tab.locator(".first .plot")
    assert figures.count() >= 1
    figures.first.scroll_into_view_if_needed()
    playwright.expect(figures.first.locator("svg.main-svg").first).to_be_visible()
    assert figures.first.locator("path.js-line").count() >= 1
    closed = tab.locator("section[aria-labelledby=s-training] .part > details").last
    assert closed.locator("svg").count() == 0
    closed.locator("> summary").click()
    closed.locator(".plot").first.scroll_into_view_if_needed()
    playwright.expect(closed.locator("svg.main-svg").first).to_be_visible()


def test_printing_draws_the_open_figures(opened):
    tab = opened.tab
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    undrawn = """[...document.querySelectorAll('.plot')].filter((box) =>
        !box.closest('details:not([open])') && !box.querySelector('svg')).length"""
    assert tab.evaluate(undrawn) == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")


@pytest.mark.parametrize(
    ("name", "columns"), [("results.csv", {"mean", "low"}), ("label-efficiency.csv", {"mean"})]
)
def test_csv_needs_no_other_file(opened, tmp_path, name, columns):
    with opened.tab.expect_download() as download:
        opened.tab.get_by_role("button", name=f"Download {name}", exact=True).click()
    assert download.value.suggested_filename == name
    download.value.save_as(tmp_path / name)
    table = pd.read_csv(io.StringIO((tmp_path / name).read_text()))
    assert columns <= set(table.columns) and len(table) == 4
    assert sorted(table["mean"].round(3))[-1] == 0.96


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser, address, width):
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
    tab.goto(address)
    tab.wait_for_function("document.documentElement.dataset.ready")
    tab.click(".contents summary") if width == 390 else None
    tab.click("#open-all")
    tab.click(".contents summary") if width == 390 else None
    tab.evaluate("boxes.filter((box) => box.offsetParent).forEach(draw)")
    tab.evaluate("loadTrials()")
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert tab.locator(".contents").get_attribute("open") == (None if width == 390 else "")
    body = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(body) == "rgb(255, 255, 255)"
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(body) == "rgb(20, 23, 27)"
    axis = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    assert tab.evaluate(axis) == "rgb(230, 232, 234)"
    tab.close()


def test_names_do_not_run_and_nothing_is_asked_for(opened):
    """Last: what all the tests above brought up."""
    tab = opened.tab
    row = tab.locator("tr", has_text="extra-0")
    tab.locator("p.tools:has(select) input").fill("extra-0")
    row.first.get_by_role("button").click()
    tab.locator("details:not([open])").evaluate_all("all => all.forEach((one) => one.open = true)")
    tab.evaluate("boxes.forEach(draw)")
    assert EVIL in tab.locator("main").inner_text()
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img[src=x]").count() == 0
    assert [text for text in opened.seen if text != opened.address and text[:5] != "blob:"] == []
