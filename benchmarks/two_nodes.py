"""A search over two Ray nodes, undisturbed and with one of them killed: trials, results, seconds.

    python -m benchmarks.two_nodes

Real Ray nodes on loopback addresses, one CPU each. The study's searcher is random, so that both runs
draw the same configs, and training on a CPU is deterministic: every value must be the same.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.cluster import LocalCluster, local_cluster
from tests.support.runs import COMMAND, events, trial_workers, wait_for
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 16}
  model: {feature_dim: 64, hidden_dim: 64}
  method: {name: soft_kmeans}
  budget: {steps: 300, eval_every: 20}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study:
  {num_trials: 8, searcher: random, scheduler: none, finalists: 2, finalist_seeds: [1001], seeds: [0, 1],
   checkpoint_seconds: 0}
"""


def search(folder: Path, cluster: LocalCluster, name: str, kill: bool) -> dict[str, Any]:
    """One search through --address; with `kill` the second node dies in the middle of a trial."""
    study = folder / "study.yaml"
    study.write_text(STUDY)
    run, output = folder / "runs" / name, folder / f"{name}.log"
    began = time.monotonic()
    with output.open("w") as out:
        process = subprocess.Popen(
            [
                *COMMAND,
                "search",
                str(study),
                "--name",
                name,
                "--address",
                cluster.address,
                "--no-report",
            ],
            cwd=folder,
            env={**cluster.environment, "PYTHONPATH": os.getcwd(), "COLUMNS": "120"},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if kill:
        node = cluster.nodes[1].pid
        wait_for(process, lambda: len(history(run)) >= 20 and bool(trial_workers(node)))
        cluster.kill_node(1)
    code = process.wait(timeout=900)
    assert code == 0, output.read_text()
    ended = Ledger(events(run)).ended
    return {
        "seconds": time.monotonic() - began,
        "values": {trial: e["value"] for trial, e in ended.items()},
        "endings": Counter(e["event"] for e in ended.values()),
        "ending lines": sum(e["event"] in log.ENDINGS for e in events(run)),
        "resumed": sum(e["event"] == log.RESUMED for e in events(run)),
        "reports": len(latest_reports(history(run))),
        "history lines": len(history(run)),
        "log": output.read_text(),
    }


def history(run: Path) -> list[dict[str, Any]]:
    return log.read(run / log.HISTORY)


def both(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(undisturbed, with a node killed)"""
    with local_cluster(folder / "cluster", nodes=2) as cluster:
        calm = search(folder, cluster, "calm", kill=False)
        return calm, search(folder, cluster, "killed", kill=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tune-ssl-nodes-") as folder:
        os.environ.setdefault("TUNE_SSL_CACHE", str(Path(folder) / "cache"))
        calm, killed = both(Path(folder))
    print(f"{'':28}{'undisturbed':>14}{'a node killed':>16}")
    for key in ("endings", "ending lines", "resumed", "reports", "history lines", "seconds"):
        shown = [
            f"{r[key]:.1f}"
            if key == "seconds"
            else str(dict(r[key]) if key == "endings" else r[key])
            for r in (calm, killed)
        ]
        print(f"{key:28}{shown[0]:>14}{shown[1]:>16}")
    same = sum(killed["values"].get(trial) == value for trial, value in calm["values"].items())
    print(
        f"equal values: {same} of {len(calm['values'])}; seconds lost: {killed['seconds'] - calm['seconds']:.1f}"
    )
    print(killed["log"])


if __name__ == "__main__":
    main()
