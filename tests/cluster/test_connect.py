"""--address: one line for whatever is wrong with a cluster, nodes that differ, nodes and heads that die."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.cluster import free_ports, local_cluster
from tests.support.runs import (
    COMMAND,
    called,
    descendants,
    endings,
    events,
    kill_all,
    trial_workers,
    wait_for,
    write_study,
)
from tune_ssl.base.errors import UserError
from tune_ssl.cluster import connect
from tune_ssl.records import log

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 16}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  budget: {steps: 20, eval_every: 10}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 2, searcher: random, scheduler: none, finalists: 1, seeds: [0]}
"""


@pytest.fixture
def nowhere(monkeypatch):
    """No cluster is named by the environment."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "address, expected",
    [
        ("here", "--address is 'here', but must be auto or HOST:PORT, such as 10.0.0.1:6379"),
        ("host:0", "--address is 'host:0', but must be auto or HOST:PORT"),
        ("host:99999", "--address is 'host:99999', but must be auto or HOST:PORT"),
        ("http://host:8265", "--address is 'http://host:8265', but must be auto or HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_one_line(
    tmp_path, monkeypatch, capsys, nowhere, address, expected
):
    study = write_study(tmp_path, STUDY)
    monkeypatch.chdir(tmp_path)
    code, _, err = called(monkeypatch, capsys, "search", study, "--address", address)
    assert code == 2 and err.startswith(expected) and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_auto_without_a_cluster_is_refused_and_the_environment_names_one(monkeypatch, nowhere):
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: None)
    with pytest.raises(UserError, match="is 'auto', but no cluster runs on this machine"):
        connect.resolved("auto")
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    assert connect.resolved("auto") == "10.1.2.3:6379"


def test_a_closed_port_and_one_that_never_speaks_are_told_apart(monkeypatch, nowhere):
    closed = f"127.0.0.2:{free_ports(1)[0]}"
    with pytest.raises(UserError, match=f"^{closed}: nothing answers there: Connection refused$"):
        connect._refuse_unhealthy(closed)
    with socket.create_server(("127.0.0.2", 0)) as mute:
        monkeypatch.setattr(connect, "HEALTH_SECONDS", 1.0)
        where = f"127.0.0.2:{mute.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^{where}: something answers there, but it is no Ray"):
            connect._refuse_unhealthy(where)


def test_a_local_ray_comes_without_the_processes_that_no_study_uses(nowhere):
    code = "from tune_ssl.cluster.connect import cluster\nwith cluster(False):\n    input('up\\n')"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as driver:
        assert driver.stdout.readline() == "up\n"
        commands = []
        for pid in descendants(driver.pid):
            with contextlib.suppress(OSError):  # it has ended by now
                commands.append(Path(f"/proc/{pid}/cmdline").read_text())
        driver.communicate("\n")
    assert driver.returncode == 0
    started = {Path(part).name for command in commands for part in command.split("\0")[:4]}
    assert {"gcs_server", "raylet"} <= started
    assert not {"dashboard.py", "monitor.py", "log_monitor.py"} & started


def test_a_raylet_that_is_gone_is_noticed_where_the_head_still_answers(monkeypatch):
    monkeypatch.setattr(connect, "GONE_SECONDS", 0.5)
    monkeypatch.setattr(connect, "LOOK_SECONDS", 0.1)
    node = SimpleNamespace(all_processes={})  # of a cluster that was there: none is ours
    monkeypatch.setattr(connect.ray._private.worker, "_global_node", node)
    told, over = [], threading.Event()
    with (
        socket.create_server(("127.0.0.2", 0)) as head,
        socket.create_server(("127.0.0.3", 0)) as raylet,
    ):
        places = {
            "its head": f"127.0.0.2:{head.getsockname()[1]}",
            "the raylet of this machine": f"127.0.0.3:{raylet.getsockname()[1]}",
        }
        watch = threading.Thread(target=connect._watch, args=(over, places, told.append))
        watch.start()
        time.sleep(1)
        assert told == []
        raylet.close()
        watch.join(20)
    over.set()
    where = places["the raylet of this machine"]
    assert told == [f"the raylet of this machine, {where}, does not answer: Connection refused"]


# ---- a cluster that is there ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Its head runs no trial; nodes come and go."""
    with local_cluster(tmp_path_factory.mktemp("cluster"), cpus=0) as cluster:
        yield cluster


def begin(folder, cluster, *arguments, **environment):
    """Start `tune-ssl ARGUMENTS --address CLUSTER` in `folder`; what it says goes to `folder`/said."""
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments), "--address", cluster.address],
            cwd=folder,
            env={**cluster.environment, "COLUMNS": "120", **environment},
            stdout=said,
            stderr=said,
        )


