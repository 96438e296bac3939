"""`study.loggers`: other people's tools follow a run, for real; and whatever they do, the run is as without."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import called, endings, finish, start, wait_for
from tests.support.studies import METRIC, STUDY, after, begun, play, stream_of
from tests.viewers.test_dashboard import logged
from tune_ssl.base.errors import UserError
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports
from tune_ssl.study import loggers as named
from tune_ssl.study.study import load_study
from tune_ssl.tuning import loggers
from tune_ssl.tuning.loggers import following
from tune_ssl.viewers.tensorboard import write_logs

ALL = "[tensorboard, {name: mlflow, experiment: mine}, {wandb: {mode: offline, group: g}}]"
SMALL = STUDY.replace("num_trials: 8", "num_trials: 3, loggers: %s")


def trials(run, until=lambda: False, resumed=False, told=None):
    """Trials of a run report, and its loggers follow; to the end or until that holds."""
    stream = stream_of(run, told)
    with following(stream.context, resumed):
        play(stream, 2, until)


def history(run):
    """trial -> the steps and values of METRIC, by step"""
    found = {}
    for report in latest_reports(log.read(run / log.HISTORY)):
        if METRIC in report["metrics"]:
            found.setdefault(report["trial"], []).append(
                (report["step"], report["metrics"][METRIC])
            )
    return {trial: sorted(values) for trial, values in found.items()}


def said(run):
    """All that the records say, but for the times."""
    lines = log.read(run / log.TRIALS) + log.read(run / log.HISTORY)
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run with all three, which ended in the middle of some trials and was then resumed; what the user was told."""
    run, told = begun(tmp_path_factory.mktemp("followed"), SMALL % ALL), []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        trials(run, until=after(30), told=told)
        assert Ledger.read(run).open_trials()
        trials(run, resumed=True, told=told)
    return run, [line for line in told if line.startswith(("tensorboard:", "mlflow:", "wandb:"))]


def test_nothing_is_said_where_all_goes_well(followed):
    assert followed[1] == []


def mlflow_runs(run):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("mine")
    return client, list(client.search_runs([experiment.experiment_id]))


def test_mlflow_has_each_trial_once_with_its_curve_params_and_ending(followed):
    run, _ = followed
    client, found = mlflow_runs(run)
    ledger = Ledger.read(run)
    assert sorted(r.info.run_name for r in found) == sorted(ledger.begun)
    statuses = {log.FINISHED: "FINISHED", log.STOPPED: "KILLED"}
    for one in found:
        trial = one.info.run_name
        begin, end = ledger.begun[trial], ledger.ended[trial]
        curve = [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, METRIC)]
        assert curve == history(run)[trial]
        assert one.info.status == statuses[end["event"]]
        expected = {key: str(value) for key, value in begin["config"].items()}
        about = {key: str(begin[key]) for key in ("condition", "phase", "seed")}
        assert one.data.params == expected | about
        final = one.data.metrics.get(f"final/{METRIC}")
        assert final == (end["value"] if end["event"] == log.FINISHED else None)
        tags = one.data.tags
        assert tags["tune_ssl.run"] == "r" and tags["tune_ssl.digest"] == begin["digest"]
        assert tags["tune_ssl.status"] == end["event"]


