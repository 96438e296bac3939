"""Submitting: a study's command becomes a job on a Ray cluster, which gets our code with it.

The job server takes an archive of a folder and a shell command. The folder holds what the command needs and
nothing else: the study's file, its plugins, and the source of tune_ssl and analysis, so that what runs there
is what is here. Ray deletes it after the job: what shall stay goes to an absolute folder of the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tune_ssl.base.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Problem, Stopped, UserError, shown
from tune_ssl.base.retry import until_it_works
from tune_ssl.cli.options import RAY_CLIENT
from tune_ssl.cluster import ray_client

PACKAGES = ("tune_ssl", "analysis")
SOURCES = (".py", ".typed", ".html", ".css", ".js", ".j2", ".txt", ".json")
CODES = (0, 1, 2, EXIT_INTERRUPTED)
PROBE_SECONDS = 3.0
POLL_SECONDS = 0.5
JOB = re.compile(r"[\w-][\w.-]*")

Tell = Callable[[str], None]


class Staged(NamedTuple):
    """Where the staged files lie, as the job will name them: relative to the folder it runs in."""

    study: str | None
    plugins: tuple[str, ...]


def stage(folder: Path, study: Path | None, plugins: Iterable[Path]) -> Staged:
    """Copy what a job needs into the empty `folder`: our source, the study's file, the plugins."""
    for package in PACKAGES:
        found = find_spec(package)
        assert found is not None and found.submodule_search_locations
        shutil.copytree(found.submodule_search_locations[0], folder / package, ignore=_not_source)
    copies = [
        shutil.copyfile(plugin, _made(folder / "plugins" / str(number)) / plugin.name)
        for number, plugin in enumerate(plugins)
    ]
    names = tuple(copy.relative_to(folder).as_posix() for copy in copies)
    if study is None:
        return Staged(None, names)
    copy = shutil.copyfile(study, _made(folder / "study") / study.name)
    return Staged(copy.relative_to(folder).as_posix(), names)


def _not_source(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name == "__pycache__"
        or name.startswith(".")
        or not (name.endswith(SOURCES) or os.path.isdir(os.path.join(folder, name)))
    ]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def entrypoint(
    python: str, command: str, options: Iterable[tuple[str, str | None]], arguments: Iterable[str]
) -> str:
    """The shell command of a job, every part quoted: what a user typed is never read by a shell.

    An option without a value is a flag. entrypoint("python", "search", [("--runs", "/a b")], ["s.yaml"])
    is "python -m tune_ssl.cli search '--runs=/a b' -- s.yaml".
    """
    given = [name if value is None else f"{name}={value}" for name, value in options]
    return shlex.join([python, "-m", "tune_ssl.cli.main", command, *given, "--", *arguments])


def refuse_what_is_lost(place: str, option: str) -> None:
    """UserError unless runs kept in `place` outlive the job: an absolute folder of the cluster, or a URL."""
    if not PurePosixPath(place).is_absolute() and "://" not in place:
        text = (
            f"is {shown(place)}, but must be an absolute folder that every node of the cluster has,"
            " or a URL: Ray deletes the folder in which a job runs"
        )
        raise UserError(Problem(text, option))


