"""What every test shares: a data cache of its own, and one thread."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy and torch read it: on several threads small work takes twice the CPU time.
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("here", deadline=None)  # timing is never a test
settings.load_profile("here")

if "TUNE_SSL_CACHE" not in os.environ:
    os.environ["TUNE_SSL_CACHE"] = tempfile.mkdtemp(prefix="tune-ssl-test-cache-")
    atexit.register(shutil.rmtree, os.environ["TUNE_SSL_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/one: a small supervised study on digits, searched and confirmed. Nobody writes into it."""
    from tests.support.runs import CONFIRMED, run_here

    return run_here(tmp_path_factory.mktemp("confirmed"), CONFIRMED)


@pytest.fixture
def command(
    confirmed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """`command("best", "one")` -> exit code, stdout, stderr; in a folder where runs/one is a copy of `confirmed`."""
    from tests.support.runs import called

    shutil.copytree(confirmed, tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *arguments: called(monkeypatch, capsys, *arguments)