def wandb_records(path):
    """The records of a .wandb file, which is a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_each_trial_once_in_its_offline_folder(followed):
    run, _ = followed
    ledger, seen = Ledger.read(run), {}
    for path in (run / "wandb").glob("offline-run-*/*.wandb"):
        records = list(wandb_records(path))
        (about,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert about.display_name not in seen
        assert (about.project, about.run_group) == ("tune-ssl", "g")
        config = {item.key: item.value_json for item in about.config.update}
        begin = ledger.begun[about.display_name]
        assert {key: str(begin["config"][key]) for key in begin["config"]} == {
            key: config[key].strip('"') for key in begin["config"]
        }
        curve = []
        for record in records:
            values = {
                (item.key or "/".join(item.nested_key)): item.value_json
                for item in record.history.item
            }
            if METRIC in values:
                curve.append((record.history.step.num, float(values[METRIC])))
        seen[about.display_name] = curve
        assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
    assert seen == history(run)
    folders = [str(path) for path in (run / "wandb").glob("offline-run-*")]
    sync = [sys.executable, "-m", "wandb", "sync", "--dry-run", *folders]
    done = subprocess.run(sync, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(f"{t}.wandb" in done.stdout + done.stderr for t in seen)


def test_tensorboard_has_the_same_as_the_command_writes(followed, tmp_path):
    run, _ = followed
    write_logs(run, tmp_path / "logs", replace=False)
    assert {path.name for path in (run / "tensorboard").iterdir()} == set(history(run))

    def read(folder):
        return [
            (value.tag, event.step, event.wall_time, value.simple_value)
            for event in logged(folder)
            for value in event.summary.value
            if not value.metadata.plugin_data.plugin_name
        ]

    for trial in history(run):
        live, written = (read(f / trial) for f in (run / "tensorboard", tmp_path / "logs"))
        assert live == written and live


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    run = begun(tmp_path_factory.mktemp("without"), SMALL % "[]")
    trials(run)
    return said(run)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (
            "raises",
            "tensorboard: RuntimeError: no room at postgresql://me:***@host/db; nothing more is logged there; the run "
            "goes on",
        ),
        (
            "dies",
            "tensorboard: its process ended with 3; nothing more is logged there; the run goes on",
        ),
    ],
)
def test_a_logger_that_fails_is_off_and_the_records_are_as_without(
    tmp_path, monkeypatch, without, how, line
):
    monkeypatch.setitem(loggers.MODULES, "tensorboard", "tests.support.bad_logger")
    monkeypatch.setenv("BAD_LOGGER", how)
    run, told = begun(tmp_path, SMALL % "[tensorboard]"), []
    trials(run, told=told)
    assert said(run) == without
    assert [one for one in told if "tensorboard" in one] == [line]


def test_a_logger_that_hangs_costs_the_patience_and_nothing_else(tmp_path, monkeypatch, without):
    monkeypatch.setitem(loggers.MODULES, "tensorboard", "tests.support.bad_logger")
    monkeypatch.setattr(loggers, "PATIENCE", 2.0)
    monkeypatch.setattr(loggers, "START", 0.0)
    monkeypatch.setattr(loggers, "MOST", 5)
    monkeypatch.setenv("BAD_LOGGER", "hangs")
    run, told = begun(tmp_path, SMALL % "[tensorboard]"), []
    stream = stream_of(run, told)
    with following(stream.context, False):
        began = time.monotonic()
        play(stream, 2)
        assert time.monotonic() - began < 5
        began = time.monotonic()
    assert 1.5 < time.monotonic() - began < 6
    assert said(run) == without
    cut = [line for line in told if "tensorboard" in line]
    assert cut[0].startswith("tensorboard: it is too slow, and ")
    assert cut[0].endswith(
        "did not reach it in time; nothing more is logged there; the run goes on"
    )


def test_a_slow_logger_loses_reports_and_that_is_said(tmp_path, monkeypatch, without):
    monkeypatch.setitem(loggers.MODULES, "tensorboard", "tests.support.bad_logger")
    monkeypatch.setattr(loggers, "MOST", 0)  # as if what waits were always too much
    monkeypatch.setenv("BAD_LOGGER", "slow")
    run, told = begun(tmp_path, SMALL % "[tensorboard]"), []
    trials(run, told=told)
    assert said(run) == without
    (line,) = [line for line in told if "tensorboard" in line]
    assert re.fullmatch(r"tensorboard: [1-9]\d* reports were dropped, as it was too slow", line)


def test_a_store_that_cannot_be_written_costs_the_logger_alone(tmp_path, without):
    run, told = begun(tmp_path, SMALL % "[{mlflow: {tracking_uri: 'sqlite:////proc/none.db'}}]"), []
    trials(run, told=told)
    assert said(run) == without
    (line,) = [line for line in told if "mlflow" in line]
    assert "unable to open database file" in line and line.endswith("the run goes on")


KILLED = """
import os, time
from tune_ssl.tuning import loggers
loggers.COMMAND = "from tune_ssl.viewers import follow; follow.PATIENCE = 0.5; follow.main()"
about = {"module": "tests.support.bad_logger", "arguments": {}, "folder": ".", "id": "i", "study": "s", "metric": "m"}
logger = loggers.Logger("x", about | {"resumed": False}, print)
logger.put("event", {"event": "started", "trial": "t", "time": 1.0})
logger.put("report", {"trial": "t", "step": 1, "stage": "s", "metrics": {}, "time": 1.0})
time.sleep(1)
print(logger.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_hanging_logger_ends_with_a_driver_that_is_killed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "BAD_LOGGER": "hangs", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    end = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.2)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- what a study may say ------------------------------------------------------------------------


