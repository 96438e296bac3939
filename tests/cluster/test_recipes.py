"""The recipes of docs/cluster, each checked as far as that goes without its platform."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from tests.cluster.test_submit_job import STUDY
from tests.support.runs import descendants, endings, events, wait_until
from tune_ssl.base.network import probe
from tune_ssl.cli import main as cli
from tune_ssl.records import log
from tune_ssl.study.study import load_study

RECIPES = Path(__file__).parents[2] / "docs" / "cluster"
SLURM = RECIPES / "slurm.sh"


def documents(name):
    return list(YAML(typ="safe").load_all((RECIPES / name).read_text()))


def takes(command):
    """Whether the command line knows every option of a `tune-ssl search ...` in a recipe."""
    program, name, *arguments = shlex.split(command)
    assert program == "tune-ssl"
    group = typer.main.get_command(cli.app)
    return group.commands[name].make_context(name, arguments).params


def test_no_recipe_runs_ray_stop():
    for recipe in RECIPES.iterdir():
        lines = [line.partition("#")[0] for line in recipe.read_text().splitlines()]
        assert not [line for line in lines if "ray stop" in line], recipe


def test_the_file_for_ray_up_is_sound_by_rays_own_schema_and_defaults():
    from ray.autoscaler._private.util import prepare_config, validate_config

    [config] = documents("ray-up.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    for side in ("head", "worker"):  # ours, and not Ray's, which begin with `ray stop`
        [command] = prepared[f"{side}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token" in command and "ray start" in command
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][0]


def test_the_rayjob_has_what_its_definition_requires_and_fits_together(tmp_path):
    config, claim, job = documents("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    head, workers = (
        spec["rayClusterSpec"]["headGroupSpec"],
        spec["rayClusterSpec"]["workerGroupSpecs"],
    )
    sources = {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    sources |= {"configMap": {"name": config["metadata"]["name"]}}
    for group in (head, *workers):
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        for volume in pod["volumes"]:
            [(kind, source)] = [item for item in volume.items() if item[0] != "name"]
            assert source == sources[kind]
        for container in pod["containers"]:
            assert container["image"] and container["resources"]["limits"]["memory"]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
            assert mounts["runs"] == "/shared/runs"
    for group in workers:
        assert group["groupName"] and group["minReplicas"] <= group["replicas"]
    given = takes(spec["entrypoint"])
    assert (str(given["runs"]), given["address"]) == ("/shared/runs", "auto")
    assert str(given["study"]) == "/study/study.yaml"
    (tmp_path / "study.yaml").write_text(config["data"]["study.yaml"])
    assert load_study(tmp_path / "study.yaml").settings.num_trials == 16
    resumed = re.search(r"tune-ssl search --resume .*", (RECIPES / "rayjob.yaml").read_text())[0]
    assert takes(resumed)["resume"] == given["name"]


def test_the_slurm_script_is_sound_bash():
    subprocess.run(["bash", "-n", SLURM], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, SLURM], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- the Slurm script with commands of Slurm's that run everything on this machine ---------------

STUBS = {
    "scontrol": 'printf "%s\\n" node2 node3\n',
    # The node's number is the last part of its address; like the real one, srun passes signals on.
    "srun": """
while [[ $1 == --* ]]; do
  case $1 in --nodelist=node*) export STUB_ADDRESS=127.0.0.${1#--nodelist=node} ;; esac
  shift
done
exec "$@"
""",
    "hostname": 'echo "$STUB_ADDRESS and more"\n',
}


@pytest.fixture
def slurm(tmp_path):
    """`slurm(name)` starts the script as a job of two nodes, 127.0.0.2 and 127.0.0.3."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}")
        (stubs / name).chmod(0o755)
    (tmp_path / "study.yaml").write_text(
        STUDY.replace("steps: 20", "steps: 400").replace("none,", "none, checkpoint_seconds: 0,")
    )
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        **{"PATH": f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}"},
        **{"STUDY": str(tmp_path / "study.yaml"), "RUNS": str(tmp_path / "runs")},
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[2-3]"},
        **{"SLURM_CPUS_PER_TASK": "1"},
    }
    jobs = []

    def start(name):
        with (tmp_path / "said").open("a") as said:
            job = subprocess.Popen(
                ["bash", str(SLURM)],
                env={**environment, "NAME": name},
                stdout=said,
                stderr=said,
                cwd=tmp_path,
            )
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        for pid in [*descendants(job.pid), *([job.pid] if job.poll() is None else [])]:
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_slurm_script_runs_a_study_on_two_nodes_ends_all_it_started_and_goes_on(
    tmp_path, slurm
):
    run = tmp_path / "runs" / "one"
    said = tmp_path / "said"
    port = 10000 + os.getpid() % 200 * 100

    # The time limit comes near: Slurm sends TERM to the script.
    job = slurm("one")
    wait_until(lambda: job.poll() is not None or len(log.read(run / log.HISTORY)) > 2, 240)
    assert job.poll() is None, said.read_text()
    assert probe(f"127.0.0.2:{port}", 1) is None
    token = tmp_path / "runs" / f".ray-token-{os.getpid()}"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    started = list(descendants(job.pid))
    job.terminate()
    assert job.wait(120) == 130, said.read_text()
    wait_until(lambda: not [pid for pid in started if Path(f"/proc/{pid}").exists()], 60)
    assert probe(f"127.0.0.2:{port}", 1) and not token.exists()
    assert "Go on with: tune-ssl search --resume one" in said.read_text()

    # Submitted again, it goes on, and ends with the study.
    job = slurm("one")
    assert job.wait(400) == 0, said.read_text()
    assert set(endings(run).values()) == {log.FINISHED} and len(endings(run)) == 3
    assert log.RESUMED in {event["event"] for event in events(run)}
    assert (run / "report" / "index.html").exists() and not token.exists()
    assert probe(f"127.0.0.2:{port}", 1)
