"""Before anything starts on a cluster: can every node do what a trial will need there?

A task on each node says which code and packages it has, whether it sees the run's storage, and
whether its data is the driver's. It builds the node's data store, so that no trial waits for that.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_ssl.base.code_digest import source_digest
from tune_ssl.base.errors import Problem, UserError, first_line, shown
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.store import Store, prepare
from tune_ssl.methods.plugins import Plugin, digest_of
from tune_ssl.storage.places import Place, folder_of
from tune_ssl.study.study import Study

PACKAGES = ("torch", "torchvision", "numpy")  # what numbers depend on
# Ray Tune gives these of the driver's to each trial (ray/tune/execution/class_cache.py), so a probe has them too.
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
ANSWER_SECONDS = 1800.0  # a node may have to build a large store
Findings = dict[str, Any]


def refuse_local_data(study: Study) -> None:
    """UserError for a relative data.root: a node reads its own files, and starts in a folder of its own."""
    problems = {
        Problem(
            f"is {shown(root)}, but must be an absolute folder that each node of the cluster has",
            "data.root",
            study.where("data.root"),
        ): None
        for condition in study.conditions
        if (root := condition.spec.data.root) and not root.startswith(("/", "~"))
    }
    if problems:
        raise UserError(problems)


def refuse_unfit_nodes(study: Study, stores: Mapping[str, Store], folder: Place) -> int:
    """Ask every other node of the cluster; returns how many there are. UserError with all their problems.

    `folder` keeps the run: each node must see what the driver writes there, and be seen.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]
    if not nodes:
        return 0
    ours, wanted = installed_code(study.plugins), _data_by_store(study, stores)
    credentials = {name: os.environ[name] for name in CREDENTIALS if name in os.environ}
    problems: list[Problem] = []
    with marker_file(folder) as (marker, content):
        asked = [
            _examine(
                node["NodeID"],
                folder.url,
                marker,
                study.plugins,
                list(wanted.values()),
                credentials,
            )
            for node in nodes
        ]
        for node, task in zip(nodes, asked, strict=True):
            where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                said = ray.get(task, timeout=ANSWER_SECONDS)
            except GetTimeoutError:
                found = [f"has not answered within {ANSWER_SECONDS:.0f} s"]
            except RayError as error:
                found = [_reason(error)]
            else:
                said["stores"] = dict(zip(wanted, said["stores"], strict=True))
                found = list(_code_and_data_problems(ours, said, stores))
                found += _storage_problems(said, folder, marker, content)
            problems += [Problem(text, where=where) for text in found]
    if problems:
        raise UserError(problems)
    return len(nodes)


def _examine(node: str, *asked: Any) -> Any:
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(examine_node).options(scheduling_strategy=where)
    return task.remote(node, *asked)


def examine_node(
    node: str,
    folder: str,
    marker: str,
    plugins: tuple[Plugin, ...],
    data: list[DataSpec],
    environment: dict[str, str],
) -> Findings:
    """What runs on a node: its facts, what it sees of the storage, and the digests of its stores."""
    said: Findings = installed_code(plugins)
    os.environ.update(environment)
    try:
        place = folder_of(folder)
        said["read"] = place.read(marker).decode()
        place.write(f"{marker}-{node}", iter([node.encode()]))
        said["storage"] = None
    except OSError as error:
        said["storage"] = first_line(error)
    except UserError as error:
        said["storage"] = error.problems[0].text
    said["node"], said["stores"] = node, []
    for spec in data:
        try:
            said["stores"].append(prepare(spec).digest)
        except UserError as error:
            said["stores"].append(error.problems[0])
    return said


def installed_code(plugins: tuple[Plugin, ...]) -> Findings:
    """The code of this process: versions, a digest of our source, and one of each plugin's file."""
    found: Findings = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["tune_ssl"] = source_digest()[:12]
    for plugin in plugins:
        try:
            found[f"plugin {plugin.path}"] = digest_of(Path(plugin.path).read_bytes())
        except OSError as error:
            found[f"plugin {plugin.path}"] = first_line(error)
    return found


def _code_and_data_problems(
    ours: Findings, theirs: Findings, stores: Mapping[str, Store]
) -> Iterator[str]:
    for name, mine in ours.items():
        if theirs.get(name) != mine:
            what = "the source of tune_ssl" if name == "tune_ssl" else name
            yield f"has another {what} ({theirs.get(name)}, here {mine}): install the same on every node"
    for condition, digest in theirs["stores"].items():
        if isinstance(digest, Problem):
            yield f"cannot prepare the data of condition {condition}: {digest}"
        elif digest != stores[condition].digest:
            mine = stores[condition].digest
            yield f"has other data for condition {condition} (digest {digest}, here {mine})"


def _storage_problems(theirs: Findings, folder: Place, marker: str, content: str) -> Iterator[str]:
    """Nothing where the node and the driver see one folder; else what to do."""
    remedy = "give --runs a folder that all nodes share, or --storage a URL (s3://, gs://)"
    if theirs["storage"] is not None:
        yield f"cannot use {folder.url}: {theirs['storage']}; {remedy}"
        return
    try:
        back = folder.read(f"{marker}-{theirs['node']}").decode()
    except OSError:
        back = ""
    if (theirs["read"], back) != (content, theirs["node"]):
        yield f"has a folder {folder.url} of its own; {remedy}"


def _data_by_store(study: Study, stores: Mapping[str, Store]) -> dict[str, DataSpec]:
    """condition -> its data, the first condition of each store."""
    found: dict[Path, tuple[str, DataSpec]] = {}
    for condition in study.conditions:
        found.setdefault(stores[condition.id].path, (condition.id, condition.data))
    return dict(found.values())


@contextlib.contextmanager
def marker_file(place: Place) -> Iterator[tuple[str, str]]:
    """A small file in `place` for the time of the block, by its name and content; nodes put theirs beside it.

    UserError where it cannot be written.
    """
    folder = Path(place.path)
    local = place.filesystem.type_name == "local"
    made = [path for path in (folder, *folder.parents) if local and not path.exists()]
    name, content = f".probe-{socket.gethostname()}-{uuid.uuid4().hex}", uuid.uuid4().hex
    try:
        place.write(name, iter([content.encode()]))
    except OSError as error:
        reason = first_line(error)
        raise UserError(Problem(f"cannot be written: {reason}", place.url)) from None
    try:
        yield name, content
    finally:
        with contextlib.suppress(OSError):  # away by now, or a folder that is not empty
            for found, _ in place.files():
                if found.startswith(name):
                    place.delete(found)
            for path in made:
                path.rmdir()


def _reason(error: RayError) -> str:
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if "ModuleNotFoundError" in last:
        return f"lacks what a trial needs: {last}; install tune-ssl there, as here (Python {sys.version.split()[0]})"
    return f"cannot run a task: {last}"
