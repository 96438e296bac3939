import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from analysis.report import write_report
from tune_ssl import records
from tune_ssl.errors import UserError

EVIL = "<script>alert('x')</script>"


def page_of(tmp_path, *paths):
    """The page without plotly.js itself."""
    page = write_report(list(paths), tmp_path / "report")
    text = page.read_text()
    assert get_plotlyjs() in text
    return text.replace(get_plotlyjs(), "")


class Fetches(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.scripts = [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        here = dict(attrs)
        if tag in ("link", "img", "iframe", "base", "object"):
            self.found.append(tag)
        self.found += [value for key, value in attrs if key in ("src", "srcset", "action")]
        if not here.get("href", "#").startswith(("#", "tables/")):
            self.found.append(here["href"])


def test_one_run(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a"))
    assert (
        "At 50 labels soft_kmeans reaches 83.0 % mean per-class accuracy on test "
        "[80.4, 85.6], 5 fresh seeds." in text
    )
    assert "12 search trials on digits (6 finished, 2 stopped early, 2 diverged, 2 failed)." in text
    assert "With 5 seeds no resampling interval covers" in text and "1 more seed(s)" in text
    assert "2025-10-09 08:53:20 UTC, for c0-t0001, digest g1" in text
    assert "tune-ssl train soft_kmeans.yaml data.labels=50 optim.lr=0.02" in text
    assert "abc123 with uncommitted changes" in text
    assert "not a result" not in text.split("<main>")[1].split("<nav")[0]
    names = {path.name for path in (tmp_path / "report" / "tables").iterdir()}
    assert len(names) == 18 and {"results.csv", "results.md", "trials.tex"} <= names


def test_makes_no_request(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a"))
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text
    parser = Fetches()
    parser.feed(text)
    assert parser.found == []
    assert '"showSendToCloud": false' in text and '"displaylogo": false' in text
    assert "default-src 'none'" in text


def test_names_cannot_inject(tmp_path, write_run):
    clean = Fetches()
    clean.feed(page_of(tmp_path / "1", write_run(tmp_path / "a", labels=(50,))))
    path = write_run(
        tmp_path / "b", EVIL, EVIL, (50,), conditions=[EVIL], classes=(EVIL, "</title>")
    )
    text = page_of(tmp_path / "2", path)
    assert EVIL not in text and "alert(" in text
    found = Fetches()
    found.feed(text)
    assert found.scripts == clean.scripts


def test_two_methods(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", shift=0.1)
    b = write_run(tmp_path / "b", method="supervised", search=(("finished", 0.6, None),))
    text = page_of(tmp_path, a, b)
    assert "At 50 labels fixmatch reaches 93.0 %" in text
    assert "5 fresh seeds, ahead of supervised at 83.0 % [80.4, 85.6]." in text
    assert (
        "Unequal budget, supervised under data.labels=50, data.labels=200: "
        "trials 1 against 6; steps 100 against 600." in text
    )
    assert "Paired differences" in text and "+10.0 [+10.0, +10.0]" in text


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        (0.005, "tie in mean per-class accuracy on test."),
        (0.03, "the order may be chance."),
        (0.1, "ahead of uda"),
    ],
)
def test_overlap_is_told_honestly(tmp_path, write_run, shift, sentence):
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50,), shift=shift)
    b = write_run(tmp_path / "b", method="uda", labels=(50,))
    assert sentence in page_of(tmp_path, a, b)


def test_unconfirmed_run_is_not_a_result(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a", confirm={}))
    assert "No configuration has been confirmed on test data yet." in text
    assert "not a result" in text
    assert "c0-t0001 with val/mean_class_accuracy = 81.0 on validation" in text
    assert "<dd>never</dd>" in text


def test_one_seed(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a", labels=(50,), confirm={3: 0.8}))
    assert "(one fresh seed, so no interval)." in text
    assert "One seed gives no interval. 5 more seeds per condition" in text
    assert "1 of 5 planned confirm seeds have been run." in text
    assert ">nan" not in text and "[nan" not in text


def test_three_seeds_are_said_to_be_few(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,), confirm={0: 0.8, 1: 0.81, 2: 0.82})
    top = page_of(tmp_path, path).split("<nav")[0]
    assert "With 3 seeds no resampling interval covers the mean more often than about 75 %" in top
    assert "3 more seed(s)" in top


def test_everything_failed(tmp_path, write_run):
    search = (("failed", None, "Traceback:\n  File x\ncuda broke\n"), ("diverged", None, "nan"))
    text = page_of(tmp_path, write_run(tmp_path / "a", search=search, confirm={}))
    assert "all 4 search trials failed, diverged or collapsed. First reason: cuda broke" in text


def test_empty_run(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a", search=(), confirm={}))
    assert "soft_kmeans: no trial has started yet." in text


def test_running_and_null_metrics(tmp_path, write_run):
    search = ((None, None, None), ("finished", None, None), ("finished", 0.5, None))
    text = page_of(tmp_path, write_run(tmp_path / "a", labels=(50,), search=search, confirm={}))
    assert "1 trial(s) have no ending" in text
    assert "1 finished trial(s) have no val/mean_class_accuracy value." in text


def test_caveats(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,), confirm={100: 0.8, 1: None})
    event(path, records.LOCKED, "c0-t0000", "data.labels=50", digest="g0", phase="confirm")
    event(path, "finished", "late", "data.labels=50", value=0.9)
    other = write_run(tmp_path / "b", method="uda", labels=(50, 99), metric="val/accuracy")
    lines = (
        (other / records.TRIALS).read_text().replace('"test/accuracy": 0.8', '"test/accuracy": 0.7')
    )
    lines = [line for line in lines.splitlines() if '"locked"' not in line or "99" in line]
    (other / records.TRIALS).write_text("\n".join(lines) + "\n")
    text = page_of(tmp_path, path, other)
    for sentence in (
        "seed 100 served both the search and the confirmation.",
        "1 of 2 confirm trials have no test value.",
        "2 configurations were locked, so test data was opened more than once.",
        "The runs were tuned on different metrics",
        "data.labels=99 is not part of soft_kmeans: no comparison there.",
        "uda, data.labels=50: confirm trials without a locked event.",
        "but its confusion matrix says 0.8",
        "the locked trial c0-t0001 is not the one that the rule picks",
    ):
        assert sentence in text, sentence


def test_bad_arguments(tmp_path, write_run):
    path = write_run(tmp_path / "a")
    with pytest.raises(UserError, match="but must be a known format; did you mean 'latex'"):
        write_report([path], tmp_path / "out", ["latx"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, but the report needs a folder"):
        write_report([path], tmp_path / "file")
    assert write_report([path], tmp_path / "out", ["csv"]) == tmp_path / "out" / "index.html"
    assert {p.suffix for p in (tmp_path / "out" / "tables").iterdir()} == {".csv"}


def test_needs_neither_torch_nor_ray():
    heavy = ("torch", "ray", "optuna")
    code = f"import sys, analysis.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_page_names_every_section(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a"))
    links = re.findall(r'href="#([\w-]+)"', text)
    assert len(links) == 8 and all(f'id="{link}"' in text for link in links)
