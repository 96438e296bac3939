"""`tune-ssl watch`: a page on this machine that shows a run while it goes on, and after it.

It reads the run folder and never writes into it: the report is built in a folder of its own, which is deleted at
the end. Nothing is worked out unless a page asks. A run under a URL is copied, and the copy is brought up to date.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tune_ssl.base.errors import UserError, first_line
from tune_ssl.runs.folder import find_run
from tune_ssl.runs.lock import in_use
from tune_ssl.storage.fetch import update_from_copy
from tune_ssl.storage.mirror import driver, refuse_driven
from tune_ssl.storage.places import Place, is_url, place_of, reason
from tune_ssl.study.study import check_name
from tune_ssl.viewers.dashboard import LOCAL, LOOPBACK, host_of
from tune_ssl.viewers.live import BROKEN, GONE, RUNNING, WAITING, LiveRun

Tell = Callable[[str], None]

PAUSE = 1.0  # seconds between two readings of the records; longer where one takes long
BUILD_PAUSE = 20.0  # seconds between two reports; longer where one takes long
COPY_PAUSE = 15.0  # seconds between two looks at a copy under a URL; longer where one takes long
WATCHED = 90.0  # seconds without a question after which nobody watches, and no report is built
LONGEST_BUILD = 1800.0  # seconds
NICE = 10  # of the report's process: it gives way to trials
EVERY_ADDRESS = ("0.0.0.0", "::")
REFUSED = "tune-ssl watch shows a run and lets nobody change it\n"
NOTHING_YET = "no trial has begun yet"
FOREIGN = "tune-ssl watch answers to the name of its own address alone\n"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' '{script}'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (  # the report's page brings its scripts with it, and asks for nothing
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
SHARED_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(name: str, runs: Path, host: str, port: int, tell: Tell) -> None:
    """Serve until the process is interrupted; `tell` gets the address once it answers.

    Raises:
        UserError: no such run, or an address that cannot be used.
    """
    if not host:
        raise UserError("--host is '', but must be an address of this machine, such as 127.0.0.1")
    try:
        server = _Server((host, port), _Handler)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        option = "--host" if isinstance(error, socket.gaierror) else "--port"
        text = f"{host}:{port} cannot be listened on: {why}; {option} gives another one"
        raise UserError(text) from None
    with server, tempfile.TemporaryDirectory(prefix="tune-ssl-watch-") as own:
        folder = Path(own)
        copy = Copy(place_of(name), folder / "copy") if is_url(name) else None
        run = copy.run if copy else find_run(runs, name)
        watch = Watch(run, folder / "report", copy)
        server.hosts = () if host in EVERY_ADDRESS else {*LOCAL, host.lower()}
        server.watch = watch
        tell(f"watch: http://{host}:{server.server_port}/ (Ctrl-C ends it; it changes nothing)")
        if not host.startswith(LOOPBACK):
            tell(f"everybody who can reach {host} can read this run")
        try:
            watch.start()
            server.serve_forever()
        finally:
            watch.close()


class Copy:
    """A run under a URL, in a folder of this machine. UserError where there is none."""

    def __init__(self, place: Place, folder: Path) -> None:
        name = place.path.rpartition("/")[2]
        check_name(name)
        self.place, self.run = place, folder / name
        self.named = f"{name} --storage {shlex.quote(place.url.rpartition('/')[0])}"
        self.problem, self.took = "", 0.0
        self.running: bool | None = None
        self.update()
        if self.problem:
            raise UserError(self.problem)

    def update(self) -> None:
        """Bring the folder up to date; what is wrong becomes `problem`."""
        began = time.monotonic()
        try:
            update_from_copy(self.place, self.run)
            self.running = self._driven()
            self.problem, self.copied = "", time.time()
        except UserError as error:
            self.problem = str(error.problems[0])
        except Exception as error:  # of any file system
            self.problem = f"{self.place.url} cannot be copied: {reason(error)}"
        self.took = time.monotonic() - began

    def _driven(self) -> bool | None:
        """Whether its driver's heartbeat is fresh."""
        try:
            if driver(self.place) is None:
                return False
            refuse_driven(self.place)
        except UserError:
            return True
        except OSError:
            return None
        return False

    def in_plain(self) -> dict[str, Any]:
        return {"url": self.place.url, "copied": round(self.copied), "problem": self.problem}


