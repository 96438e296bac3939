"""A command as a job of a Ray cluster, by Ray's own job server, with the code that is here.

The job server takes a folder and a shell command. The folder has the source of tune_ssl and analysis and the
files that the command names, and nothing else. Ray deletes it after the job: what shall stay goes elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tune_ssl.base.errors import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    Problem,
    Stopped,
    UserError,
    first_line,
    shown,
)
from tune_ssl.base.network import probe, refuse_ray_client
from tune_ssl.base.retry import until_it_works

PACKAGES = ("tune_ssl", "analysis")
CODES = (0, 1, 2, EXIT_INTERRUPTED)
PROBE_SECONDS = 3.0
POLL_SECONDS = 1.0  # between two looks at a job's log
JOB = re.compile(r"[\w-][\w.-]*")


def stage(folder: Path, files: Iterable[Path]) -> dict[Path, str]:
    """Copy our source and these files into the empty `folder`; returns each file's name there."""
    for package in PACKAGES:
        found = find_spec(package)
        assert found is not None and found.submodule_search_locations
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(found.submodule_search_locations[0], folder / package, ignore=ignored)
    staged = {}
    for number, file in enumerate(files):
        copy = folder / "files" / str(number) / file.name
        copy.parent.mkdir(parents=True)
        staged[file] = shutil.copyfile(file, copy).relative_to(folder).as_posix()
    return staged


def entrypoint(
    python: str, command: str, options: Iterable[tuple[str, str | None]], arguments: Iterable[str]
) -> str:
    """The shell command of a job, every part quoted: what a user typed is never read by a shell.

    An option without a value is a flag. entrypoint("python", "search", [("--runs", "/a b")], ["s.yaml"])
    is "python -m tune_ssl.cli.main search '--runs=/a b' -- s.yaml".
    """
    given = [name if value is None else f"{name}={value}" for name, value in options]
    return shlex.join([python, "-m", "tune_ssl.cli.main", command, *given, "--", *arguments])


def refuse_lost_runs(place: str, option: str) -> None:
    """UserError unless runs in `place` outlive the job: an absolute folder of the cluster, or a URL."""
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


def connect(address: str) -> Any:
    """Ray's client of the job server at http://HOST:PORT. UserError where there is none."""
    refuse_ray_client(address, "--address")
    where = _host_and_port(address)
    if find_spec("aiohttp") is None:
        raise UserError("Ray's job API is not installed; pip install 'tune-ssl[cluster]'")
    if silent := probe(where, PROBE_SECONDS):
        text = (
            f"nothing answers at {where} ({silent}); the job server is the head's dashboard, which"
            " needs ray[default] and, from outside, --dashboard-host"
        )
        raise UserError(Problem(text, where=address))
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS would win over it
    from ray.job_submission import JobSubmissionClient

    for chatty in ("ray.dashboard", "ray._private"):
        for name in [n for n in logging.root.manager.loggerDict if n.startswith(chatty)]:
            logging.getLogger(name).setLevel(logging.WARNING)
    with _in_one_line(address, "no job server of Ray answers there as one should"):
        return JobSubmissionClient(address)


def _host_and_port(address: str) -> str:
    """HOST:PORT of an address. UserError if it is malformed."""
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    except ValueError:
        sound = None
    if not sound or "@" in address or parts.query or parts.fragment:
        text = "must be http://HOST:PORT of the cluster's job server, such as http://10.0.0.1:8265"
        raise UserError(Problem(text, "--address"))
    return f"{parts.hostname}:{port}"


@contextlib.contextmanager
def _in_one_line(where: str, what: str) -> Iterator[None]:
    """What Ray's client raises, as one line: `what` is wrong with the server at `where`."""
    from ray.exceptions import AuthenticationError

    from tune_ssl.cluster.connect import about_token

    try:
        yield
    except AuthenticationError as error:
        raise UserError(Problem(about_token(), where=where)) from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # requests' errors are OSErrors
        raise UserError(Problem(f"{what}: {first_line(error)[:300]}", where=where)) from error


def submit(client: Any, line: str, folder: Path, variables: Mapping[str, str]) -> str:
    """Upload the folder and start the shell command in it; returns the job's id. UserError."""
    environment = {"working_dir": str(folder), "env_vars": dict(variables)}
    with _in_one_line(client.get_address(), "does not take the job"):
        return str(client.submit_job(entrypoint=line, runtime_env=environment))


def follow(
    client: Any, job: str, write: Callable[[str], object], tell: Callable[[str], None]
) -> int:
    """Write the job's log until it ends; returns its exit code, which is that of the command in it.

    Raises:
        UserError: there is no such job.
        Stopped: the server did not answer for two minutes; the job may go on.
    """

    def ask(question: Callable[[str], Any]) -> Any:
        return until_it_works(lambda: question(job), (OSError, RuntimeError), _silent(job), tell)

    info, seen = job_info(client, job), 0
    while True:
        log = ask(client.get_job_logs)
        if log[seen:]:
            write(log[seen:])
            seen = len(log)
        if info.status.is_terminal():
            return _exit_code(info, job, tell)
        time.sleep(POLL_SECONDS)
        info = ask(client.get_job_info)


def job_info(client: Any, job: str) -> Any:
    """What the server knows of a job. UserError if it knows none of that name."""
    unknown = Problem(f"is {shown(job)}, but the cluster has no job of that name", "JOB")
    if not JOB.fullmatch(job):  # it goes into a URL
        raise UserError(unknown)
    try:
        return client.get_job_info(job)
    except (OSError, RuntimeError) as error:
        if "status code 404" in str(error):
            raise UserError(unknown) from None
        raise Stopped(f"{_silent(job)}: {first_line(error)}") from error


def stop(client: Any, job: str) -> bool:
    """Ask the cluster to end a job. False if it had ended before. UserError, Stopped as `job_info`."""
    job_info(client, job)
    try:
        return bool(client.stop_job(job))
    except (OSError, RuntimeError) as error:
        raise Stopped(f"{_silent(job)}: {first_line(error)}") from error


def _silent(job: str) -> str:
    return f"the job server does not answer about {job}"


def _exit_code(info: Any, job: str, tell: Callable[[str], None]) -> int:
    if info.status.name == "STOPPED":
        tell(f"{job} was stopped")
        return EXIT_INTERRUPTED
    if info.status.name == "SUCCEEDED":
        return 0
    if info.driver_exit_code in CODES:
        return int(info.driver_exit_code)
    tell(f"{job} failed: {first_line(info.message or '?')}")
    return EXIT_STOPPED
