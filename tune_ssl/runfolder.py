"""A run folder on the driver: created whole or not at all, used by one driver at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from tune_ssl import __version__, records
from tune_ssl.data.splits import make_split
from tune_ssl.data.store import Store, prepare
from tune_ssl.errors import Problem, UserError, nearest, shown
from tune_ssl.methods import installed
from tune_ssl.patience import patiently
from tune_ssl.plugins import Plugin, restore_plugins
from tune_ssl.secrets import redact_value, redacted
from tune_ssl.study import Condition, Study, study_from
from tune_ssl.yamlfile import read_yaml

LOCK = ".driver.lock"
PACKAGES = ("torch", "torchvision", "ray", "optuna", "timm", "numpy", "scikit-learn", "pandas")
WRITTEN = {  # what each event has that a run goes on from
    **dict.fromkeys(records.BEGINNINGS, ("number", "config", "seed", "digest", "time")),
    **dict.fromkeys(records.ENDINGS, ("value", "step", "metrics", "time")),
    records.LOCKED: ("config", "digest", "value"),
    records.PLANNED: ("variant", "changes", "config", "retune", "switches"),
}


def check_data(study: Study) -> dict[str, Store]:
    """Open (or build) the store of each condition and draw its split. UserError with file:line."""
    stores: dict[str, Store] = {}
    found: dict[Problem, list[str]] = {}
    for condition in study.conditions:
        try:
            store = prepare(condition.spec.data)
            for seed in (*study.settings.tuning_seeds, *study.settings.seeds):
                _split(store, condition, seed)
            stores[condition.id] = store
        except UserError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(condition.id)
    if found:
        everywhere = len(study.conditions)
        raise UserError(
            Problem(
                p.text if len(ids) == everywhere else f"{p.text} (condition {', '.join(ids)})",
                p.key,
                p.where or study.where(p.key),
            )
            for p, ids in found.items()
        )
    return stores


def create(study: Study, stores: dict[str, Store], runs: Path, name: str, command: str) -> Path:
    """A new run folder with its study.yaml. UserError if it exists or cannot be written."""
    run = runs / name
    refuse_existing(run)
    content = StringIO()
    _yaml().dump(records.plain(describe(study, stores, name, command)), content)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=runs))
    except OSError as error:
        raise _unwritable(run, error.strerror) from None
    try:
        (begun / records.STUDY).write_text(content.getvalue(), encoding="utf-8")
        records.sync(begun / records.STUDY)
        begun.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would shut out others who read the runs
        begun.rename(run)
        records.sync(runs)
    except OSError as error:
        shutil.rmtree(begun, ignore_errors=True)
        taken = error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
        reason = "a file or folder of this name exists" if taken else error.strerror
        raise _unwritable(run, reason) from None
    return run


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_existing(run: Path) -> None:
    """UserError if something of that name is there; a search asks this before anything slow."""
    if os.path.lexists(run):  # unlike Path.exists, never an error
        verb = "ablate" if ablates_only(run) else "search --resume"
        text = f"exists already; `tune-ssl {verb} {run.name}` goes on with it, "
        raise UserError(Problem(text + "another --name starts afresh", str(run)))


def refuse_without_search(run: Path) -> None:
    """UserError if the run is the ablation of a file, in which nothing is searched."""
    if ablates_only(run):
        text = f"has an ablation and no search; `tune-ssl ablate {run.name}` goes on with it"
        raise UserError(Problem(text, str(run)))


def ablates_only(run: Path) -> bool:
    """Whether the run began as the ablation of a study file: a plan came before any trial."""
    try:
        first = next(records.scan(run / records.TRIALS), {})
    except OSError:
        return False
    return first.get("event") == records.PLANNED


def refuse_other_data(run: Path, study: Study, stores: dict[str, Store]) -> None:
    """UserError if the dataset is not the one that the run began with."""
    began = read_yaml(run / records.STUDY).data["dataset"]["digest"]
    now = stores[study.conditions[0].id].digest
    if now != began:
        text = f"began with dataset digest {began}, but the data is now {now}: start a new run"
        raise UserError(Problem(text, str(run)))


def _unwritable(run: Path, reason: str | None) -> UserError:
    return UserError(Problem(f"cannot be written: {reason}", str(run)))


def find_run(runs: Path, name: str) -> Path:
    """The run folder of that path, or of that name in `runs`. UserError if there is none."""
    run = Path(name) if os.path.exists(Path(name, records.STUDY)) else runs / name
    if not os.path.exists(run / records.STUDY):
        known = sorted(p.parent.name for p in runs.glob(f"[!.]*/{records.STUDY}"))
        hint = f" (in {runs} there are: {', '.join(known)})" if known else ""
        text = f"is not a run folder{nearest(name, known)}{hint}"
        raise UserError(Problem(text, str(run)))
    records.refuse_links(run)
    return run


def reopen(runs: Path, name: str) -> tuple[Path, Study]:
    """An existing run folder and the study in it, with its plugins. UserError if it is none."""
    run = find_run(runs, name)
    path = run / records.STUDY
    described = read_yaml(path).data
    study, source = described.get("study"), described.get("source")
    if not isinstance(study, dict) or not isinstance(source, str):
        raise UserError(Problem("was not written by `tune-ssl search`", str(path)))
    plugins = run_plugins(run)
    try:
        found = study_from(study, Path(source), plugins)
    except UserError as error:
        raise UserError(replace(problem, where=str(path)) for problem in error.problems) from None
    refuse_changed(run, {condition.id for condition in found.conditions})
    return run, found


def refuse_changed(run: Path, conditions: Collection[str]) -> None:
    """UserError for an event that no run writes: one that lacks a field, or is of another condition."""
    path = run / records.TRIALS
    for event in records.scan(path):
        records.expect(path, event, *WRITTEN[event["event"]])
        if event["condition"] not in conditions:
            text = f"has a record of condition {shown(event['condition'])}, which the run's study lacks"
            raise UserError(Problem(text, str(path)))


def condition_ids(run: Path) -> list[str]:
    """The ids of the run's conditions, in order. UserError if it has none."""
    path = run / records.STUDY
    listed = read_yaml(path).data.get("conditions")
    if not isinstance(listed, list) or not all(isinstance(c, dict) and "id" in c for c in listed):
        raise UserError(Problem("was not written by `tune-ssl search`", str(path)))
    return [str(entry["id"]) for entry in listed]


