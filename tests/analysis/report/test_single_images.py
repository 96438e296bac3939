"""The page's section on single images and its files: with the images, without them, and with lines that are damaged."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest

from analysis.read.load import load_runs
from analysis.report.images import LARGEST, single_images
from analysis.report.report import write_report
from tests.analysis.conftest import report
from tests.analysis.report.test_galleries import png
from tune_ssl.records import log
from tune_ssl.records.predictions import PARTS, Pool, record_of_pool, record_of_test

CLASSES, COUNT = 2, 40  # of the runs that `write_run` makes; images of each part
WRONG = 17  # the train image with a wrong label


def a_pool(seed, labeled=6):
    """What a network says of train and unlabeled images: nearly always the truth, row % 2."""
    draw = np.random.default_rng(seed)
    kept = np.setdiff1d(np.arange(COUNT), draw.permutation(COUNT)[:labeled])
    kept = np.union1d(kept, [WRONG])
    part = np.concatenate([np.zeros(len(kept), np.int64), np.full(COUNT, 2)])
    row = np.concatenate([kept, np.arange(COUNT)])
    truth = row % CLASSES
    given = np.where(part == 2, -1, np.where(row == WRONG, 1 - truth, truth))
    wrong = draw.random(len(row)) < 0.2
    wrong[(part == 0) & (row == WRONG)] = False
    predicted = np.where(wrong, 1 - truth, truth)
    sure = 0.5 + 0.3 * draw.random(len(row))
    sure[(part == 0) & (row == WRONG)] = 1.0
    own = np.where(given < 0, 0, np.where(predicted == given, sure, 1 - sure))
    held = (part == 0) & (draw.random(len(row)) < 0.3) & (row != WRONG)
    return Pool(part, row, held, given, predicted, sure, own, left_out=1234)


def say(run, conditions=("data.num_labels=50", "data.num_labels=200"), seeds=range(5), **more):
    """Append what each confirmed trial of a run says of single images."""
    true = np.arange(100) % CLASSES
    for index, condition in enumerate(conditions):
        for seed in seeds:
            line = {
                "trial": f"c{index}-confirm-s{seed}",
                "condition": condition,
                "seed": seed,
                "test": record_of_test(true, true == 0),
                "pool": record_of_pool(a_pool(seed + 10 * index)),
            }
            log.append(run / log.PREDICTIONS, {**line, **more})


class Fake:
    """The images of any store; `asked` are the images that were asked for."""

    def __init__(self, file="{part}/{row}.png", size=0):
        self.file, self.size, self.asked, self.opened = file, size, set(), []

    def __call__(self, digest, path):
        self.opened.append((digest, path))
        return self

    def names(self, part, rows):
        self.asked |= {(part, row) for row in rows}
        return [self.file.format(part=part, row=row) for row in rows]

    def picture(self, part, row):
        self.asked.add((part, row))
        return png() + "A" * self.size, 30


def written(tmp_path, find, *runs):
    page = write_report(runs, tmp_path / "report", ["csv"], find)
    text = page.read_text()
    start = text.index('id="s-single"')
    return text[start : text.index("<section", start)], page.parent / "tables"


def rows_of(tables, stem):
    return list(csv.DictReader(io.StringIO((tables / f"{stem}.csv").read_text())))


def test_a_report_without_such_records_has_no_such_section(one):
    assert "s-single" not in one.page and "Single images" not in one.page
    assert not list((one.out / "tables").glob("label*next.csv"))


def test_the_page_shows_a_planted_label_error_first_and_the_file_names_it(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    find = Fake()
    section, tables = written(tmp_path, find, run)
    assert section.count("<details") == 2 and section.count("<details open") == 1
    assert section.index("data.num_labels=50") < section.index("data.num_labels=200")
    doubted = section[section.index("Labels to check") : section.index("Images to label next")]
    assert f"train/{WRONG}.png" in doubted.split("<figure")[1]
    for condition in ("data.num_labels=50", "data.num_labels=200"):
        first = next(
            row for row in rows_of(tables, "label_suspects") if row["condition"] == condition
        )
        assert (first["file"], first["part"], first["row"]) == (f"train/{WRONG}.png", "train", "17")
        assert first["votes"] == first["seeds"] and float(first["score"]) == 0
        assert first["given"] != first["predicted"]
    assert "1,234 were left out" in section
    assert section.count("<img") <= 2 * 36 and "data:image/png;base64," + png() in section
    assert len(find.opened) == 1  # one store of both conditions
    for stem in ("confused", "label_suspects", "label_next"):
        assert f'data-name="{stem}.csv"' in section
        assert rows_of(tables, stem)


def test_no_test_image_is_asked_for(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    find = Fake()
    written(tmp_path, find, run)
    spoken = set()
    for index in range(2):
        for seed in range(5):
            pool = a_pool(seed + 10 * index)
            spoken |= {(PARTS[p], int(r)) for p, r in zip(pool.part, pool.row, strict=True)}
    assert find.asked and find.asked <= spoken
    assert "test" not in {part for part, _ in find.asked}


def test_without_the_images_the_tables_are_there_and_the_page_says_so(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    section, tables = written(tmp_path, lambda digest, path: None, run)
    assert "The images are not on this machine" in section and "<img" not in section
    assert f"train, image {WRONG}" in section
    first = rows_of(tables, "label_suspects")[0]
    assert first["file"] == "" and first["row"] == str(WRONG)
    other, _ = written(tmp_path, None, run)  # nobody passed any
    assert "The images are not on this machine" in other


def test_file_names_and_class_names_are_escaped(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False, classes=("<b>cat", 'do"g'))
    say(run)
    section, tables = written(tmp_path, Fake('"><script>alert(1)</script>{part}{row}'), run)
    assert "<script>alert" not in section and "<b>cat" not in section
    assert "&lt;script&gt;alert(1)" in section and "&lt;b&gt;cat" in section
    assert 'title="&#34;&gt;&lt;script' in section
    assert rows_of(tables, "label_suspects")[0]["file"].startswith('"><script>')


def test_the_thumbnails_of_a_page_have_a_limit(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    section, _ = written(tmp_path, Fake(size=100_000), run)
    assert len(section) < LARGEST + 200_000
    assert "Further images are named, but not shown" in section


def test_of_several_methods_the_page_shows_the_best_and_the_files_have_all(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", diag=False)
    b = write_run(tmp_path / "b", method="supervised", diag=False)
    say(a)
    say(b, test=record_of_test(np.arange(100) % 2, np.arange(100) < 90))
    section, tables = written(tmp_path, Fake(), a, b)
    assert section.count("<summary>") == 2
    assert section.count(", supervised</summary>") == 2 and "fixmatch" not in section
    assert {row["label"] for row in rows_of(tables, "label_next")} == {"fixmatch", "supervised"}


def test_one_seed_doubts_no_label(tmp_path, write_run):
    run = write_run(tmp_path / "a", confirm={0: 0.8}, diag=False)
    say(run, seeds=[0])
    section, tables = written(tmp_path, Fake(), run)
    assert "Labels to check" not in section and "Images to label next" in section
    assert rows_of(tables, "label_suspects") == []


# ---- reading --------------------------------------------------------------------------------------


def test_the_last_sound_line_of_a_trial_counts(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    right = record_of_test(np.zeros(8, np.int64), np.ones(8, bool))
    say(run, conditions=["data.num_labels=50"], seeds=[0], test=right)
    say(run, conditions=["data.num_labels=50"], seeds=[0], test={"images": 3})
    with open(run / log.PREDICTIONS, "a") as file:
        file.write('{"trial": "c0-con')
    runs = load_runs([run])
    found = runs.predictions["a"]
    assert len(found) == 10 and len(found["c0-confirm-s0"].test_true) == 8
    assert len(found["c0-confirm-s1"].test_correct) == 100
    assert runs.notes == [
        "a: predictions.jsonl: 1 torn line(s) dropped.",
        "a: predictions.jsonl: 1 strange line(s) left out.",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"trial": "c0-t0001"},
        {"trial": "nobody"},
        {"condition": "of another study"},
        {"seed": 77},
        {"schema": 99},
        {"test": None},
        {"pool": "x"},
    ],
)
def test_lines_of_no_confirmed_trial_are_left_out_and_noted(tmp_path, write_run, change):
    run = write_run(tmp_path / "a", diag=False)
    say(run, conditions=["data.num_labels=50"], seeds=[0], **change)
    runs = load_runs([run])
    assert runs.predictions == {"a": {}}
    assert runs.notes == ["a: predictions.jsonl: 1 strange line(s) left out."]
    assert not single_images(runs).tables


def test_trials_that_were_superseded_do_not_count(tmp_path, write_run, event):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    event(run, log.REOPENED, None, "data.num_labels=50", phase=log.CONFIRM)
    found = load_runs([run]).predictions["a"]
    assert {one.condition for one in found.values()} == {"data.num_labels=200"} and len(found) == 5


def test_a_network_that_could_not_look_is_a_caveat_and_its_test_images_count(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    say(run, ["data.num_labels=50"], [0], pool=None, pool_error="RuntimeError: no memory")
    runs = load_runs([run])
    assert len(runs.predictions["a"]["c0-confirm-s0"].test_true) == 100
    assert runs.notes == [
        "a: predictions.jsonl: single images of c0-confirm-s0 were not looked at: "
        "RuntimeError: no memory."
    ]
    shown = single_images(runs)
    assert [view["seeds"] for view in shown.conditions] == [4, 5]


def test_lines_in_any_order_make_the_same_report(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    first, before = written(tmp_path, Fake(), run)
    tables = {path.name: path.read_text() for path in before.glob("*.csv")}
    lines = (run / log.PREDICTIONS).read_text().splitlines()
    assert len({json.loads(line)["trial"] for line in lines}) == 10
    np.random.default_rng(3).shuffle(lines)
    (run / log.PREDICTIONS).write_text("\n".join(lines) + "\n")
    second, after = written(tmp_path, Fake(), run)
    packed = re.compile(r'<script type="text/plain".*?</script>', re.S)
    assert packed.sub("", first) == packed.sub("", second)
    assert {path.name: path.read_text() for path in after.glob("*.csv")} == tables


def test_the_section_is_small_beside_the_page(tmp_path, write_run):
    run = write_run(tmp_path / "a", diag=False)
    say(run)
    assert "s-single" in report(tmp_path, run).page