class Watch:
    """What the server shows: the run's state, and its report. It works while somebody asks, and rests else."""

    def __init__(self, run: Path, reports: Path, copy: Copy | None = None) -> None:
        self.copy = copy
        driven = (lambda: copy.running) if copy else (lambda: in_use(run))
        self.live = LiveRun(run, driven, copy.named if copy else "")
        self.report = Report(run, reports, copy.place.url if copy else "")
        self.server = uuid.uuid4().hex[:12]
        self.lock = threading.Lock()
        self.again = 0.0
        self.revision, self.body = 0, b""
        self.shown: dict[str, Any] = {}
        self.asked = float("-inf")  # when a page last asked
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._build, daemon=True)]
        if copy:
            self.threads.append(threading.Thread(target=self._update, daemon=True))

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.over.set()
        self.report.stop()
        for thread in self.threads:
            thread.join(5)

    def state(self) -> tuple[bytes, str]:
        """The state as JSON, and its tag: another one only where the state is another one."""
        with self.lock:
            self.asked = began = time.monotonic()
            if began >= self.again:
                state = {
                    **self.live.state(),
                    "report": self.report.in_plain(),
                    "source": self.copy and self.copy.in_plain(),
                }
                if state != self.shown:
                    self.shown, self.revision = state, self.revision + 1
                    told = {"server": self.server, "revision": self.revision, **state}
                    self.body = json.dumps(told, allow_nan=False).encode()
                took = time.monotonic() - began
                self.again = began + max(PAUSE, 10 * took)
            return self.body, f'"{self.server}-{self.revision}"'

    def _build(self) -> None:
        """Builds the report where the records have changed, now and then, and at once when the run has ended."""
        built: Any = None
        next_at, was_driven = float("-inf"), False
        while not self.over.wait(0.5):
            state = self.shown.get("state")
            if state in (None, GONE, BROKEN) or time.monotonic() - self.asked > WATCHED:
                continue
            driven = state in (RUNNING, WAITING)
            if was_driven and not driven:
                next_at = float("-inf")
            was_driven = driven
            if not self.live.ledger.begun:
                self.report.problem = NOTHING_YET
                continue
            sizes = self.live.sizes()
            if sizes == built or time.monotonic() < next_at:
                continue
            began = time.monotonic()
            self.report.build()
            built, took = sizes, time.monotonic() - began
            next_at = time.monotonic() + max(BUILD_PAUSE, 10 * took)

    def _update(self) -> None:
        assert self.copy is not None
        while not self.over.wait(max(COPY_PAUSE, 5 * self.copy.took)):
            if time.monotonic() - self.asked <= WATCHED:
                self.copy.update()


