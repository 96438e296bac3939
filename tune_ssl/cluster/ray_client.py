"""ray://HOST:10001: a cluster's job server through Ray Client, for who reaches that port and no other.

A driver over Ray Client would run on the cluster and die with the connection. So an actor on the head does there
what `submitting` asks of a job server, and the job outlives the connection.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, Stopped, UserError

TCP_SECONDS = 3.0
START_SECONDS = 60.0  # for the actor on the head
POLL_SECONDS = 1.0  # between two looks at a log
FORM = re.compile(r"ray://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})/?")


class Relay:
    """What `submitting` uses of Ray's JobSubmissionClient. Errors are those that its client raised there.

    Stopped where the connection is lost: Ray Client does not connect again.
    """

    def __init__(self, address: str, actor: Any) -> None:
        self._address, self.actor = address, actor
        self.python: str = self._ask("python")  # of the head

    def submit_job(self, *, entrypoint: str, runtime_env: Mapping[str, Any]) -> str:
        with tempfile.TemporaryDirectory(prefix="tune-ssl-relay-") as folder:
            archive = shutil.make_archive(f"{folder}/job", "zip", runtime_env["working_dir"])
            packed = Path(archive).read_bytes()
        return str(self._ask("submit_job", entrypoint, runtime_env["env_vars"], packed))

    def get_job_info(self, job: str) -> Any:
        return self._ask("get_job_info", job)

    def get_job_logs(self, job: str) -> str:
        return str(self._ask("logs_after", job, 0))

    def stop_job(self, job: str) -> bool:
        return bool(self._ask("stop_job", job))

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """What is new of the log, until the job has ended."""
        seen = 0
        while True:
            ended = self.get_job_info(job).status.is_terminal()
            if fresh := str(self._ask("logs_after", job, seen)):
                seen += len(fresh)
                yield fresh
            if ended:
                return
            await asyncio.sleep(POLL_SECONDS)

    def _ask(self, name: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(getattr(self.actor, name).remote(*arguments))
        except RayTaskError as error:
            raise error.cause from None
        except Exception as error:  # a plain one where the connection is lost, for good
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Stopped(f"the connection to {self._address} is lost: {first}") from error


def connect(address: str) -> Relay:
    """A relay at `address`, ray://HOST:PORT. UserError where none can be had."""
    match = FORM.fullmatch(address)
    if not match or not 0 < int(match[2]) < 65536:
        text = "must be ray://HOST:PORT of a head, such as ray://10.0.0.1:10001"
        raise UserError(Problem(text, "--address"))
    host, port = match[1].strip("[]"), int(match[2])
    try:
        socket.create_connection((host, port), timeout=TCP_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(Problem(f"nothing answers there: {reason}", where=address)) from None
    import ray

    try:
        with warnings.catch_warnings(action="ignore"):
            ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(Problem(_why(first), where=address)) from error
    atexit.register(_leave)  # before Ray's own, which a second Ctrl-C would break off
    return Relay(address, _started(address))


def _leave() -> None:
    import ray

    from tune_ssl.cluster.connect import undisturbed

    with undisturbed():
        ray.shutdown()


def _why(first: str) -> str:
    """A server that takes no token, or none of ours, does not say so to Ray Client: it is silent."""
    from tune_ssl.cluster.connect import about_token

    if "timeout" not in first:
        return f"Ray Client cannot connect: {first}"
    return f"Ray Client gets no answer there: it is no port of Ray Client's, or {about_token()}"


def _started(address: str) -> Any:
    """The actor, on the head: its job server may listen on its loopback alone."""
    import ray

    actor = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(_server())
    started = actor.remote()
    try:
        missing = ray.get(started.missing.remote(), timeout=START_SECONDS)
    except ray.exceptions.RayError as error:
        missing = (str(error).strip() or type(error).__name__).splitlines()[0]
    if missing:
        raise UserError(Problem(f"its head has no job server: {missing}", where=address))
    return started


def _server() -> type:
    """The actor's class. Ray sends a class of a function by value, so that the head needs no tune_ssl for it."""

    class JobServer:
        def __init__(self) -> None:
            self.client: Any = None

        def missing(self) -> str:
            """Connect to the job server; what is missing for that, or nothing."""
            from ray._private.services import get_webui_url_from_internal_kv

            url = get_webui_url_from_internal_kv()
            if not url:
                return "ray[default] is not installed there, or it was started without a dashboard"
            os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{url}"
            try:
                from ray.job_submission import JobSubmissionClient

                self.client = JobSubmissionClient(f"http://{url}")
            except (OSError, RuntimeError, ImportError) as error:
                return (str(error).strip() or type(error).__name__).splitlines()[0]
            return ""

        def python(self) -> str:
            import sys

            return sys.executable

        def submit_job(self, entrypoint: str, variables: dict[str, str], packed: bytes) -> str:
            import zipfile

            with tempfile.TemporaryDirectory(prefix="tune-ssl-relay-") as folder:
                with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                    archive.extractall(folder)
                environment = {"working_dir": folder, "env_vars": variables}
                return str(self.client.submit_job(entrypoint=entrypoint, runtime_env=environment))

        def get_job_info(self, job: str) -> Any:
            return self.client.get_job_info(job)

        def logs_after(self, job: str, seen: int) -> str:
            return str(self.client.get_job_logs(job))[seen:]

        def stop_job(self, job: str) -> bool:
            return bool(self.client.stop_job(job))

    return JobServer
