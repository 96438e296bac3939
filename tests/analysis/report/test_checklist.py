"""The reproducibility checklist: every answer comes from the run, and what it does not know is said."""

from __future__ import annotations

import re

import pytest
from ruamel.yaml import YAML

from analysis.read.load import load_runs
from analysis.report.checklist import NOT_RECORDED, checklist, markdown, write
from analysis.report.report import all_tables
from tests.analysis.conftest import report
from tune_ssl.records import log


def answers(*paths):
    """Question -> its lines."""
    runs = load_runs(paths)
    parts = checklist(runs, all_tables(runs))
    return {answer.question: list(answer.lines) for part in parts for answer in part.answers}


def lines(found, start):
    """The lines of the one question that starts so."""
    own = [said for question, said in found.items() if question.startswith(start)]
    assert len(own) == 1, start
    return own[0]


def change(path, edit):
    """study.yaml after `edit` of its content."""
    yaml = YAML(typ="safe", pure=True)
    study = yaml.load(path / log.STUDY)
    edit(study)
    with open(path / log.STUDY, "w") as file:
        yaml.dump(study, file)


@pytest.fixture
def found(tmp_path, write_run):
    def more(study):
        study["dataset"]["remarks"] = ["3 images were left out: unreadable"]
        data = {"resize": "crop", "image_size": 32, "split": "stratified", "split_seed": None}
        study["study"]["fixed"] = {"data": data, "views": {"weak": {"shift": 0.125}}}
        study["study"]["study"] |= {"searcher": "optuna", "sampler": "tpe", "scheduler": "asha"}

    path = write_run(tmp_path / "a")
    change(path, more)
    return answers(path)


def test_data(found):
    assert lines(found, "Which dataset") == [
        "name: digits",
        "digest of images and classes: d1",
        "images: test 300, train 1000, unlabeled 800, val 200",
        "classes: 2",
        "shape of an image: 8 x 8 x 1",
    ]
    splits = lines(found, "Which images are labeled")
    assert "settings: split stratified, split_seed null" in splits
    assert "data.num_labels=50: 50 labels" in splits
    seeds = ", ".join(f"{seed} (same-{seed})" for seed in range(5))
    assert f"data.num_labels=50, confirmation: seeds (digest of the split) {seeds}" in splits
    searched = f"data.num_labels=50, search: seeds (digest of the split) 100 ({NOT_RECORDED})"
    assert searched in splits
    chosen_on = lines(found, "How many labeled validation images")
    assert chosen_on == [
        "soft_kmeans, data.num_labels=50: 200 images, on which a share is known to \u00b19.6 points "
        "(Hoeffding, 95 %); more than the training labels",
        "soft_kmeans, data.num_labels=200: 200 images, on which a share is known to \u00b19.6 points (Hoeffding, 95 %)",
    ]
    prepared = lines(found, "How were the images prepared")
    assert prepared[0] == "data: image_size 32, resize crop"
    assert f"normalization (null: the data's own): {NOT_RECORDED}" in prepared
    assert "augmentations: weak (shift 0.125)" in prepared
    assert lines(found, "Which images were left out") == ["3 images were left out: unreadable"]


def test_code(found):
    assert lines(found, "Which revision") == ["abc123; uncommitted changes: yes"]
    assert lines(found, "By which command") == ["tune-ssl search soft_kmeans.yaml"]
    assert lines(found, "With which dependencies") == ["python 3.11, tune_ssl 0.1"]
    assert lines(found, "On which machine") == ["cpus 2, gpus [], platform linux"]


def test_hyperparameters(found):
    considered = lines(found, "Which values were considered")
    assert considered == ["soft_kmeans, optim.lr: 0.001 to 1 (log)"]
    how = lines(found, "How were configurations searched")
    assert how == ["searcher optuna, sampler tpe, scheduler asha, num_trials 6"]
    tried = lines(found, "How many configurations were tried")
    assert tried[0] == "data.num_labels=50: 6 begun, 3 of them finished and could be chosen"
    assert lines(found, "How was one of them chosen") == ["best finished"]
    assert "soft_kmeans, data.num_labels=50: optim.lr=0.02" in lines(
        found, "Which values were chosen"
    )


def test_results(found):
    measure = lines(found, "Which measure")
    assert "of each class that occurs, the share of its images that is right" in measure[0]
    assert (
        measure[1]
        == "choices were made by val/mean_class_accuracy, maximized, on validation images"
    )
    variation = lines(found, "What is its mean")
    assert "Student's t interval of the mean, 95 % from 4 seeds on" in variation[0]
    assert variation[1] == "soft_kmeans, data.num_labels=50: 83.0 % [80.2, 85.8], std 2.2, n = 5"
    assert lines(found, "Which test") == ["nothing is compared"]
    assert lines(found, "How many training and evaluation runs")[:2] == [
        "search: 12 training runs",
        "confirmation: 10 training runs",
    ]
    assert "evaluations on test images: 10" in lines(found, "How many training and evaluation")
    assert lines(found, "When was test data opened")[0] == (
        "soft_kmeans, data.num_labels=50: once, by its locked configuration, 2025-10-09 08:53:20 UTC"
    )
    wrong = lines(found, "What was excluded")
    assert "2 trials stopped early: never chosen, and not scored" in wrong
    assert "2 trials diverged: never chosen, counted" in wrong
    assert "no seed is far from the others, and none was left out for its value" in wrong


