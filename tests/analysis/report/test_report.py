import base64
import gzip
import json
import math
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from analysis.read.study import Study
from analysis.report.report import write_report
from analysis.report.trace import reproduce
from tune_ssl.base.errors import UserError
from tune_ssl.records import log

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
    assert "not a result" not in text.split("<main>")[1].split("<section")[0]
    names = {path.name for path in (tmp_path / "report" / "tables").iterdir()}
    assert {"results.csv", "results.md", "trials.tex", "results_wide.tex"} <= names


def test_makes_no_request(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a"))
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text
    parser = Fetches()
    parser.feed(text)
    assert parser.found == []
    assert '"showSendToCloud":false' in text and '"displaylogo":false' in text
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
    assert "fixmatch at 50 labels (93.0 % [90.4, 95.6]), at 200 labels (96.0 %" in text
    assert "fixmatch leads supervised at 50 labels by 10.0 points [10.0, 10.0]" in text
    assert (
        "Unequal budget, supervised under data.labels=50, data.labels=200: "
        "trials 1 against 6; steps 100 against 600." in text
    )
    assert "Paired differences" in text and "+10.0 [+10.0, +10.0]" in text


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        (0.005, "not told apart by their separate intervals in mean per-class accuracy on test."),
        (0.03, "the order may be chance."),
        (0.1, "ahead of uda"),
    ],
)
def test_overlap_is_told_honestly_without_pairs(tmp_path, write_run, shift, sentence):
    own = dict(zip(range(10, 15), (0.80, 0.84, 0.82, 0.86, 0.83), strict=True))
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50,), shift=shift, confirm=own)
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
    top = page_of(tmp_path, path).split("<section")[0]
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
    event(path, log.LOCKED, "c0-t0000", "data.labels=50", digest="g0", phase="confirm")
    event(path, log.STARTED, "late", "data.labels=50", config={})
    event(path, log.FINISHED, "late", "data.labels=50", value=0.9)
    other = write_run(tmp_path / "b", method="uda", labels=(50, 99), metric="val/accuracy")
    lines = (other / log.TRIALS).read_text().replace('"test/accuracy": 0.8', '"test/accuracy": 0.7')
    lines = [line for line in lines.splitlines() if '"locked"' not in line or "99" in line]
    (other / log.TRIALS).write_text("\n".join(lines) + "\n")
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


def test_contents_name_the_sections_that_have_something(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a"))
    contents = re.findall(r'<li><a href="#(s-[a-z]+)"', text)
    assert contents == re.findall(r'<h2 id="(s-[a-z]+)"', text)
    assert {"s-results", "s-training", "s-trials", "s-provenance"} <= set(contents)
    assert "s-ablation" not in contents and "s-sees" not in contents
    empty = page_of(tmp_path / "2", write_run(tmp_path / "b", search=(), confirm={}))
    assert re.findall(r'<h2 id="s-([a-z]+)"', empty)[0] == "results"
    assert "s-training" not in empty and "s-trials" not in empty


def packed(text, name):
    """A file that the page carries."""
    found = re.search(rf'<script type="text/plain" id="{re.escape(name)}">([^<]*)<', text)
    return gzip.decompress(base64.b64decode(found.group(1))).decode()


def test_page_carries_its_files(tmp_path, write_run):
    text = page_of(tmp_path, write_run(tmp_path / "a"))
    for path in (tmp_path / "report" / "tables").iterdir():
        if f'id="file-{path.name}"' in text:
            assert packed(text, f"file-{path.name}") == path.read_text(), path.name
    assert "soft_kmeans,data.labels=50" in packed(text, "file-results.csv")
    assert r"\toprule" in packed(text, "file-results.tex")
    assert packed(text, "file-figure-label-efficiency.csv").startswith("method,")


def test_every_trial_has_an_anchor_and_its_command(tmp_path, write_run):
    runs = write_run(tmp_path / "a", method="fixmatch"), write_run(tmp_path / "b", method="uda")
    text = page_of(tmp_path, *runs)
    trials = json.loads(packed(text, "rows-trials"))
    assert len(set(trials["ids"])) == len(trials["cells"]) == 44
    links = set(re.findall(r'href="#(trial-[^"]+)"', text))
    assert len(links) == 24 and links <= set(trials["ids"])
    place = trials["ids"].index("trial-fixmatch-c1-confirm-s3")
    assert trials["commands"][place] == (
        "tune-ssl train fixmatch.yaml data.labels=200 optim.lr=0.02 method.temperature=0.5 seed=3"
    )
    facts = dict(zip(trials["facts"], trials["more"][place], strict=True))
    assert facts["Seed"] == "3" and facts["Digest"] == "g1"
    assert facts["Test, mean per-class accuracy, %"] == "89.0"


def test_command_repeats_the_overrides_of_the_run(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,))
    study = path / log.STUDY
    command = (
        "tune-ssl search kmeans.yaml --name x data.mu=4 study.seeds=[1,2] seed=3 optim.lr=0.5 "
        "--data-root /big --plugin my.py"
    )
    text = study.read_text().replace("tune-ssl search soft_kmeans.yaml", command)
    fixed = "study:\n  fixed: {data: {mu: 1}, optim: {lr: 0.1}, seed: 0}\n"
    study.write_text(text.replace("study:\n", fixed, 1))
    assert (
        "tune-ssl train soft_kmeans.yaml data.mu=4 data.labels=50 optim.lr=0.02 "
        "method.temperature=0.5 seed=0 --data-root /big --plugin my.py"
    ) in page_of(tmp_path, path)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-05, "1e-05"),
        (True, "true"),
        (None, "null"),
        ("weak", "weak"),
        ("true", '"true"'),
        (200.0, "200"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_command_states_values_as_yaml_reads_them(value, shown):
    study = Study("r", "m", Path(), {"source": "s.yaml"})
    assert shlex.split(reproduce(study, {"a": value}, None))[3:] == [f"a={shown}"]


def spoil(path, old, new, name=log.TRIALS):
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new))


