"""`tune-ssl dashboard` and `tensorboard`: other people's viewers on a run, which stays as it is."""

from __future__ import annotations

import io
import json
import math
import signal
import struct
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.runs import events, finish, start
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import reopen
from tune_ssl.viewers import dashboard
from tune_ssl.viewers.dashboard import REFUSAL

ONE = Path("runs/one")


# ---- the dashboard -----------------------------------------------------------------------------


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_dashboard_shows_the_studies_changes_nothing_and_ends_with_130(command, tmp_path):
    pytest.importorskip("optuna_dashboard")
    before = content(ONE)
    process = start(tmp_path, "dashboard", "one", "--port", "0")
    try:
        line = process.stdout.readline()
        assert line.startswith("runs/one: http://127.0.0.1:") and line.endswith(
            "(Ctrl-C ends it)\n"
        )
        url = line.split()[1]

        def asked(path: str, method: str = "GET") -> bytes:
            request = urllib.request.Request(url + path, method=method)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()

        assert b"<title>" in asked("dashboard")
        studies = json.loads(asked("api/studies"))["study_summaries"]
        names = ["data.num_labels=20", "data.num_labels=100"]
        assert [study["study_name"] for study in studies] == names
        trials = json.loads(asked("api/studies/1"))["trials"]
        ended = Ledger(events(ONE)).ended
        assert [t["values"][0] for t in trials] == [ended[f"c1-t000{i}"]["value"] for i in range(3)]
        for path, method in (("api/studies/0/note", "PUT"), ("api/studies/0", "DELETE")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(path, method)
            assert refused.value.code == 403
            assert json.loads(refused.value.read()) == {"reason": REFUSAL}
    finally:
        process.send_signal(signal.SIGINT)
    code, out, err = finish(process, 30)
    assert (code, out, err) == (130, "", "interrupted\n")
    assert content(ONE) == before


def test_the_dashboard_follows_a_run_that_goes_on(command, monkeypatch):
    pytest.importorskip("optuna_dashboard")
    monkeypatch.setattr(dashboard, "PAUSE", 0.0)
    whole = (ONE / log.TRIALS).read_text().splitlines(keepends=True)
    ends = [i for i, line in enumerate(whole) if '"c1-t0002"' in line and '"finished"' in line]
    (ONE / log.TRIALS).write_text("".join(whole[: ends[0]]))
    run, study = reopen(Path("runs"), "one")
    app = dashboard.LiveApplication(run, study)

    def states() -> list[str]:
        asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "wsgi.input": io.BytesIO()}
        app.again = 0.0
        body = b"".join(app(asked, lambda *_: None))
        return [trial["state"] for trial in json.loads(body)["trials"]]

    assert states() == ["Complete", "Complete", "Running"]
    (ONE / log.TRIALS).write_text("".join(whole))
    assert states() == ["Complete", "Complete", "Complete"]


def test_the_studies_are_written_for_other_tools_and_never_over_others(command):
    import optuna

    code, out, err = command("dashboard", "one", "--write", "sqlite:///x.db")
    assert (code, err) == (0, "")
    names = ["one data.num_labels=20", "one data.num_labels=100"]
    assert out.splitlines() == [f"study: {name}" for name in names]
    ended = Ledger(events(ONE)).ended
    for index, name in enumerate(names):
        study = optuna.load_study(study_name=name, storage="sqlite:///x.db")
        values = [ended[f"c{index}-t000{i}"]["value"] for i in range(3)]
        assert [trial.value for trial in study.trials] == values
        assert all(len(trial.intermediate_values) == 1 for trial in study.trials)
    again = command("dashboard", "one", "--write", "sqlite:///x.db")
    assert again == (2, "", f"the storage has a study {names[0]!r} already: give another URL\n")
    code, out, err = command("dashboard", "one", "--write", "sqlit:///x.db")
    assert (code, out) == (2, "") and err.startswith("sqlit:///x.db: --write cannot be written: ")
    assert len(err.splitlines()) == 1


def test_a_dashboard_that_is_not_installed_is_one_line(command, monkeypatch):
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    expected = "the package optuna-dashboard is not installed; pip install 'tune-ssl[dashboard]'\n"
    assert command("dashboard", "one") == (2, "", expected)