def forwarded(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The named environment variables, for the job. UserError for one that is not set here."""
    problems = []
    for name in names:
        if not name.isidentifier():
            text = "must be the name of an environment variable, without a value: --env NAME"
            problems.append(Problem(text, "--env"))
        elif name not in environment:
            problems.append(Problem(f"names {name}, but it is not set here", "--env"))
        elif "\\ud" in ascii(environment[name]):  # what is no UTF-8 there
            problems.append(Problem(f"names {name}, whose value is no text in UTF-8", "--env"))
    if problems:
        raise UserError(problems)
    return {name: environment[name] for name in names}


def submit(
    client: Any,
    command: Callable[[Staged], str],
    study: Path | None,
    plugins: Iterable[Path],
    variables: Mapping[str, str],
) -> str:
    """Upload what the job needs, and start it; returns its id. `command` makes its shell command."""
    with tempfile.TemporaryDirectory(prefix="tune-ssl-submit-") as temporary:
        staged = stage(Path(temporary), study, plugins)
        environment = {"working_dir": temporary, "env_vars": dict(variables)}
        line = command(staged)
        with _plainly(client._address, "does not take the job"):
            return str(client.submit_job(entrypoint=line, runtime_env=environment))


def connect(address: str) -> Any:
    """A client of the job server at `address`, http://HOST:PORT, or ray://HOST:PORT to reach it by.

    UserError where there is none.
    """
    through = address.startswith(RAY_CLIENT)
    host, port = ("", 0) if through else _parts(address)
    if find_spec("aiohttp") is None or find_spec("requests") is None:
        text = "Ray's job API is not installed; pip install 'tune-ssl[cluster]'"
        raise UserError(text)
    if through:
        return ray_client.connect(address)
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = (
            f"nothing answers at {host}:{port} ({reason}); the job server is the head's dashboard, which"
            " needs ray[default] and, from outside, --dashboard-host"
        )
        raise UserError(Problem(text, where=address)) from None
    os.environ["RAY_API_SERVER_ADDRESS"] = (
        address  # or else RAY_ADDRESS would win over what was asked
    )
    from ray.job_submission import JobSubmissionClient

    for chatty in ("ray.dashboard", "ray._private"):
        for name in [n for n in logging.root.manager.loggerDict if n.startswith(chatty)]:
            logging.getLogger(name).setLevel(logging.WARNING)
    with _plainly(address, "no job server of Ray answers there as one should"):
        return JobSubmissionClient(address)


def _parts(address: str) -> tuple[str, int]:
    """Host and port of an address. UserError if it is malformed."""
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    except ValueError:
        sound = None
    if not sound or "@" in address or parts.query or parts.fragment:
        text = (
            "must be http://HOST:PORT of the cluster's job server, such as http://10.0.0.1:8265, or "
            "ray://HOST:PORT"
        )
        raise UserError(Problem(text, "--address", where=""))
    return str(parts.hostname), port


@contextlib.contextmanager
def _plainly(where: str, what: str) -> Iterator[None]:
    """What Ray's client raises, as one line: `what` is wrong with the server at `where`."""
    from ray.exceptions import AuthenticationError

    from tune_ssl.cluster.connect import about_token

    try:
        yield
    except AuthenticationError as error:
        raise UserError(Problem(about_token(), where=where)) from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # requests' errors are OSErrors
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(Problem(f"{what}: {first[:300]}", where=where)) from error


def follow(client: Any, job: str, write: Callable[[str], object], tell: Tell) -> int:
    """Write the job's log until it ends; returns its exit code, which is that of the command in it.

    Raises:
        UserError: there is no such job.
        Stopped: the server did not answer for two minutes; the job may go on.
    """
    from aiohttp import ClientError

    seen = 0

    async def tail() -> None:
        nonlocal seen
        passed = 0  # the server begins anew with each connection
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, seen - passed) :]
            passed += len(text)
            if fresh:
                write(fresh)
                seen = passed

    info = job_info(client, job)
    while not info.status.is_terminal():
        with contextlib.suppress(OSError, RuntimeError, ClientError):  # the next line asks again
            asyncio.run(tail())
        info = _patient_info(client, job, tell)
        if not info.status.is_terminal():
            asyncio.run(asyncio.sleep(POLL_SECONDS))
    rest = until_it_works(
        lambda: client.get_job_logs(job), (OSError, RuntimeError), _silent(job), tell
    )
    if rest[seen:]:
        write(rest[seen:])
    return _exit_code(info, job, tell)


def job_info(client: Any, job: str) -> Any:
    """What the server knows of a job. UserError if it knows none of that name."""
    unknown = Problem(f"is {shown(job)}, but the cluster has no job of that name", "JOB")
    if not JOB.fullmatch(job):  # it goes into a URL
        raise UserError(unknown)
    try:
        return client.get_job_info(job)
    except (OSError, RuntimeError) as error:
        if "status code 404" not in str(error):
            raise Stopped(f"{_silent(job)}: {str(error).splitlines()[0]}") from error
        raise UserError(unknown) from None


def _patient_info(client: Any, job: str, tell: Tell) -> Any:
    return until_it_works(
        lambda: client.get_job_info(job), (OSError, RuntimeError), _silent(job), tell
    )


def _silent(job: str) -> str:
    return f"the job server does not answer about {job}"


def _exit_code(info: Any, job: str, tell: Tell) -> int:
    if info.status.name == "STOPPED":
        tell(f"{job} was stopped")
        return EXIT_INTERRUPTED
    code = info.driver_exit_code
    if info.status.name == "SUCCEEDED":
        return 0
    if code in CODES:
        return int(code)
    first = (str(info.message or "").strip() or "?").splitlines()[0]
    tell(f"{job} failed: {first}")
    return EXIT_STOPPED


def stop(client: Any, job: str) -> bool:
    """Ask the cluster to end a job. False if it had ended before. UserError, Stopped as `job_info`."""
    job_info(client, job)
    try:
        return bool(client.stop_job(job))
    except (OSError, RuntimeError) as error:
        raise Stopped(f"{_silent(job)}: {str(error).splitlines()[0]}") from error
