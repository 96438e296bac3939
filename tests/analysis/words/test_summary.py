"""The sentences at the top of a report."""

import pytest

from analysis.read.load import load_runs
from tests.analysis.conftest import said
from tune_ssl.records import log


def text_of(*paths):
    return "\n".join(said(load_runs(paths)))


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [
        (0.005, "are not told apart in mean per-class accuracy on test."),
        (0.03, "are not told apart in mean per-class accuracy on test."),
        (0.04, "ahead of uda"),  # though the separate intervals overlap
    ],
)
def test_methods_without_pairs_are_told_apart_by_welchs_test(tmp_path, write_run, shift, sentence):
    own = dict(zip(range(10, 15), (0.80, 0.84, 0.82, 0.86, 0.83), strict=True))
    a = write_run(tmp_path / "a", method="fixmatch", labels=(50,), shift=shift, confirm=own)
    b = write_run(tmp_path / "b", method="uda", labels=(50,))
    assert sentence in text_of(a, b)


def test_one_seed(tmp_path, write_run):
    text = text_of(write_run(tmp_path / "a", labels=(50,), confirm={3: 0.8}))
    assert "(one fresh seed, so no interval)." in text
    assert "1 seed gives no interval: that takes 4 seeds, 3 more per condition." in text
    assert "1 of 5 planned confirm seeds have been run." in text
    assert "nan" not in text


def test_three_seeds_are_said_to_be_few(tmp_path, write_run):
    text = text_of(write_run(tmp_path / "a", labels=(50,), confirm={0: 0.8, 1: 0.81, 2: 0.82}))
    assert "3 seeds give no 95 % interval: that takes 4 seeds, 1 more per condition." in text
    four = {0: 0.8, 1: 0.81, 2: 0.82, 3: 0.83}
    text = text_of(write_run(tmp_path / "b", labels=(50,), confirm=four))
    assert "95 % interval" not in text


def test_everything_failed(tmp_path, write_run):
    search = (("failed", None, "Traceback:\n  File x\ncuda broke\n"), ("diverged", None, "nan"))
    text = text_of(write_run(tmp_path / "a", search=search, confirm={}))
    assert "all 4 search trials failed, diverged or collapsed. First reason: cuda broke" in text


def test_running_and_null_metrics(tmp_path, write_run):
    search = ((None, None, None), ("finished", None, None), ("finished", 0.5, None))
    text = text_of(write_run(tmp_path / "a", labels=(50,), search=search, confirm={}))
    assert "1 trial(s) have no ending" in text
    assert "1 finished trial(s) have no val/mean_class_accuracy value." in text


def test_caveats(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,), confirm={100: 0.8, 1: None})
    event(path, log.LOCKED, "c0-t0000", "data.num_labels=50", digest="g0", phase="confirm")
    event(path, log.STARTED, "late", "data.num_labels=50", config={})
    event(path, log.FINISHED, "late", "data.num_labels=50", value=0.9)
    other = write_run(tmp_path / "b", method="uda", labels=(50, 99), metric="val/accuracy")
    lines = (other / log.TRIALS).read_text().replace('"test/accuracy": 0.8', '"test/accuracy": 0.7')
    lines = [line for line in lines.splitlines() if '"locked"' not in line or "99" in line]
    (other / log.TRIALS).write_text("\n".join(lines) + "\n")
    text = text_of(path, other)
    for sentence in (
        "seed 100 served both the search and the confirmation.",
        "1 of 2 confirm trials have no test value.",
        "2 configurations were locked, so test data was opened more than once.",
        "The runs were tuned on different metrics",
        "data.num_labels=99 is not part of soft_kmeans: no comparison there.",
        "uda, data.num_labels=50: confirm trials without a locked event.",
        "but its confusion matrix says 0.8",
        "the locked trial c0-t0001 is not the one that the rule picks",
    ):
        assert sentence in text, sentence


def test_what_guessing_reaches_and_what_was_left_out_of_the_data_is_said(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,), confirm={100: 0.35, 101: 0.3, 102: 0.32})
    study = path / log.STUDY
    remark = "left out: 3 files, no image by its content (a.txt, b.txt, c.txt)"
    study.write_text(
        study.read_text().replace("dataset:\n", f"dataset:\n  remarks: ['{remark}']\n")
    )
    text = text_of(path)
    assert f"Data: {remark}." in text
    assert "is at chance level: 32.3 % with " in text
    assert "chance level" not in text_of(write_run(tmp_path / "b", labels=(50,), confirm={1: 0.9}))
