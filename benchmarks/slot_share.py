"""How much of a search's slots trains, and what comes before and after: `python -m benchmarks.slot_share`.

Runs one whole command in an empty cache, as a user would, and reads the run folder that it leaves:

- the share of slot-seconds spent training: the seconds of all trials, less what they waited for another's
  pretraining, over slots x wall (of the whole command, and from the first trial's start to the last one's end);
- CPU and wall seconds from the command to the first trial's first step, and from the last trial's end to the prompt.

CPU is that of the command and of all processes below it, read from /proc five times a second.

    python -m benchmarks.slot_share search search_spaces/simclr.yaml
    python -m benchmarks.slot_share --root ../older-checkout search search_spaces/supervised.yaml study.num_trials=6
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
ENDINGS = ("finished", "stopped_early", "diverged", "collapsed", "failed")


class Meter:
    """CPU seconds of a process and all below it, over time; what has ended still counts."""

    def __init__(self, pid: int) -> None:
        self.pid, self.seen = pid, {pid}
        self.used: dict[int, float] = {}
        self.samples: list[tuple[float, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while not self.over.wait(0.2):
            self.look()

    def look(self) -> None:
        parents: dict[int, int] = {}
        used: dict[int, float] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(stat.parent.name)
            parents[pid] = int(fields[1])
            used[pid] = (int(fields[11]) + int(fields[12])) / TICK
        fresh = True
        while fresh:  # a grandchild may be listed before its parent
            found = {pid for pid, parent in parents.items() if parent in self.seen} - self.seen
            self.seen |= found
            fresh = bool(found)
        self.used |= {pid: seconds for pid, seconds in used.items() if pid in self.seen}
        self.samples.append((time.time(), sum(self.used.values())))

    def at(self, moment: float) -> float:
        place = bisect.bisect_left(self.samples, (moment, 0.0))
        return self.samples[min(place, len(self.samples) - 1)][1]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(root: Path, arguments: list[str], slots: int) -> dict[str, float]:
    """Run `tune-ssl ARGUMENTS` of the checkout `root` in an empty folder; its figures."""
    with tempfile.TemporaryDirectory(prefix="tune-ssl-slots-") as name:
        folder = Path(name)
        paths = [str((root / a).resolve()) if a.endswith(".yaml") else a for a in arguments]
        environment = {
            **os.environ,
            "TUNE_SSL_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(root),
        }
        environment["TUNE_SSL_WAIT_LOG"] = str(folder / "waits")
        began = time.time()
        command = [sys.executable, "-m", "tune_ssl.cli", *paths, "--name", "measured"]
        process = subprocess.Popen(command, cwd=folder, env=environment)
        meter = Meter(process.pid)
        code = process.wait()
        over = time.time()
        meter.over.set()
        meter.thread.join()
        assert code == 0, code
        events = lines(folder / "runs" / "measured" / "trials.jsonl")
        reports = lines(folder / "runs" / "measured" / "history.jsonl")
        page = folder / "runs" / "measured" / "report" / "index.html"
        size = page.stat().st_size if page.exists() else 0
        waits = folder / "waits"
        waited = sum(map(float, waits.read_text().split())) if waits.exists() else 0.0
    starts = [e for e in events if e["event"] == "started"]
    ends = [e for e in events if e["event"] in ENDINGS]
    waited += sum(e.get("waited") or 0.0 for e in ends)
    seconds = sum(e["seconds"] or 0.0 for e in ends)
    first_step = min(r["time"] - r["seconds"] for r in reports)
    first, last = starts[0]["time"], ends[-1]["time"]
    return {
        "trials": len(ends),
        "wall": over - began,
        "cpu": meter.samples[-1][1],
        "trial seconds": seconds,
        "waited": waited,
        "share of the command": (seconds - waited) / slots / (over - began),
        "share while trials ran": (seconds - waited) / slots / (last - first),
        "wall to the first step": first_step - began,
        "cpu to the first step": meter.at(first_step),
        "wall after the last trial": over - last,
        "cpu after the last trial": meter.samples[-1][1] - meter.at(last),
        "page MB": size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--slots", type=int, default=os.cpu_count())
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    figures = measure(asked.root.resolve(), asked.arguments, asked.slots)
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
