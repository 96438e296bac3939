"""Small studies under random kills, and an accounting that trusts nothing of the run's own.

    python -m tests.soak --minutes 30 --seed 1

Each round draws a study, starts it, and kills -9 at random moments: a worker, all workers, the
driver, or everything at once as a power cut does. When the study is through, `account` compares its
run folder with what every worker wrote down itself (tests/support/witness.py).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.support.runs import COMMAND, descendants, events, kill_all, trial_workers
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports
from tune_ssl.runs.folder import reopen
from tune_ssl.runs.splits import check_data
from tune_ssl.tuning.run import open_run, searching
from tune_ssl.tuning.stream import JobStream

WITNESS = Path(__file__).parent / "support" / "witness.py"
TARGETS = ("worker", "workers", "driver", "power")


class Lost(AssertionError):
    """Finished work is gone, counted twice, or another number than the worker reported."""


def study_text(draw: random.Random) -> str:
    method = draw.choice(["supervised", "witnessed", "soft_kmeans", "fixmatch", "simclr"])
    every = draw.choice([5, 10])
    steps = draw.choice([40, 80])
    budget = f"{{pretrain: {steps}, finetune: {every}}}" if method == "simclr" else str(steps)
    conditions = draw.choice(["[40]", "[20, 60]"])
    return f"""
fixed:
  data: {{dataset: digits, batch_size: 16, mu: 2}}
  model: {{feature_dim: 32, hidden_dim: 32}}
  method: {{name: {method}}}
  budget: {{steps: {budget}, eval_every: {every}}}
conditions:
  data.num_labels: {conditions}
search:
  optim.lr: {{log_uniform: [3e-4, 3e-2]}}
study:
  num_trials: {draw.choice([3, 5])}
  searcher: {draw.choice(["optuna", "random"])}
  scheduler: {draw.choice(["asha", "median", "none"])}
  finalists: 2
  finalist_seeds: [1001]
  seeds: [0, 1]
  max_concurrent: {draw.choice([1, 2])}
  max_retries: 5
  checkpoint_seconds: {draw.choice([0, 0.5])}
"""


class Round:
    """One study: started, killed at random, resumed until it is through."""

    def __init__(self, folder: Path, draw: random.Random, most_kills: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.draw, self.most_kills = folder, draw, most_kills
        self.run = folder / "runs" / "soak"
        self.witness = folder / "witness.jsonl"
        self.study = folder / "study.yaml"
        self.study.write_text(study_text(draw))
        self.kills: Counter[str] = Counter()
        self.sessions = 0

    def play(self) -> None:
        while True:
            process = self.start()
            while process.poll() is None and self.kills.total() < self.most_kills:
                self.wait(process, self.draw.uniform(0.5, 14))
                if process.poll() is None and self.strike(process):
                    self.settle(process)
            if process.poll() is None:
                self.wait(process, 600)
            code = process.wait(timeout=30)
            if code == 0:
                return
            if code != -signal.SIGKILL:
                raise Lost(f"session {self.sessions} ended with {code}: {self.log().read_text()}")

    def start(self) -> subprocess.Popen[bytes]:
        self.sessions += 1
        begun = (self.run / log.STUDY).exists()
        plugin = ["--plugin", str(WITNESS)]
        asked = ["--resume", "soak"] if begun else [str(self.study), "--name", "soak", *plugin]
        if not begun and self.run.exists():  # killed between its folder and its study.yaml
            shutil.rmtree(self.run)
        environment = {**os.environ, "WITNESS": str(self.witness), "OMP_NUM_THREADS": "1"}
        with self.log().open("w") as out:
            return subprocess.Popen(
                [*COMMAND, "search", *asked, "--no-report"],
                cwd=self.folder,
                env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> Path:
        return self.folder / f"session{self.sessions}.log"

    def wait(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    def strike(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill -9 something now. False where there was nothing of the kind."""
        target = self.draw.choice(TARGETS)
        workers = trial_workers(process.pid)
        if target == "worker" and workers:
            victims = [self.draw.choice(workers)]
        elif target == "workers" and workers:
            victims = workers
        elif target == "driver":
            victims = [process.pid]
        elif target == "power":
            victims = [process.pid, *descendants(process.pid)]
        else:
            return False
        before = endings_by_line(self.run)
        kill_all(victims)
        self.kills[target] += 1
        after = endings_by_line(self.run)
        if after[: len(before)] != before:
            raise Lost("an ending on the disk changed with the kill")
        return True

    def settle(self, process: subprocess.Popen[bytes]) -> None:
        if self.kills.total() and process.poll() is None:
            self.wait(process, 0.3)


def endings_by_line(run: Path) -> list[dict[str, Any]]:
    if not (run / log.TRIALS).exists():
        return []
    return [e for e in events(run) if e["event"] in log.ENDINGS]