@pytest.mark.parametrize("host, port", [("127.0.0.1", 70000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_used_is_one_line(command, host, port):
    pytest.importorskip("optuna_dashboard")
    code, out, err = command("dashboard", "one", "--host", host, "--port", port)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith(f"{host}:{port} cannot be listened on: ")
    assert err.endswith("; --port gives another one\n")


# ---- TensorBoard logs --------------------------------------------------------------------------


def logged(folder: Path):
    """The events of a folder's event file: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    left, found = path.read_bytes(), []
    while left:
        (size,) = struct.unpack("<Q", left[:8])
        found.append(Event.FromString(left[12 : 12 + size]))
        left = left[16 + size :]
    return found


def test_the_logs_are_the_history_with_each_trials_hyperparameters(command):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    code, out, err = command("tensorboard", "one")
    assert (code, err) == (0, "")
    assert out == (
        "logs of 14 trials: runs/one/tensorboard\n"
        "look at them: tensorboard --logdir runs/one/tensorboard\n"
    )
    ended = Ledger(events(ONE)).ended
    assert {path.name for path in (ONE / "tensorboard").iterdir()} == set(ended)
    history = log.read(ONE / log.HISTORY)
    for trial in ("c0-t0001", "c1-confirm-s4"):
        found, plugins = {}, {}
        for event in logged(ONE / "tensorboard" / trial):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name:
                    content = value.metadata.plugin_data.content
                    plugins[value.tag] = HParamsPluginData.FromString(content)
                else:
                    found[value.tag, event.step] = (value.simple_value, event.wall_time)
        final = ended[trial]["value"]
        assert found.pop(("final/val/mean_class_accuracy", 40))[0] == pytest.approx(final)
        expected = {
            (key, report["step"]): (value, report["time"])
            for report in history
            if report["trial"] == trial
            for key, value in report["metrics"].items()
        }
        assert found.keys() == expected.keys()
        for key, (value, when) in expected.items():
            assert found[key] == (pytest.approx(value), pytest.approx(when))
        begin = plugins["_hparams_/session_start_info"].session_start_info.hparams
        begun = next(e for e in events(ONE) if e["trial"] == trial)
        assert begin["optim.lr"].number_value == begun["config"]["optim.lr"]
        assert begin["method.labeled_view"].string_value == begun["config"]["method.labeled_view"]
        assert (begin["seed"].number_value, begin["phase"].string_value) == (
            begun["seed"],
            begun["phase"],
        )


def test_tensorboard_itself_reads_them(command):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command("tensorboard", "one", "-o", "logs")[0] == 0
    read = EventAccumulator("logs/c0-confirm-s3").Reload()
    own = [r for r in log.read(ONE / log.HISTORY) if r["trial"] == "c0-confirm-s3"]
    shown = read.Scalars("val/mean_class_accuracy")
    values = [report["metrics"]["val/mean_class_accuracy"] for report in own]
    assert [s.step for s in shown] == [20, 40]
    assert [s.value for s in shown] == pytest.approx(values)


def test_only_finished_trials_have_a_final_value_and_what_is_not_finite_is_nan(command):
    lines = (ONE / log.TRIALS).read_text().replace('"finished"', '"stopped_early"')
    (ONE / log.TRIALS).write_text(lines)
    report = log.read(ONE / log.HISTORY)[0]
    log.append(ONE / log.HISTORY, report | {"metrics": {"loss/total": None}})
    assert command("tensorboard", "one")[0] == 0
    found = {
        (value.tag, event.step): value.simple_value
        for event in logged(ONE / "tensorboard" / report["trial"])
        for value in event.summary.value
    }
    assert math.isnan(found["loss/total", report["step"]])  # the last of two reports of a step
    assert not [tag for tag, _ in found if tag.startswith("final/")]
    assert ("_hparams_/session_end_info", 0) not in found


def test_the_runs_own_logs_are_replaced_and_another_folder_must_be_empty(command):
    assert command("tensorboard", "one")[0] == 0
    (ONE / "tensorboard" / "left").mkdir()
    assert command("tensorboard", "one")[0] == 0
    assert not (ONE / "tensorboard" / "left").exists()
    Path("mine").mkdir()
    Path("mine/a.txt").write_text("mine")
    expected = "mine is not empty: give a new folder, or empty this one\n"
    assert command("tensorboard", "one", "-o", "mine") == (2, "", expected)
    (ONE / log.HISTORY).write_text("")
    assert command("tensorboard", "one", "-o", "new") == (2, "", "runs/one has no history yet\n")
    assert sorted(path.name for path in Path().iterdir()) == ["mine", "runs"]
