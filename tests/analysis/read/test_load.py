import pytest

from analysis.read.load import load_runs
from tune_ssl.base.errors import UserError
from tune_ssl.records import log


def message(*paths):
    with pytest.raises(UserError) as caught:
        load_runs(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns(tmp_path, write_run):
    runs = load_runs([write_run(tmp_path / "a")])
    trials = runs.trials.set_index("trial")
    assert trials.loc["c0-t0001", ["status", "value", "labels", "seed", "split"]].to_list()[:4] == [
        "finished",
        0.81,
        50,
        100,
    ]
    assert trials.loc["c1-confirm-s2", "config.optim.lr"] == 0.02
    assert trials.loc["c1-confirm-s2", "test/mean_class_accuracy"] == pytest.approx(0.85)
    assert trials.loc["c1-confirm-s2", "split"] == "same-2"
    assert len(trials) == 2 * (6 + 5)
    assert len(runs.history) == len(trials) * 5
    assert runs.history["loss/total"].isna().sum() == len(trials)
    assert list(runs.locks["condition"]) == ["data.num_labels=50", "data.num_labels=200"]
    assert runs.notes == []


def test_not_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert message() == "no run folder was given"
    assert message(tmp_path / "none") == f"{tmp_path / 'none'}: is not a folder"
    expected = f"{tmp_path / 'empty'}: is not a run folder: it has no study.yaml"
    assert message(tmp_path / "empty") == expected


def test_bad_study(tmp_path, write_run):
    path = write_run(tmp_path / "a")
    study = path / log.STUDY
    text = study.read_text()
    study.write_text(text.replace("schema: 1", "schema: 9"))
    assert message(path).endswith("schema is 9, but this version of tune-ssl reads only 1")
    study.write_text("a: [")
    assert "study.yaml:1: the file is not valid YAML: " in message(path)
    study.write_text("")
    assert message(path).endswith("is empty, but must be a mapping with what a run writes")
    study.write_text(text.replace("mode: max", "mode: best"))
    assert "mode is 'best', but must be min or max" in message(path)
    study.write_text(text.replace("id:", "idd:"))
    assert message(path).endswith("conditions is not a list of conditions with an id")
    study.write_text(text.replace("metric:", "metrik:"))
    assert message(path).endswith("metric is missing")


def test_bad_records(tmp_path, write_run, event):
    path = write_run(tmp_path / "a")
    event(path, log.STARTED, "x", "data.num_labels=50", schema=2)
    assert message(path).endswith("schema is 2, but this version of tune-ssl reads only 1")
    path = write_run(tmp_path / "b")
    log.append(path / log.TRIALS, {"event": "started", "trial": "x"})
    assert message(path).endswith("trials.jsonl:47: has a record without 'phase'")
    path = write_run(tmp_path / "c")
    event(path, log.FINISHED, "x", "data.num_labels=50", value="high")
    assert message(path).endswith("`value` is 'high', but must be a finite number or null")


def test_torn_line_becomes_a_note(tmp_path, write_run, recwarn):
    path = write_run(tmp_path / "a")
    with open(path / log.TRIALS, "a") as file:
        file.write('{"schema": 1, "event": "fin')
    assert load_runs([path]).notes == ["a: trials.jsonl: 1 torn line(s) dropped."]
    assert not recwarn.list


def test_running_resumed_and_repeated(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,), search=((None, None, None),), confirm={})
    event(path, log.RESUMED, "c0-t0000", "data.num_labels=50")
    repeated = {"trial": "c0-t0000", "stage": "train", "step": 40, "metrics": {"loss/total": 9.0}}
    log.append(path / log.HISTORY, repeated)
    runs = load_runs([path])
    assert runs.trials[["status", "resumed"]].to_numpy().tolist() == [["running", 1]]
    assert len(runs.history) == 5
    assert runs.history["loss/total"].iloc[-1] == 9.0


def test_labels_keep_runs_apart(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="fixmatch")
    b = write_run(tmp_path / "b", method="fixmatch")
    c = write_run(tmp_path / "c", method="supervised")
    assert load_runs([a, b, c]).labels == ["a", "b", "supervised"]
    assert load_runs([a, c]).labels == ["fixmatch", "supervised"]
    again = write_run(tmp_path / "other" / "a", method="fixmatch")
    assert load_runs([a, again]).labels == [str(a), str(again)]
    named = write_run(tmp_path / "d", name="supervised", method="fixmatch")
    assert len(set(load_runs([a, named, c]).labels)) == 3
    assert len(load_runs([a, a]).studies) == 1


def test_other_data_is_refused(tmp_path, write_run):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", digest="d2")
    assert message(a, b) == (
        f"{b} is on dataset digits (d2), but {a} on digits (d1): "
        "runs on different data are not compared"
    )


def test_unknown_condition_is_said(tmp_path, write_run, event):
    path = write_run(tmp_path / "a")
    event(path, log.STARTED, "x", "data.num_labels=7", config={})
    assert load_runs([path]).notes == ["a: data.num_labels=7 is not a condition of study.yaml."]


def test_a_crash_takes_step_and_seconds_of_its_last_report(tmp_path, write_run, event):
    search = ((None, None, None), (None, None, None))
    path = write_run(tmp_path / "a", labels=(50,), search=search, confirm={})
    event(path, log.FAILED, "c0-t0000", "data.num_labels=50", step=None, reason="broke")
    trials = load_runs([path]).trials.set_index("trial")
    found = trials.loc["c0-t0000", ["status", "step", "seconds", "last"]]
    assert found.to_list() == ["failed", 40, 40, pytest.approx(0.9)]
    assert trials["value"].isna().all()
    assert trials.loc["c0-t0001", "status"] == "running" and trials["step"].isna().sum() == 1


def test_a_trial_with_its_batches_in_parts_says_so(tmp_path, write_run):
    run = write_run(tmp_path / "a", labels=(50,))
    about = {"phase": "search", "trial": "extra", "condition": "data.num_labels=50"}
    started = {"event": "started", "seed": 1, "number": 9, "config": {}, "digest": "x", "time": 1.0}
    log.append(run / log.TRIALS, {**about, **started})
    ended = {"event": "finished", "value": 0.5, "metrics": {}, "step": 1, "time": 2.0}
    log.append(run / log.TRIALS, {**about, **ended, "accumulate": 2})
    trials = load_runs([run]).trials.set_index("trial")
    assert trials.loc["extra", "reason"] == "each batch in 2 parts (compute.accumulate=2)"