class Report:
    """The run's report, built by a process of its own in a folder of its own."""

    def __init__(self, run: Path, folder: Path, home: str = "") -> None:
        self.run, self.folder, self.home = run, folder, home
        self.count, self.made, self.problem, self.building = 0, 0.0, "", False
        self.page: Path | None = None
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self.stopped = False

    def in_plain(self) -> dict[str, Any]:
        return {
            "build": self.count,
            "made": round(self.made),
            "building": self.building,
            "problem": self.problem,
        }

    def build(self) -> None:
        """Build it, and put it in the place of the one before. What goes wrong becomes `problem`."""
        target = self.folder / str(time.monotonic_ns())
        began = time.time()
        self.building = True
        try:
            try:
                problem = self._run(target)
            except OSError as error:  # no memory, too many files
                problem = first_line(error)
            if problem:
                self.problem = problem
                shutil.rmtree(target, ignore_errors=True)
                return
            before, self.page = self.page, target / "index.html"
            self.problem, self.made, self.count = "", began, self.count + 1
            if before:
                shutil.rmtree(before.parent, ignore_errors=True)
        finally:
            self.building = False

    def _run(self, target: Path) -> str:
        """What is wrong, as one line; empty if nothing is."""
        command = [sys.executable, "-P", "-m", "tune_ssl.cli", "report", str(self.run), "--out"]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        streams: dict[str, Any] = {"stdin": quiet, "stdout": quiet, "stderr": pipe, "text": True}
        with self.lock:
            if self.stopped:
                return "the server ends"
            self.process = process = subprocess.Popen(
                [*command, str(target), "--format", "", "--home", self.home],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the server, which ends it
                **streams,
            )
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        try:
            _, errors = process.communicate(timeout=LONGEST_BUILD)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it took longer than {LONGEST_BUILD / 60:.0f} minutes"
        if process.returncode == 0:
            return ""
        lines = [line for line in errors.strip().splitlines() if line.strip()]
        if not lines:
            return f"its process ended with {process.returncode}"
        return f"an error in tune-ssl: {lines[-1]}" if "Traceback (" in errors else lines[-1]

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            if self.process is not None and self.process.poll() is None:
                self.process.kill()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # an open connection does not keep the process
    watch: Watch
    hosts: Any = ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing of a page that was closed; one line of anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tune-ssl", ""
    timeout = 60.0  # seconds that a connection may be silent
    server: _Server

    def do_GET(self) -> None:
        if self.server.watch.over.is_set():
            self.close_connection = True  # no answer on a connection that outlives the server
            return
        if self.server.hosts and host_of(self.headers.get("Host", "")) not in self.server.hosts:
            self.close_connection = True
            return self._text(403, FOREIGN)
        path, watch = urlsplit(self.path).path, self.server.watch
        if path == "/":
            return self._send(200, "text/html; charset=utf-8", page(), policy=page_policy())
        if path == "/live.json":
            body, tag = watch.state()
            return self._send(200, "application/json", body, tag=tag)
        if path == "/report/":
            try:
                body = watch.report.page.read_bytes() if watch.report.page else b""
            except OSError:  # the next one has just taken its place
                body = b""
            if body:
                return self._send(200, "text/html; charset=utf-8", body, policy=REPORT_POLICY)
        if path == "/plotly.js":
            return self._plotly()
        return self._text(404, "there is no such page\n")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # what it sends is not read
        self._text(405, REFUSED, {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _plotly(self) -> None:
        found = plotly_script()
        if found is None:
            return self._text(404, "the package plotly is not installed\n")
        packed, tag = found
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            own = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            return self._send(200, "text/javascript", packed, tag=tag, more=own)
        return self._send(200, "text/javascript", gzip.decompress(packed))

    def _text(self, status: int, text: str, more: dict[str, str] | None = None) -> None:
        self._send(status, "text/plain; charset=utf-8", text.encode(), more=more)

    def _send(
        self,
        status: int,
        kind: str,
        body: bytes,
        *,
        tag: str = "",
        policy: str = "default-src 'none'; frame-ancestors 'none'",
        more: dict[str, str] | None = None,
    ) -> None:
        known = tag and self.headers.get("If-None-Match") == tag
        self.send_response(304 if known else status)
        headers = {**SHARED_HEADERS, "Content-Security-Policy": policy, **(more or {})}
        headers["Cache-Control"] = "no-cache" if tag else "no-store"
        if tag:
            headers["ETag"] = tag
        if not known:
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not known and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: one line per request helps nobody."""


@cache
def plotly_script() -> tuple[bytes, str] | None:
    """(plotly.js as gzip, its tag), as the package brings it; None where it is not installed."""
    package = find_spec("plotly")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "package_data" / "plotly.min.js"
    if not path.exists():
        return None
    script = path.read_bytes()
    return gzip.compress(script, 4), f'"{hashlib.sha256(script).hexdigest()[:16]}"'


def page() -> bytes:
    return (Path(__file__).parent / "templates" / "watch.html").read_bytes()


def page_policy() -> str:
    """The policy that lets the page's own script run, and no other."""
    script = page().partition(b"<script>")[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    return PAGE_POLICY.format(script=f"sha256-{digest}")
