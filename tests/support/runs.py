"""Real searches for tests: a small study file, the command line in a process of its own, its records."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tune_ssl.cli import main as cli
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger

if TYPE_CHECKING:
    from tune_ssl.tuning.stream import JobStream

COMMAND = [sys.executable, "-m", "tune_ssl.cli.main"]
CONFIRMED = """
fixed:
  data: {dataset: digits, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  budget: {steps: 40, eval_every: 20}
conditions:
  data.num_labels: [20, 100]
search:
  optim.lr: {log_uniform: [3e-3, 3e-2]}
  method.labeled_view: {choice: [weak, none]}
study: {num_trials: 3, finalists: 2, finalist_seeds: [1001], seeds: [3, 4], scheduler: none}
"""


def write_study(folder: Path, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(body)
    return path


def run_here(
    folder: Path, body: str, name: str = "one", plugins: tuple[Path, ...] = (), dry: bool = False
) -> Path:
    """Search and confirm a study in this process, by the real stream of jobs, without Ray's cluster.

    A `dry` one only makes the run folder.
    """
    from tune_ssl.runs.folder import create
    from tune_ssl.runs.splits import check_data
    from tune_ssl.study.study import load_study
    from tune_ssl.tuning.run import open_run, searching
    from tune_ssl.tuning.stream import JobStream

    study = load_study(write_study(folder, body), plugins=plugins)
    stores = check_data(study)
    run = create(study, stores, folder / "runs", name, "tune-ssl search study.yaml")
    if not dry:
        context = open_run(run, study, stores, Ledger(), print)
        drive(JobStream(context, searching(context)))
    return run


def ablate_here(run: Path, dry: bool = False, **wanted: Any) -> list[str]:
    """Ablate a run of `run_here` in the same way; returns what the user is told. `dry`: plan only."""
    from tune_ssl.runs.folder import reopen
    from tune_ssl.runs.splits import check_data
    from tune_ssl.tuning.ablation import Planner, Wanted
    from tune_ssl.tuning.run import ablating, open_run
    from tune_ssl.tuning.stream import JobStream

    run, study = reopen(run.parent, run.name)
    told: list[str] = []
    context = open_run(run, study, check_data(study), Ledger.read(run), told.append)
    for row in Planner(run, study, context.ledger).rows(Wanted(**wanted), told.append):
        context.writer.event(row)
    if not dry:
        drive(JobStream(context, ablating(context)))
    return told


def drive(stream: JobStream, work: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Do the jobs of a stream one after another, as a worker of Ray's would."""
    from tune_ssl.tuning import worker

    class Over(BaseException):
        """The stream wants no more of a trial."""

    checkpoints = stream.context.run / "ray"
    with mock.patch.object(worker.tune, "get_checkpoint", lambda: None):
        while job := stream.next():

            def send(report: dict[str, Any], checkpoint: Any = None, job: Any = job) -> None:
                if checkpoint:
                    kept = checkpoints / "here" / job.trial
                    name = f"checkpoint_{len(list(kept.glob('*'))):06d}"
                    shutil.copytree(checkpoint.path, kept / name)
                if stream.report(job, log.plain(report)):
                    raise Over

            with mock.patch.object(worker, "_send", send), contextlib.suppress(Over):
                (work or worker.train_job)(job.to_config())
    shutil.rmtree(checkpoints, ignore_errors=True)
    if stream.stopped is not None:
        raise stream.stopped


def start(folder: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start `tune-ssl ARGUMENTS` in `folder`; its output is collected."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def events(run: Path) -> list[dict[str, Any]]:
    return log.read(run / log.TRIALS)


def endings(run: Path) -> dict[str, str]:
    """trial -> how it ended"""
    return {trial: e["event"] for trial, e in Ledger.glance(run).ended.items()}


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Until `condition` holds; fails at once, with its output, when `process` is over."""

    def holds() -> bool:
        held = condition()
        assert held or process.poll() is None, "\n".join(map(str, finish(process)))
        return held

    wait_until(holds)


def wait_until(condition: Callable[[], bool], timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the awaited state did not come"
        time.sleep(0.05)


@contextlib.contextmanager
def meanwhile(do: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block; what goes wrong in it is raised at the block's end."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(do)
        yield
    done.result()


def descendants(pid: int) -> Iterator[int]:
    """Process ids under `pid`."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            yield child
            waiting.append(child)


def kill_all(pids: Iterable[int]) -> None:
    """kill -9 of all of them at one moment."""
    victims = list(pids)
    for how in (signal.SIGSTOP, signal.SIGKILL):
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, how)


def trial_workers(pid: int) -> list[int]:
    """The Ray workers of driver `pid` that hold a trial."""
    found = []
    for child in descendants(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::ImplicitFunc"):  # the actor of a function trainable
            found.append(child)
    return found


def called(monkeypatch: Any, capsys: Any, *arguments: object) -> tuple[Any, str, str]:
    """The command line, in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["tune-ssl", *map(str, arguments)])
    try:
        cli.main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()
