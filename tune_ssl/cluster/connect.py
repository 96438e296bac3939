"""The Ray that runs the trials: a local one for the time of a command, or a cluster that is there.

A cluster is never started, stopped or changed here: we connect to it and leave it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray._private.node import Node

from tune_ssl.base.errors import Problem, Stopped, UserError, first_line
from tune_ssl.base.network import probe, refuse_ray_client

TCP_SECONDS = 3.0
HEALTH_SECONDS = 20.0  # for the question whether it is a Ray cluster that takes our token
GONE_SECONDS = 20.0  # without an answer before a cluster counts as gone; Ray itself dies at 60
LOOK_SECONDS = 2.0
FORM = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@contextlib.contextmanager
def cluster(verbose: bool, address: str | None = None) -> Iterator[None]:
    """A Ray for the time of the block, unless this process is connected to one already.

    `address` is `auto` or HOST:PORT of a cluster, of which this machine is a node; else $RAY_ADDRESS
    counts, and without it a local Ray is started. UserError where there is no such cluster.
    """
    quiet_environment()
    ours = not ray.is_initialized()
    if ours:
        named = os.environ.get("RAY_ADDRESS", "")
        where = resolved(address) if address else resolved(named or "local", "RAY_ADDRESS")
        quiet = {
            "log_to_driver": verbose,
            "logging_level": logging.INFO if verbose else logging.ERROR,
        }
        if where == "local":
            try:
                with _bare_node(verbose):
                    ray.init("local", include_dashboard=False, **quiet)
            except Exception as error:  # Ray raises plain ones
                text = f"Ray did not start on this machine: {first_line(error)}"
                raise Stopped(text) from error
        else:
            _refuse_unhealthy(where)
            try:
                ray.init(where, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                text = f"cannot be connected to: {first_line(error)}"
                raise UserError(Problem(text, where=where)) from error
    if not verbose:
        for noisy in ("ray", "optuna"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        for noisy in ("ray.tune", "ray.train"):  # they log tracebacks of what they raise, too
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        if ours:
            with undisturbed():
                ray.shutdown()


@contextlib.contextmanager
def _bare_node(verbose: bool) -> Iterator[None]:
    """A Ray that starts in the block comes without the processes that a local one has no use for.

    They are the dashboard's server, which `include_dashboard=False` starts empty, the autoscaler, and
    the reader of the workers' logs. Each is a Python that loads Ray, and Ray waits for them when it
    starts and when it ends. It has no setting for this; where it has no such method, they start.
    """
    names = ["start_api_server", "start_monitor", *([] if verbose else ["start_log_monitor"])]
    present = {name: getattr(Node, name) for name in names if hasattr(Node, name)}
    for name in present:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in present.items():
            setattr(Node, name, method)


def started_here() -> bool:
    """Whether the Ray that this process is connected to is its own."""
    return bool(ray._private.worker._global_node.is_head())


def resolved(address: str, key: str = "--address") -> str:
    """HOST:PORT of a cluster, or `local`. UserError for a malformed address, or `auto` without a cluster."""
    if address == "local":
        return address
    refuse_ray_client(address, key)
    if address == "auto":
        from ray._private.utils import read_ray_address

        found = os.environ.get("RAY_ADDRESS") or read_ray_address()
        if not found or found == "auto":
            text = "is 'auto', but no cluster runs on this machine: start one or give HOST:PORT"
            raise UserError(Problem(text, key))
        address = str(found)
    match = FORM.fullmatch(address)
    if not match or not 0 < int(match[2]) < 65536:
        text = f"is {address!r}, but must be auto or HOST:PORT, such as 10.0.0.1:6379"
        raise UserError(Problem(text, key))
    return address


def _refuse_unhealthy(where: str) -> None:
    """UserError, within seconds, unless a Ray cluster answers there and takes our token."""
    if silent := probe(where, TCP_SECONDS):
        raise UserError(Problem(f"nothing answers there: {silent}", where=where))
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", where]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(
            Problem("something answers there, but it is no Ray cluster", where=where)
        ) from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "?").splitlines()[-1]
        text = (
            about_token() if "AuthenticationError" in last else f"is no healthy Ray cluster: {last}"
        )
        raise UserError(Problem(text, where=where))


def about_token() -> str:
    """Which variable to set for a cluster that did not take our token."""
    mode, path = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode != "token":
        return (
            "the cluster asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, a copy "
            "of the token file of its head"
        )
    held = f"the file RAY_AUTH_TOKEN_PATH={path}" if path else "RAY_AUTH_TOKEN or ~/.ray/auth_token"
    return f"the cluster refuses the token in {held}: it must be that of its head"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C while Ray shuts down would only hide what the first one said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def watched(on_lost: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, a thread looks after the cluster and calls `on_lost(reason)` when it is gone.

    Without its raylet or its head, Ray waits for ever or kills the process without a word.
    """
    over = threading.Event()

    def lost(reason: str) -> None:
        if not over.is_set():
            on_lost(reason)

    ours = ray.get_runtime_context().get_node_id()
    places = {"its head": ray.get_runtime_context().gcs_address}
    for node in ray.nodes():
        if node["NodeID"] == ours:
            raylet = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            places["the raylet of this machine"] = raylet
    watcher = threading.Thread(target=_watch, args=(over, places, lost), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event, places: dict[str, str], on_lost: Callable[[str], None]) -> None:
    started = ray._private.worker._global_node.all_processes.get("raylet", [])  # none on a cluster
    answered = dict.fromkeys(places, time.monotonic())
    while not over.wait(LOOK_SECONDS):
        if any(info.process.poll() is not None for info in started):
            return on_lost("the raylet of this machine died")
        for what, where in places.items():
            silent = probe(where, LOOK_SECONDS)
            if silent is None:
                answered[what] = time.monotonic()
            elif time.monotonic() - answered[what] > GONE_SECONDS:
                return on_lost(f"{what}, {where}, does not answer: {silent}")


def quiet_environment() -> None:
    """Settings that Ray and its workers read from the environment; the user's own ones stay.

    Its own progress output and result files are off (the run folder has them), trials keep their
    working directory, and waiting threads sleep: several trials share the cores. Ray starts no workers
    ahead: a trial gets a process of its own, never one of those. The C library keeps the memory of a
    step for the next one, where it would give it back and take it again: a tenth of a small trial.
    """
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # the searcher says how many jobs there may be
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_prestart_worker_first_driver": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the most that glibc allows
        "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    }.items():
        os.environ.setdefault(name, value)