def end(folder, process, timeout=300):
    """(exit code, what it said)"""
    return process.wait(timeout), (folder / "said").read_text()


@pytest.mark.slow
def test_a_cluster_with_a_token_refuses_who_has_none_or_another(tmp_path, cluster):
    study = write_study(tmp_path, STUDY)
    (tmp_path / "other").write_text("f" * 32)
    for environment, expected in (
        (
            {"RAY_AUTH_MODE": "disabled"},
            "the cluster asks for a token: set RAY_AUTH_MODE=token and",
        ),
        (
            {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")},
            "the cluster refuses the token in the file RAY_AUTH_TOKEN_PATH=",
        ),
    ):
        code, said = end(tmp_path, begin(tmp_path, cluster, "search", study, **environment))
        [line] = said.splitlines()
        assert code == 2 and line.startswith(f"{cluster.address}: {expected}")
    assert not (tmp_path / "runs").exists()


def can_unshare():
    return (
        os.geteuid() == 0
        and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="needs mount namespaces, so root")
def test_a_node_that_sees_another_runs_folder_is_refused_before_anything_starts(tmp_path, cluster):
    study = write_study(tmp_path, STUDY)
    runs = tmp_path / "runs"
    runs.mkdir()
    hide = f'mount -t tmpfs none "{runs}" && exec "$@"'
    node = cluster.add_node("unshare", "-m", "bash", "-c", hide, "bash", cpus=1)
    code, said = end(tmp_path, begin(tmp_path, cluster, "search", study))
    cluster.kill_node(node)
    cluster.wait_until_gone(node)  # the next test counts the nodes
    assert code == 2, said
    line = said.splitlines()[-1]
    assert "(127.0.0.3): cannot use " in line or "of its own" in line
    assert "give --runs a folder that all nodes share, or --storage a URL (s3://, gs://)" in line
    assert list(runs.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_nodes_and_a_killed_head_cost_no_finished_trial(tmp_path, cluster):
    """The nodes with room for a trial die one by one, another joins, and then all of the cluster dies."""
    longer = STUDY.replace("num_trials: 2", "num_trials: 6")
    longer = longer.replace("{steps: 20, eval_every: 10}", "{steps: 600, eval_every: 40}")
    study = write_study(tmp_path, longer)
    run = tmp_path / "runs" / "one"
    asked = ("search", study, "--name", "one", "--no-report")

    def reports():
        return len(log.read(run / log.HISTORY))

    def says(text):
        return lambda: text in (tmp_path / "said").read_text()

    first, second = (cluster.add_node(cpus=1) for _ in range(2))
    code, said = end(tmp_path, begin(tmp_path, cluster, *asked, "study.cpus_per_trial=2"))
    assert code == 2
    assert re.fullmatch(r"study.cpus_per_trial is 2, but the largest of . nodes has 1 CPU\n", said)

    process = begin(tmp_path, cluster, *asked)
    wait_for(process, says("resources: 1 CPU per trial, 2 at once ("))
    wait_for(process, lambda: all(map(trial_workers, pids(cluster, first, second))))
    wait_for(process, lambda: reports() >= 5)
    cluster.kill_node(first)
    before = reports()
    wait_for(process, lambda: reports() > before + 5)  # the other one goes on
    cluster.kill_node(second)
    wait_for(process, says("no node has 1 CPU; waiting for one"))
    third = cluster.add_node(cpus=1)
    wait_for(process, lambda: log.FINISHED in endings(run).values())

    done = {trial for trial, how in endings(run).items() if how == log.FINISHED}
    dying = pids(cluster, 0, third)
    kill_all([pid for node in dying for pid in (node, *descendants(node))])
    code, said = end(tmp_path, process)
    assert code == 1 and "Traceback" not in said
    line = said.splitlines()[-1]
    assert "the cluster is gone: " in line and "tune-ssl search --resume one" in line

    cluster.start_head()
    cluster.add_node(cpus=1)
    again = begin(tmp_path, cluster, "search", "--resume", "one", "--no-report")
    code, said = end(tmp_path, again)
    assert code == 0, said
    ended = [e["trial"] for e in events(run) if e["event"] in log.ENDINGS]
    assert len(ended) == len(set(ended)) == 6 + 1 and done <= set(ended)
    assert set(endings(run).values()) == {log.FINISHED}


def pids(cluster, *nodes):
    return [cluster.nodes[node].pid for node in nodes]
