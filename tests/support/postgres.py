"""A PostgreSQL server of the tests' own: a temporary folder, a free port, an unprivileged user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

USER, PASSWORD = "tune", "p%ss/w:rd{1}"  # what a URL has to quote, and what Optuna would fill in
QUOTED = "p%25ss%2Fw%3Ard%7B1%7D"


def programs() -> Path | None:
    """The folder of initdb and postgres, the newest ones."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3].zfill(3)
    )
    initdb = found[-1] if found else shutil.which("initdb")
    return Path(initdb).parent if initdb else None


class Server:
    """A server that can be stopped, killed and started again; `url(database)` for tune-ssl."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries, self.port = folder, binaries, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.user: dict[str, object] = {}
        if os.geteuid() == 0:  # postgres refuses to run as root
            import pwd

            names = [entry.pw_name for entry in pwd.getpwall()]
            entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = ["initdb", "-D", "data", "-U", USER, "--pwfile=secret", "-A", "scram-sha-256"]
        self._run(*command, "-E", "UTF8", "--no-locale")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            check=True,
            capture_output=True,
            **self.user,  # type: ignore[call-overload]
        )

    def start(self) -> None:
        options = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1"]
        options += ["-c", f"unix_socket_directories={self.folder}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", "data", *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self.user,  # type: ignore[call-overload]
            )
        end = time.monotonic() + 60
        while not self._answers():
            log_text = (self.folder / "log").read_text(errors="replace")
            assert self.process.poll() is None and time.monotonic() < end, log_text
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: rolls back what is open and ends; SIGQUIT: like a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def dsn(self, database: str) -> str:
        return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{self.port}/{database}"

    def url(self, database: str) -> str:
        """A new, empty database's URL."""
        self.query(f'CREATE DATABASE "{database}"')
        return self.dsn(database)

    def query(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def free_port(first: int = 26000) -> int:
    """A port of the loopback on which nobody listens."""
    for port in range(first, first + 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port from {first} on is free")


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server; the test is skipped where PostgreSQL or psycopg is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if (binaries := programs()) is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    folder = Path(tempfile.mkdtemp(prefix="tune-ssl-pg-"))
    running = Server(folder, binaries)
    try:
        running.start()
        yield running
    finally:
        running.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