def account(run: Path, witness: Path) -> dict[str, int]:
    """Compare a finished run with the witness. Raises Lost; returns what was counted."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in witness.read_text().splitlines():
        if line.endswith("}"):
            record = json.loads(line)
            told[record["trial"]].append(record)
    all_events, (_, study) = events(run), reopen(run.parent, run.name)
    settings = study.settings

    # Every trial began, and ended once; nothing of it came after its ending, unless it failed and ran again, or was
    # stopped and had to be finished for want of finalists.
    ended: dict[str, dict[str, Any]] = {}
    begun: set[str] = set()
    for event in all_events:
        trial = event["trial"]
        if event["event"] in log.BEGINNINGS:
            before = ended.pop(trial, None)
            once_more = before and before["event"] == log.FAILED and before["phase"] != log.SEARCH
            late = before and before["event"] == log.STOPPED  # a finalist is trained to its end
            check(not before or once_more or late, f"{trial} was run again after its ending")
            begun.add(trial)
        elif event["event"] in log.ENDINGS:
            check(trial not in ended, f"{trial} ended twice")
            ended[trial] = event
    check(begun == set(ended), f"without an ending: {sorted(begun - set(ended))}")
    wanted = {
        f"c{i}-t{n:04d}" for i in range(len(study.conditions)) for n in range(settings.num_trials)
    }
    search = {t for t, e in ended.items() if e["phase"] == log.SEARCH}
    check(search == wanted, f"search trials {sorted(search ^ wanted)}")
    confirmed = {t for t, e in ended.items() if e["phase"] == log.CONFIRM}
    locks = [e for e in all_events if e["event"] == log.LOCKED]
    check(len(locks) == len({e["condition"] for e in locks}), "a condition was locked twice")
    check(len(confirmed) == len(locks) * len(settings.seeds), f"confirmed: {sorted(confirmed)}")
    for lock in locks:
        mine = [e for t, e in ended.items() if t in search and e["condition"] == lock["condition"]]
        check(any(e["event"] == log.FINISHED for e in mine), "locked without a finished trial")
        first_test = next(
            e for e in all_events if e["phase"] == log.CONFIRM and e["event"] in log.BEGINNINGS
        )
        check(all_events.index(locks[0]) < all_events.index(first_test), "test data before a lock")

    # What is recorded is what the worker said, to the last digit, every time it said it.
    history: dict[str, dict[tuple[str, int], Any]] = defaultdict(dict)
    lines = log.read(run / log.HISTORY)
    for line in latest_reports(lines):
        history[line["trial"]][line["stage"], line["step"]] = line["metrics"]
    repeated = 0
    for trial, reports in told.items():
        seen: dict[tuple[str, int], Any] = {}
        for report in (r for r in reports if r["metrics"]):
            key = report["stage"], report["step"]
            values = log.plain(report["metrics"])
            repeated += key in seen
            check(seen.setdefault(key, values) == values, f"{trial} {key} differs after a resume")
        if ended[trial]["event"] == log.FINISHED:
            check(history[trial] == seen, f"{trial}: its history is not what it reported")
            last = [r["result"] for r in reports if r["status"] == log.FINISHED]
            check(bool(last), f"{trial} is recorded as finished and never was")
            value = ended[trial]["value"]
            check(
                all(log.plain(r[settings.metric]) == value for r in last),
                f"{trial}: another value",
            )
    check(set(ended) <= set(told), "an ending of a trial that never reported")

    # A driver that takes it up again has nothing to do.
    context = open_run(run, study, check_data(study), Ledger.read(run), print)
    check(JobStream(context, searching(context)).over, "a resume would run something again")
    return {
        "trials": len(ended),
        "finished": sum(e["event"] == log.FINISHED for e in ended.values()),
        "failed": sum(e["event"] == log.FAILED for e in ended.values()),
        "resumed": sum(e["event"] == log.RESUMED for e in all_events),
        "reports": sum(map(len, history.values())),
        "reports repeated by workers": repeated,
        "history lines twice": len(lines) - sum(map(len, history.values())),
    }


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Lost(otherwise)


def soak(folder: Path, minutes: float, seed: int, most_kills: int = 6) -> Counter[str]:
    """Rounds for so many minutes; the sums of everything counted. Raises Lost at the first wrong."""
    logging.getLogger("optuna").setLevel(logging.ERROR)
    draw, total = random.Random(seed), Counter[str]()
    end, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        number += 1
        this = Round(folder / f"round{number:03d}", draw, draw.randint(1, most_kills))
        this.play()
        counted = account(this.run, this.witness)
        total.update(counted)
        total.update({f"killed: {target}": count for target, count in this.kills.items()})
        # Were anything lost or counted twice, `account` would have raised it.
        total.update({"studies": 1, "sessions": this.sessions, "lost": 0, "doubled": 0})
        print(
            f"round {number}: {dict(this.kills)} in {this.sessions} sessions; {counted}", flush=True
        )
        shutil.rmtree(this.folder)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="tune-ssl-soak-"))
    os.environ.setdefault("TUNE_SSL_CACHE", str(folder / "cache"))
    print(f"in {folder}", flush=True)
    for what, count in sorted(soak(folder, given.minutes, given.seed).items()):
        print(f"{what}: {count}")


if __name__ == "__main__":
    main()
