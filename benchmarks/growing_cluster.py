"""Trials at once, over time, while a cluster grows and shrinks: `python -m benchmarks.growing_cluster [--from-zero]`.

Real Ray nodes on loopback addresses. A search begins on a head of one CPU; a node of three joins in the middle,
and is killed later. With --from-zero the head has no CPU, and the search begins before there is any node.
What counts as running is what the records say: from a trial's first second of training to its last.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.cluster import LocalCluster, local_cluster
from tests.support.runs import COMMAND, events
from tune_ssl.records import log

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 16}
  model: {feature_dim: 64, hidden_dim: 64}
  method: {name: soft_kmeans}
  budget: {steps: 150, eval_every: 25}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 40, searcher: random, scheduler: none, finalists: 1, seeds: [0], checkpoint_seconds: 0}
"""


def start(folder: Path, cluster: LocalCluster) -> subprocess.Popen[bytes]:
    (folder / "study.yaml").write_text(STUDY)
    arguments = ["search", "study.yaml", "--name", "r", "--no-report", "--no-confirm"]
    with (folder / "out").open("w") as out:
        return subprocess.Popen(
            [*COMMAND, *arguments, "--address", cluster.address],
            cwd=folder,
            env={**cluster.environment, "PYTHONPATH": os.getcwd(), "COLUMNS": "120"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def spans(run: Path) -> list[tuple[float, float, str]]:
    """(beginning, end, how it ended) of the training of each trial."""
    ends = [e for e in events(run) if e["event"] in log.ENDINGS]
    return [(e["time"] - (e["seconds"] or 0.0), e["time"], e["event"]) for e in ends]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from-zero", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tune-ssl-growing-") as name:
        folder = Path(name)
        os.environ.setdefault("TUNE_SSL_CACHE", str(folder / "cache"))
        marks: list[tuple[float, str]] = []
        with local_cluster(folder / "cluster", cpus=0 if asked.from_zero else 1) as cluster:
            process, run = start(folder, cluster), folder / "runs" / "r"
            marks.append((time.time(), "the command"))
            if asked.from_zero:
                time.sleep(20)
            else:
                while len(spans(run) if run.exists() else ()) < 3:
                    assert process.poll() is None, (folder / "out").read_text()
                    time.sleep(0.5)
            node = cluster.add_node(cpus=3)
            marks.append((time.time(), "a node of 3 CPUs has joined"))
            time.sleep(30 if not asked.from_zero else 0)
            if not asked.from_zero:
                cluster.kill_node(node)
                marks.append((time.time(), "that node is killed"))
            code = process.wait(timeout=900)
        print((folder / "out").read_text())
        assert code == 0
        found = spans(run)
    began = marks[0][0]
    for moment, what in marks:
        print(f"{moment - began:5.0f} s: {what}")
    last = max(end for _, end, _ in found)
    print("seconds since the command: trials at once")
    for second in range(0, int(last - began) + 1, 2):
        at_once = sum(a <= began + second < b for a, b, _ in found)
        print(f"{second:5} s: {'#' * at_once} {at_once}")


if __name__ == "__main__":
    main()