def test_cost(found):
    assert lines(found, "How long does a model take") == [
        "soft_kmeans: 12.0 device-seconds, mean of 10 confirmed models"
    ]
    assert lines(found, "What did everything take") == [
        "search: 120 device-seconds",
        "confirmation: 120 device-seconds",
        "together: 240 device-seconds",
    ]
    assert lines(found, "How much energy") == [NOT_RECORDED]


def test_two_methods_say_once_what_is_the_same(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch", shift=0.1)
    b = write_run(tmp_path / "b", method="supervised", search=(("finished", 0.6, None),))
    found = answers(a, b)
    assert lines(found, "Which revision") == ["abc123; uncommitted changes: yes"]
    assert lines(found, "By which command") == [
        "fixmatch: tune-ssl search fixmatch.yaml",
        "supervised: tune-ssl search supervised.yaml",
    ]
    assert lines(found, "Which test") == [
        "differences on test: two-sided paired t test by seed, Holm's correction over 2 comparisons, p < 0.05 decides",
        "gains averaged over conditions: two-sided paired t test by seed, Holm's correction over 1 comparison, "
        "p < 0.05 decides",
        "bold: paired t tests against the highest mean, Holm's correction over a condition",
    ]


def test_outlying_and_missing_seeds_are_named(tmp_path, write_run):
    seeds = {0: 0.80, 1: 0.81, 2: 0.82, 3: 0.81, 4: 0.80, 5: 0.82, 6: 0.10, 7: None}
    found = answers(write_run(tmp_path / "a", labels=(50,), confirm=seeds))
    wrong = lines(found, "What was excluded")
    where = "soft_kmeans, data.num_labels=50"
    assert f"{where}: 1 fresh seeds have no test value and are not in the mean" in wrong
    assert f"{where}: seed 6 (10.0) is far from the others, and in the mean" in wrong
    assert not any(line.startswith("no seed is far") for line in wrong)


def test_what_was_opened_again_is_said(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,))
    event(path, "locked", "c0-t0005", "data.num_labels=50", digest="g5", phase="confirm")
    opened = lines(answers(path), "When was test data opened")
    assert len(opened) == 1 and ": 2 times, by its locked configuration, 2025-10-09" in opened[0]
    assert opened[0].count(" UTC") == 2


def test_what_a_run_does_not_know_is_not_guessed(tmp_path, write_run):
    def less(study):
        for key in ("versions", "git", "machine", "command"):
            del study[key]
        study["dataset"] = {"name": "digits", "digest": "d1"}
        for condition in study["conditions"]:
            del condition["labels"], condition["validation"]

    path = write_run(tmp_path / "a", search=(), confirm={}, diag=False)
    change(path, less)
    found = answers(path)
    for start in (
        "By which command",
        "With which dependencies",
        "On which machine",
        "How many labeled validation images",
        "Which images were left out",
        "Where can the dataset",
        "How long does a model take",
        "What did everything take",
    ):
        assert lines(found, start) == [NOT_RECORDED], start
    unknown = f"{NOT_RECORDED}; uncommitted changes: {NOT_RECORDED}"
    assert lines(found, "Which revision") == [unknown]
    assert f"classes: {NOT_RECORDED}" in lines(found, "Which dataset")
    assert f"data.num_labels=50: labels {NOT_RECORDED}" in lines(found, "Which images are labeled")
    assert lines(found, "When was test data opened") == ["never"]
    assert lines(found, "What is its mean") == ["no configuration has been confirmed on test data"]
    said = " ".join(line for own in found.values() for line in own)
    assert "None" not in said and "nan" not in said


def test_the_report_writes_it_as_markdown_that_names_cannot_break(tmp_path, write_run):
    evil = "<b>*x*|_y_\n# z"
    text = report(tmp_path, write_run(tmp_path / "a", method=evil)).out / "tables/checklist.md"
    found = text.read_text()
    assert found.startswith("# Reproducibility checklist\n\nQuestions of the machine learning")
    assert "<b>" not in found.replace(r"\<b\>", "") and "\n# z" not in found
    assert len(re.findall(r"^## ", found, re.M)) == 5
    for block in found.split("\n**")[1:]:
        assert re.match(r".+\?\*\*\n\n- .+", block), block


def test_a_report_without_markdown_has_none(tmp_path, write_run):
    made = report(tmp_path, write_run(tmp_path / "a"), formats=["csv"])
    assert not (made.out / "tables/checklist.md").exists()
    runs = load_runs(made.runs)
    found = all_tables(runs)
    path = write(runs, found, tmp_path / "new")
    assert path.read_text() == markdown(checklist(runs, found))
