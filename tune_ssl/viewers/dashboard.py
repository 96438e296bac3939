"""`tune-ssl dashboard`: optuna-dashboard on a run's Optuna studies, which it can read and not change.

The dashboard would write notes, names and user attributes into the storage. A run's driver is the
only one that writes there, so that requests which change anything are refused here, and the storage
refuses them once more. Reading needs no lock: it shows a run while it goes on.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tune_ssl.base.errors import UserError

Tell = Callable[[str], None]

READING = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("127.", "localhost")
LOCAL = ("127.0.0.1", "localhost", "::1")  # names by which this machine is asked for itself
FOREIGN = "a dashboard on this machine answers to localhost alone"


def serve(run: Path, host: str, port: int, tell: Tell) -> None:
    """Serve until the process is interrupted; `tell` gets the URL once it answers.

    Raises:
        UserError: optuna-dashboard is not installed, the run has no Optuna studies, or the address
            cannot be used.
    """
    if find_spec("optuna_dashboard") is None:
        text = "the package optuna-dashboard is not installed; pip install 'tune-ssl[dashboard]'"
        raise UserError(text)
    if not host:
        raise UserError("--host is '', but must be an address of this machine, such as 127.0.0.1")
    app = read_only(application(run), {*LOCAL, host} if host.startswith(LOOPBACK) else ())
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


def application(run: Path) -> Any:
    """optuna-dashboard as a WSGI application. UserError if the run has no Optuna studies."""
    from tune_ssl.search.storage import open_reading

    storage = open_reading(run)
    from optuna_dashboard import wsgi

    return wsgi(storage)


def read_only(
    app: Callable[..., Iterable[bytes]], hosts: Collection[str] = ()
) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers 403 to every request that is not one for reading.

    And, where `hosts` are given, to one for another host: a page of the web whose name was made to lead
    to this machine would else read the run through its reader's browser.
    """

    from tune_ssl.search.readonly import REFUSAL

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
