"""The page: what it says, carries and asks for, and what it makes of what is wrong."""

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from analysis.read.load import load_runs
from analysis.read.study import Study
from analysis.report.report import write_report
from analysis.report.trace import commands, reproduce
from tests.analysis.conftest import report
from tests.analysis.report.test_galleries import gallery, png
from tune_ssl.base.errors import UserError
from tune_ssl.records import log

EVIL = "<script>alert('x')</script>"


class Fetches(HTMLParser):
    """What a page would ask for, and its images and scripts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts, self.images = [], 0, 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.images += tag == "img"
        here = dict(attrs)
        if tag in ("link", "iframe", "base", "object"):
            self.found.append(tag)
        urls = [value for key, value in attrs if key in ("src", "srcset", "action")]
        self.found += [url for url in urls if not url.startswith("data:image/png;base64,")]
        if not here.get("href", "#").startswith(("#", "tables/")):
            self.found.append(here["href"])


def test_one_run(one):
    text = one.page
    assert (
        "At 50 labels soft_kmeans reaches 83.0 % mean per-class accuracy on test "
        "[80.2, 85.8], 5 fresh seeds." in text
    )
    assert "12 search trials on digits (6 finished, 2 stopped early, 2 diverged, 2 failed)." in text
    assert "no 95 % interval:" not in text
    assert "2025-10-09 08:53:20 UTC, for c0-t0001, digest g1" in text
    assert "tune-ssl train soft_kmeans.yaml data.num_labels=50 optim.lr=0.02" in text
    assert "abc123 with uncommitted changes" in text
    assert "not a result" not in text.split("<main>")[1].split("<section")[0]
    names = {path.name for path in (one.out / "tables").iterdir()}
    assert {"results.csv", "results.md", "trials.tex", "results_wide.tex"} <= names


def test_makes_no_request(one):
    text = one.page
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text
    assert Fetches(text).found == []
    assert '"showSendToCloud":false' in text and '"displaylogo":false' in text
    assert "default-src 'none'" in text


def test_names_cannot_inject(tmp_path, write_run, one):
    conditions = [EVIL, f"{EVIL}2"]
    run = write_run(tmp_path / "a", EVIL, EVIL, conditions=conditions, classes=(EVIL, "</title>"))
    row = {"title": EVIL, "png": png(), "width": 30, "captions": [EVIL, "a"]}
    rows = [row, {**row, "captions": []}]
    gallery(run, EVIL, EVIL, title=EVIL, rows=rows, values={})
    text = report(tmp_path, run).page
    assert EVIL not in text and "alert(" in text
    found = Fetches(text)
    assert found.scripts == Fetches(one.page).scripts
    assert found.images == 2 and found.found == []


def test_two_methods(two):
    text = two.page
    assert "fixmatch at 50 labels (93.0 % [90.2, 95.8]), at 200 labels (96.0 %" in text
    assert "fixmatch beats supervised at 50 labels by 10.0 points [10.0, 10.0]" in text
    assert (
        "Unequal budget, supervised under data.num_labels=50, data.num_labels=200: "
        "trials 1 against 6; steps 100 against 600." in text
    )
    assert "Paired differences" in text and "+10.0 [+10.0, +10.0]" in text


def test_unconfirmed_run_is_not_a_result(tmp_path, write_run):
    text = report(tmp_path, write_run(tmp_path / "a", confirm={}, labels=(50,))).page
    assert "No configuration has been confirmed on test data yet." in text
    assert "not a result" in text
    assert (
        "c0-t0001, chosen among 3 finished search trials of 6 begun, with val/mean_class_accuracy = 81.0 on validation"
        in text
    )
    assert "<dd>never</dd>" in text


def test_bad_arguments(tmp_path, two):
    with pytest.raises(UserError, match="but must be a known format; did you mean 'latex'"):
        write_report(two.runs, tmp_path / "out", ["latx"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, but the report needs a folder"):
        write_report(two.runs, tmp_path / "file")
    assert {p.suffix for p in (two.out / "tables").iterdir()} == {".csv"}


def test_needs_neither_torch_nor_ray_nor_what_takes_seconds_to_import():
    heavy = ("torch", "ray", "optuna", "sklearn", "scipy.stats", "plotly")
    code = f"import sys, analysis.report.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_contents_name_the_sections_that_have_something(tmp_path, write_run, one):
    contents = re.findall(r'<li><a href="#(s-[a-z]+)"', one.page)
    assert contents == re.findall(r'<h2 id="(s-[a-z]+)"', one.page)
    assert {"s-results", "s-training", "s-trials", "s-provenance"} <= set(contents)
    assert "s-ablation" not in contents and "s-sees" not in contents
    empty = report(tmp_path, write_run(tmp_path / "b", search=(), confirm={})).page
    assert re.findall(r'<h2 id="s-([a-z]+)"', empty)[0] == "results"
    assert "s-training" not in empty and "s-trials" not in empty
    assert "soft_kmeans: no trial has started yet." in empty


def test_page_carries_its_files(one):
    for path in (one.out / "tables").iterdir():
        if f'id="file-{path.name}"' in one.page:
            assert one.packed(f"file-{path.name}") == path.read_text(), path.name
    assert "soft_kmeans,data.num_labels=50" in one.packed("file-results.csv")
    assert r"\toprule" in one.packed("file-results.tex")
    assert one.packed("file-figure-label-efficiency.csv").startswith("method,")
    assert one.packed("plotly") == get_plotlyjs()


def test_every_trial_has_an_anchor_and_its_command(two):
    trials = json.loads(two.packed("rows-trials"))
    assert len(set(trials["ids"])) == len(trials["cells"]) == 22 + 12
    links = set(re.findall(r'href="#(trial-[^"]+)"', two.page))
    assert len(links) == 20 + 2 and links <= set(trials["ids"])
    place = trials["ids"].index("trial-fixmatch-c1-confirm-s3")
    assert trials["commands"][place] == (
        "tune-ssl train fixmatch.yaml data.num_labels=200 optim.lr=0.02 method.temperature=0.5 seed=3"
    )
    facts = dict(zip(trials["facts"], trials["more"][place], strict=True))
    assert facts["Seed"] == "3" and facts["Digest"] == "g1"
    assert facts["Test, mean per-class accuracy, %"] == "99.0"


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
    runs = load_runs([path])
    assert dict(zip(runs.trials["trial"], commands(runs), strict=True))["c0-confirm-s0"] == (
        "tune-ssl train soft_kmeans.yaml data.mu=4 data.num_labels=50 optim.lr=0.02 "
        "method.temperature=0.5 seed=0 --data-root /big --plugin my.py"
    )


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


def tear_and_blank(path):
    """Torn last lines, a column of nan, no splits, and beginnings without a config."""
    torn(path)
    spoil(path, '"loss/cluster": 2.0', '"loss/cluster": NaN', log.HISTORY)
    (path / log.SPLITS).unlink()
    spoil(path, '"config": {', '"was": {')


def lose_the_values(path):
    """One test value is nan, and there is no history."""
    spoil(path, '"test/mean_class_accuracy": 0.8,', '"test/mean_class_accuracy": NaN,')
    (path / log.HISTORY).unlink()


BAD = {
    "torn, blank and without configs": (
        tear_and_blank,
        ["history.jsonl: 1 torn line(s) dropped.", "soft_kmeans reaches 83.0 %"],
    ),
    "without values": (lose_the_values, ["1 of 5 confirm trials have no test value"]),
    "without the metric": (
        lambda path: spoil(path, "test/mean_class_accuracy", "test/other"),
        ["No configuration has been confirmed on test data yet."],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_and_not_a_traceback(tmp_path, write_run, case):
    change, sentences = BAD[case]
    path = write_run(tmp_path / "a", labels=(50,))
    change(path)
    text = report(tmp_path, path).page
    assert all(sentence in text for sentence in sentences)
    assert ">nan" not in text and "[nan" not in text and "NaN" not in text.split("</main>")[0]


def test_other_data_and_mixed_schemas_are_one_line(tmp_path, write_run):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", method="uda", digest="d2")
    with pytest.raises(UserError, match="runs on different data are not compared"):
        write_report([a, b], tmp_path / "out")
    spoil(a, '{"schema": 1', '{"schema": 2')
    with pytest.raises(UserError, match="schema is 2, but this version of tune-ssl reads only 1"):
        write_report([a], tmp_path / "out")
    assert not (tmp_path / "out").exists()