def run_plugins(run: Path) -> tuple[Plugin, ...]:
    """Load the plugins that a run began with. UserError if one is gone or is another one now."""
    path = run / records.STUDY
    recorded = read_yaml(path).data.get("plugins") or []
    if not isinstance(recorded, list) or not all(map(_is_plugin, recorded)):
        raise UserError(Problem("was not written by `tune-ssl search`", str(path)))
    for plugin in recorded:  # a stranger's run folder must not bring its own code
        if Path(plugin["path"]).resolve().is_relative_to(run.resolve()):
            text = (
                f"began with the plugin {plugin['path']}, which lies in its own folder: move it out"
            )
            raise UserError(Problem(f"{text}, and name it with --plugin", str(run)))
    return restore_plugins((Plugin(**plugin) for plugin in recorded), str(run))


def _is_plugin(value: Any) -> bool:
    strings = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return strings and set(value) == set(Plugin._fields) and os.path.isabs(value["path"])


@contextlib.contextmanager
def driver_lock(run: Path) -> Iterator[None]:
    """One driver per run folder; the lock goes with the process. UserError if another has it."""
    lock = FileLock(run / LOCK, timeout=0.5)  # `in_use` holds it for an instant
    try:
        lock.acquire()
    except Timeout:
        raise UserError(Problem("is in use by another tune-ssl process", str(run))) from None
    except OSError as error:
        raise _unwritable(run, error.strerror) from None
    try:
        yield
    finally:
        lock.release()


def in_use(run: Path) -> bool:
    """Whether a process of this machine drives the run now. OSError where its lock cannot be asked."""
    path = run / LOCK
    if not path.exists():
        return False
    try:
        import fcntl
    except ImportError:  # not on Windows, where the lock is not shared
        try:
            with FileLock(path, blocking=False):
                return False
        except Timeout:
            return True
    with path.open("rb") as file:  # a shared lock needs no right to write
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def record_splits(
    run: Path,
    study: Study,
    stores: dict[str, Store],
    seeds: list[int],
    tell: Callable[[str], None] = print,
) -> dict[tuple[str, int], str]:
    """Save the split of each (condition, seed) once; returns their digests. Stopped where the disk stays full."""
    path = run / records.SPLITS
    known = {(r["condition"], r["seed"]): r["digest"] for r in records.read(run / records.SPLITS)}
    for condition in study.conditions:
        for seed in seeds:
            if (condition.id, seed) in known:
                continue
            split = _split(stores[condition.id], condition, seed)
            line = {"condition": condition.id, "seed": seed, **split.to_record()}
            write = partial(records.append, path, line | {"digest": split.digest})
            patiently(write, OSError, f"{path} cannot be written", tell)
            known[condition.id, seed] = split.digest
    return known


def validation_count(store: Store, condition: Condition, seed: int) -> int:
    """Images that a trial of this condition is validated on."""
    if store.val is not None and condition.spec.data.validation == "split":
        return len(store.val.labels)
    return len(_split(store, condition, seed).validation)


def describe(study: Study, stores: dict[str, Store], name: str, command: str) -> dict[str, Any]:
    """All of study.yaml: what was asked, of which data, by which code, on which machine."""
    store = stores[study.conditions[0].id]
    seed = study.settings.tuning_seed
    return {
        "schema": records.SCHEMA,
        "name": name,
        "id": uuid.uuid4().hex[:12],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "source": str(study.source),
        "method": study.fixed.method.name,
        "metric": study.settings.metric,
        "mode": study.settings.mode,
        "loss_terms": [term for term, _ in study.fixed.losses.items()],
        "dataset": {
            "name": study.fixed.data.dataset,
            "digest": store.digest,
            "classes": list(store.class_names),
            "counts": store.meta["counts"],
            "image_shape": list(store.shape),
        },
        "conditions": [
            {
                "id": condition.id,
                "values": condition.values,
                "labels": len(_split(stores[condition.id], condition, seed).labeled),
                "validation": validation_count(stores[condition.id], condition, seed),
            }
            for condition in study.conditions
        ],
        "versions": {
            "tune_ssl": __version__,
            "python": platform.python_version(),
            **_versions(study),
        },
        "git": code_revision(),
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
        "plugins": [plugin._asdict() for plugin in study.plugins],
        "study": redacted(study.resolved()),
    }


def command_line() -> str:
    import shlex

    return shlex.join(["tune-ssl", *map(redact_value, sys.argv[1:])])


def _split(store: Store, condition: Condition, seed: int) -> Any:
    spec = condition.spec.model_copy(update={"seed": seed})
    return make_split(
        store.train.labels,
        store.class_names,
        spec.data,
        seed=spec.split_seed,
        has_val=store.val is not None,
    )


def _versions(study: Study) -> dict[str, str]:
    points = installed().get(study.fixed.method.name, [])
    found = {}
    for package in (*PACKAGES, *(point.dist.name for point in points if point.dist)):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def code_revision() -> dict[str, Any]:
    """Revision of the code that runs, where it is a checkout; an installed package has none."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}


def _yaml() -> YAML:
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    return yaml