def settings_of(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(SMALL % text)
    return load_study(path).settings.loggers


def test_both_ways_to_give_arguments_are_one(tmp_path):
    assert settings_of(tmp_path, "[tensorboard, {wandb: {project: p}}, {mlflow: }]") == [
        "tensorboard",
        {"name": "wandb", "project": "p"},
        {"name": "mlflow"},
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[tensorbord]",
            "is 'tensorbord', but must be a known logger; did you mean 'tensorboard'?",
        ),
        ("[wandb, {wandb: {mode: offline}}]", "study.loggers names wandb twice"),
        ("[{wandb: {projct: p}}]", "has the argument 'projct', which wandb does not take; did you"),
        (
            "[{wandb: {mode: 3}}]",
            "study.loggers.wandb has mode: 3, but must have a text there",
        ),
        (
            "[{wandb: {mode: ofline}}]",
            "but must have online, offline or disabled; did you mean 'off",
        ),
        ("[{mlflow: {tracking_uri: 'http://me:secret1@host'}}]", "http://me:***@host"),
        ("mlflow", "study.loggers is 'mlflow', but must be a list"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, problem):
    with pytest.raises(UserError) as error:
        settings_of(tmp_path, text)
    assert problem in str(error.value) and "secret1" not in str(error.value)
    assert len(error.value.problems) == 1 and "study.yaml:12: " in str(error.value)


@pytest.mark.parametrize("verb", ["check", "search"])
def test_a_library_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys, verb
):
    (tmp_path / "study.yaml").write_text(SMALL % "[mlflow, wandb]")
    (tmp_path / "wandb").mkdir()  # a folder of that name is no package
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(named, "find_spec", lambda name: None if name == "wandb" else find(name))
    code, _, err = called(monkeypatch, capsys, verb, "study.yaml")
    assert code == 2 and not (tmp_path / "runs").exists()
    assert err == (
        "study.yaml:12: study.loggers has wandb, but the package wandb is not installed; "
        "pip install 'tune-ssl[wandb]'\n"
    )


# ---- the whole of it -----------------------------------------------------------------------------

SEARCH = """
fixed:
  data: {dataset: digits, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  budget: {steps: 240, eval_every: 12}
search:
  optim.lr: {log_uniform: [3e-3, 3e-2]}
study: {num_trials: 3, finalists: 1, seeds: [3], scheduler: none, checkpoint_seconds: 0,
        loggers: [tensorboard, {mlflow: {experiment: mine}}, {wandb: {mode: offline}}]}
"""


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_has_each_trial_once_in_each_tool(tmp_path):
    run = tmp_path / "runs" / "one"
    (tmp_path / "s.yaml").write_text(SEARCH)
    process = start(tmp_path, "search", "s.yaml", "--name", "one", "--no-report")
    wait_for(process, lambda: len(endings(run)) > 0 and len(log.read(run / log.HISTORY)) > 24)
    process.kill()
    process.communicate()
    code, out, err = finish(start(tmp_path, "search", "--resume", "one", "--no-report"))
    assert code == 0 and "nothing more is logged" not in out, out + err
    client, found = mlflow_runs(run)
    ledger = Ledger.read(run)
    assert sorted(r.info.run_name for r in found) == sorted(ledger.ended)
    assert {r.info.status for r in found} == {"FINISHED"}
    for one in found:
        curve = [m.step for m in client.get_metric_history(one.info.run_id, METRIC)]
        assert curve == [step for step, _ in history(run)[one.info.run_name]]
    names = [path.name[len("offline-run-20261128_134147-") :] for path in run.glob("wandb/off*")]
    assert sorted(name.partition("-")[2] for name in names) == sorted(ledger.ended)
    assert {path.name for path in (run / "tensorboard").iterdir()} == set(ledger.ended)
