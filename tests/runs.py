"""Real searches for tests: a small study file, the command line in a process of its own, its records."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna

from tune_ssl import cli, records
from tune_ssl.searcher import open_storage

COMMAND = [sys.executable, "-m", "tune_ssl.cli"]


def write_study(folder: Path, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(body)
    return path


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
    return records.read(run / records.TRIALS)


def endings(run: Path) -> dict[str, str]:
    """trial -> how it ended"""
    return {trial: e["event"] for trial, e in records.endings(events(run)).items()}


def optuna_states(run: Path) -> dict[str, list[str]]:
    """condition -> the states of its Optuna trials, by number"""
    storage = open_storage(run)
    return {
        s.study_name: [
            t.state.name
            for t in optuna.load_study(study_name=s.study_name, storage=storage).get_trials(
                deepcopy=False
            )
        ]
        for s in optuna.get_all_study_summaries(storage)
    }


def wait_for(
    process: subprocess.Popen[str], condition: Callable[[], bool], timeout: float = 120
) -> None:
    """Until `condition` holds; fails at once, with its output, when `process` is over."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, "\n".join(map(str, finish(process)))
        assert time.monotonic() < end, "the awaited state did not come"
        time.sleep(0.05)


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
