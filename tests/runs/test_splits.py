"""What is said of a condition's images before anything is trained, and what a run of a harder task records."""

from __future__ import annotations

import pytest

from tests.support.runs import run_here, write_study
from tune_ssl.artifacts.model_files import read_card
from tune_ssl.base.errors import UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.data.sets import split_of
from tune_ssl.data.splits import Split
from tune_ssl.data.store import prepare
from tune_ssl.records import log
from tune_ssl.records.predictions import from_record
from tune_ssl.runs.folder import reopen
from tune_ssl.runs.splits import caveats, check_data
from tune_ssl.study.study import load_study

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 60, batch_size: 8, mu: 1%s}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: fixmatch}
  budget: {steps: 4, eval_every: 2}
conditions:
  %s
search:
  optim.lr: {log_uniform: [1.0e-3, 1.0e-2]}
study: {num_trials: 1, scheduler: none, finalists: 1, seeds: [0]}
"""
CLASSES = ["3", "1", "4", "0", "5", "9"]
MISMATCH = STUDY % (", classes: [3, 1, 4, 0, 5, 9]", "data.unlabeled_mismatch: [0.5]")


def said(folder, data, conditions) -> list[str]:
    study = load_study(write_study(folder, STUDY % (data, conditions)))
    return [line for line in caveats(study, check_data(study)) if "labeled images" in line]


def composition(folder, data, conditions) -> list[str]:
    return [line for line in said(folder, data, conditions) if "validate what" not in line]


def test_the_largest_and_the_smallest_class_of_a_long_tail_are_said(tmp_path):
    assert composition(tmp_path, "", "data.imbalance: [1, 10, 100]") == [
        "data.imbalance=1: 60 labeled images, 6 of 0 to 6 of 9; 1150 unlabeled, 117 of 1 to 111 of 8",
        "data.imbalance=10: 60 labeled images, 15 of 0 to 1 of 9; 461 unlabeled, 114 of 0 to 11 of 9",
        "data.imbalance=100: 60 labeled images, 24 of 0 to 1 of 9; 278 unlabeled, 114 of 0 to 1 of 9",
    ]


def test_the_share_of_unlabeled_images_of_other_classes_is_said(tmp_path):
    classes = ", classes: [0, 1, 2, 3, 4, 5]"
    assert composition(tmp_path, classes, "data.unlabeled_mismatch: [0, 0.25]") == [
        "data.unlabeled_mismatch=0: 60 labeled images of 6 of 10 classes, 10 of 0 to 10 of 5; 571 unlabeled, 0 % of "
        "them of other classes",
        "data.unlabeled_mismatch=0.25: 60 labeled images of 6 of 10 classes, 10 of 0 to 10 of 5; 571 unlabeled, 25 % "
        "of them of other classes",
    ]


def test_a_tail_that_a_seed_cannot_have_is_refused_with_its_condition(tmp_path):
    path = write_study(tmp_path, STUDY % ("", "data.imbalance: [10, 1000]"))
    with pytest.raises(UserError, match=r"data.imbalance is 1000, but must be at most 11\d") as e:
        check_data(load_study(path))
    assert "(condition data.imbalance=1000)" in str(e.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_here(tmp_path_factory.mktemp("mismatch"), MISMATCH)


def test_a_run_of_some_classes_has_no_other_class_in_its_records_and_its_model(run):
    about = read_yaml(run / log.STUDY).data["dataset"]
    whole = prepare(load_study(run.parents[1] / "study.yaml").fixed.data.of_images())
    assert list(about["classes"]) == CLASSES
    assert about["counts"] == whole.counts and sum(about["counts"].values()) < 1797
    confirmed = [t for t in log.read(run / log.TRIALS) if "test/confusion" in t.get("metrics", {})]
    (end,) = confirmed
    confusion = end["metrics"]["test/confusion"]
    assert len(confusion) == 6
    assert sum(map(sum, confusion)) == end["metrics"]["test/count"] == about["counts"]["test"]
    (card,) = (read_card(path.parent) for path in run.rglob(log.MODEL))
    assert card.classes == CLASSES
    (line,) = (from_record(one) for one in log.read(run / log.PREDICTIONS))
    assert line.pool.given.min() >= 0 and line.pool.given.max() < 6
    assert line.pool.predicted.max() < 6


def test_a_run_that_goes_on_draws_the_splits_that_it_recorded(run):
    _, study = reopen(run.parent, run.name)
    store = check_data(study)[study.conditions[0].id]
    assert store.class_names == tuple(CLASSES)
    lines = log.read(run / log.SPLITS)
    assert lines
    for line in lines:
        split = Split.from_record(line)
        assert split_of(store, study.conditions[0].data, line["seed"]).digest == line["digest"]
        labels = store.train.labels[split.unlabeled]
        assert (labels < 0).mean() == pytest.approx(0.5, abs=0.001)
        assert store.train.labels[split.labeled].min() >= 0
