"""`tune-ssl dashboard`: optuna-dashboard on a copy of a run's studies, made from its records and kept up to date.

The run's records are the only truth: nothing that somebody does in the dashboard could reach them. Requests
that change anything are refused, so that nobody takes a note for kept. Reading needs no lock: it shows a run
while it goes on.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.secrets import redact
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.study.study import Study

Tell = Callable[[str], None]

READING = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("127.", "localhost")
LOCAL = ("127.0.0.1", "localhost", "::1")  # names by which this machine is asked for itself
REFUSAL = "tune-ssl shows a run's studies and lets nobody change them"
PAUSE = 2.0  # seconds between two readings of a run that goes on; longer where one takes long
FOREIGN = "a dashboard on this machine answers to localhost alone"


def serve(run: Path, study: Study, host: str, port: int, tell: Tell) -> None:
    """Serve until the process is interrupted; `tell` gets the URL once it answers.

    Raises:
        UserError: optuna-dashboard is not installed, or the address cannot be used.
    """
    if find_spec("optuna_dashboard") is None:
        text = "the package optuna-dashboard is not installed; pip install 'tune-ssl[dashboard]'"
        raise UserError(text)
    if not host:
        raise UserError("--host is '', but must be an address of this machine, such as 127.0.0.1")
    app = read_only(
        LiveApplication(run, study), {*LOCAL, host} if host.startswith(LOOPBACK) else ()
    )
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"{host}:{port} cannot be listened on: {reason}; --port gives another one"
        raise UserError(text) from None
    with server:
        tell(f"{run}: http://{host}:{server.server_port}/ (Ctrl-C ends it)")
        if not host.startswith(LOOPBACK):
            tell(f"everybody who can reach {host} can read this run")
        server.serve_forever()


class LiveApplication:
    """optuna-dashboard as a WSGI application, on studies that are read again where the records have grown."""

    def __init__(self, run: Path, study: Study) -> None:
        self.run, self.study, self.lock = run, study, threading.Lock()
        self.sizes: list[int] = []
        self.again = 0.0  # when the records may be read again
        self.app: Any = None
        self.refresh()

    def refresh(self) -> None:
        with self.lock:
            began = time.monotonic()
            paths = [self.run / name for name in (log.TRIALS, log.HISTORY)]
            sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
            if self.app is not None and (sizes == self.sizes or began < self.again):
                return
            from optuna.storages import InMemoryStorage
            from optuna_dashboard import wsgi

            from tune_ssl.search.rebuild import write_studies

            storage = InMemoryStorage()
            write_studies(self.run, self.study, Ledger.glance(self.run), storage)
            self.app, self.sizes = wsgi(storage), sizes
            took = time.monotonic() - began
            self.again = time.monotonic() + max(PAUSE, 5 * took)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.refresh()
        answer: Iterable[bytes] = self.app(environ, start)
        return answer


def write(run: Path, study: Study, url: str) -> list[str]:
    """Leave a run's studies in an Optuna storage for other tools; returns their names.

    UserError for a URL that Optuna cannot use, or a storage that has studies of this run's name.
    """
    import optuna

    from tune_ssl.search.rebuild import write_studies

    try:
        storage = optuna.storages.get_storage(url)
        return write_studies(run, study, Ledger.glance(run), storage, f"{run.name} ")
    except UserError:
        raise
    except Exception as error:  # of any database and its driver
        text = f"cannot be written: {redact(first_line(error))}"
        raise UserError(Problem(text, "--write", redact(url))) from None


def read_only(
    app: Callable[..., Iterable[bytes]], hosts: Collection[str] = ()
) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers 403 to every request that is not one for reading.

    And, where `hosts` are given, to one for another host: a page of the web whose name was made to lead
    to this machine would else read the run through its reader's browser.
    """

    def checked(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        foreign = hosts and host_of(environ.get("HTTP_HOST", "")) not in hosts
        if environ["REQUEST_METHOD"] in READING and not foreign:
            return app(environ, start)
        body = json.dumps({"reason": FOREIGN if foreign else REFUSAL}).encode()
        length = ("Content-Length", str(len(body)))
        start("403 Forbidden", [("Content-Type", "application/json"), length])
        return [body]

    return checked


def host_of(header: str) -> str:
    """The name in a Host header, without its port.

    >>> host_of("localhost:8080"), host_of("[::1]:8080")
    ('localhost', '::1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # an open connection does not keep the process

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().server_bind()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: one line per request helps nobody."""
