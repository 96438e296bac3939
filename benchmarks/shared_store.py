"""What a second concurrent trial costs in memory: peak of all trial workers, with one and with two.

Proportional set size (PSS) counts a page that two workers share half to each, so that the sum over
workers is what they take together. The dataset's own size says what a private copy would cost.

    python -m benchmarks.shared_store data.dataset=folder data.root=FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.runs import trial_workers

STUDY = """
fixed:
  data: {dataset: digits}
  method: {name: soft_kmeans}
  budget: {steps: 60, eval_every: 20}
conditions:
  data.labeled_ratio: [0.1]
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
study: {num_trials: 2, scheduler: none, seeds: [0]}
"""


def pss(pid: int) -> tuple[int, int]:
    """(all, of files) in bytes; zeros for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes["Pss"], sizes.get("Pss_File", 0)


def peak(folder: Path, concurrent: int, overrides: list[str]) -> tuple[int, int]:
    """Largest (PSS, PSS of files) over all trial workers of one search."""
    (folder / "study.yaml").write_text(STUDY)
    limit = f"study.max_concurrent={concurrent}"
    command = [sys.executable, "-m", "tune_ssl.cli.main", "search", "study.yaml", limit, *overrides]
    search = subprocess.Popen(
        [*command, "--no-confirm", "--no-report", "--name", f"with-{concurrent}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    highest = (0, 0)
    while search.poll() is None:
        sizes = [pss(pid) for pid in trial_workers(search.pid)]
        highest = max(highest, (sum(s[0] for s in sizes), sum(s[1] for s in sizes)))
        time.sleep(0.1)
    if search.returncode:
        sys.exit(search.returncode)
    return highest


def main() -> None:
    overrides = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        one, files_one = peak(Path(folder), 1, overrides)
        two, files_two = peak(Path(folder), 2, overrides)
    mib = 1 << 20
    print(
        f"one trial             {one / mib:8.0f} MiB, of which mapped files {files_one / mib:6.0f}"
    )
    print(
        f"two trials at once    {two / mib:8.0f} MiB, of which mapped files {files_two / mib:6.0f}"
    )
    print(f"the second one costs  {(two - one) / mib:8.0f} MiB")


if __name__ == "__main__":
    main()