def torn(path):
    for name in (log.TRIALS, log.HISTORY, log.SPLITS):
        with open(path / name, "a") as file:
            file.write('{"schema": 1, "eve')


BAD = {
    "torn last lines": (torn, "trials.jsonl: 1 torn line(s) dropped."),
    "a column of nan": (
        lambda path: spoil(path, '"loss/cluster": 2.0', '"loss/cluster": NaN', log.HISTORY),
        "soft_kmeans reaches 83.0 %",
    ),
    "test values of nan": (
        lambda path: spoil(
            path, '"test/mean_class_accuracy": 0.8', '"test/mean_class_accuracy": NaN, "x": 0'
        ),
        "confirm trials have no test value",
    ),
    "no such metric": (
        lambda path: spoil(path, "test/mean_class_accuracy", "test/other"),
        "No configuration has been confirmed on test data yet.",
    ),
    "no history": (lambda path: (path / log.HISTORY).unlink(), "soft_kmeans reaches 83.0 %"),
    "no splits": (lambda path: (path / log.SPLITS).unlink(), "soft_kmeans reaches 83.0 %"),
    "no configs": (lambda path: spoil(path, '"config": {', '"was": {'), "reaches 83.0 %"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_and_not_a_traceback(tmp_path, write_run, case):
    change, sentence = BAD[case]
    path = write_run(tmp_path / "a", labels=(50,))
    change(path)
    text = page_of(tmp_path, path)
    assert sentence in text
    assert ">nan" not in text and "[nan" not in text and "NaN" not in text.split("</main>")[0]


def test_other_splits_are_left_out_of_the_differences(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50,), split="one")
    b = write_run(tmp_path / "b", method="uda", labels=(50,), split="other")
    page_of(tmp_path, a, b)
    row = pd.read_csv(tmp_path / "report" / "tables" / "differences.csv").iloc[0]
    assert row["unpaired"] == 5 and row["n"] == 0 and math.isnan(row["mean"])


def test_other_data_and_mixed_schemas_are_one_line(tmp_path, write_run):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", method="uda", digest="d2")
    with pytest.raises(UserError, match="runs on different data are not compared"):
        write_report([a, b], tmp_path / "out")
    spoil(a, '{"schema": 1', '{"schema": 2')
    with pytest.raises(UserError, match="schema is 2, but this version of tune-ssl reads only 1"):
        write_report([a], tmp_path / "out")
    assert not (tmp_path / "out").exists()
