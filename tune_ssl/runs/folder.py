"""A run folder on the driver: created whole or not at all, used by one driver at a time."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tune_ssl.base.errors import Problem, UserError, nearest, shown, unknown
from tune_ssl.base.files import sync
from tune_ssl.base.yaml_file import read_yaml, to_yaml
from tune_ssl.data.store import Store
from tune_ssl.methods.plugins import Plugin, restore_plugins
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.describe import describe
from tune_ssl.study.study import Condition, Study, study_from
from tune_ssl.study.trial import renewed

WRITTEN = {  # what each event has that a run goes on from
    **dict.fromkeys(log.BEGINNINGS, ("number", "config", "seed", "digest", "time")),
    **dict.fromkeys(log.ENDINGS, ("value", "step", "metrics", "time")),
    log.LOCKED: ("config", "digest", "value"),
    **dict.fromkeys((log.REOPENED, log.CUT, log.EXHAUSTED), ("reason", "time")),
    log.PLANNED: ("variant", "changes", "config", "retune", "switches"),
}


def create(study: Study, stores: dict[str, Store], runs: Path, name: str, command: str) -> Path:
    """A new run folder with its study.yaml. UserError if it exists or cannot be written."""
    run = runs / name
    refuse_existing(run)
    content = to_yaml(log.plain(describe(study, stores, name, command)))
    try:
        runs.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=runs))
    except OSError as error:
        raise _unwritable(run, error.strerror) from None
    try:
        (begun / log.STUDY).write_text(content, encoding="utf-8")
        sync(begun / log.STUDY)
        begun.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would shut out others who read the runs
        begun.rename(run)
        sync(runs)
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
    """UserError if something of that name is there, or no folder can be; a search asks this before anything slow."""
    if os.path.lexists(run):  # unlike Path.exists, never an error
        verb = "ablate" if Ledger.glance(run).only_ablates else "search --resume"
        text = f"exists already; `tune-ssl {verb} {run.name}` goes on with it, "
        raise UserError(Problem(text + "another --name starts afresh", str(run)))
    above = next(path for path in run.parents if os.path.exists(path))
    if not os.path.isdir(above):
        raise _unwritable(run, f"{above} is a file")


def refuse_without_search(run: Path, ledger: Ledger) -> None:
    """UserError if the run is the ablation of a file, in which nothing is searched."""
    if ledger.only_ablates:
        text = f"has an ablation and no search; `tune-ssl ablate {run.name}` goes on with it"
        raise UserError(Problem(text, str(run)))


def stores_of(run: Path) -> dict[str, tuple[str, str]]:
    """condition -> the (digest, path) of the store that the run began with; an older run names a digest alone."""
    about = read_yaml(run / log.STUDY).data
    try:
        first = about["dataset"]["digest"]
        return {
            str(each["id"]): (str(each.get("data") or first), str(each.get("store") or ""))
            for each in about["conditions"]
        }
    except (KeyError, TypeError, AttributeError):
        text = "was not written by `tune-ssl search`"
        raise UserError(Problem(text, str(run / log.STUDY))) from None


def _unwritable(run: Path, reason: str | None) -> UserError:
    return UserError(Problem(f"cannot be written: {reason}", str(run)))


def find_run(runs: Path, name: str) -> Path:
    """The run folder of that path, or of that name in `runs`. UserError if there is none."""
    run = Path(name) if os.path.exists(Path(name, log.STUDY)) else runs / name
    if not os.path.exists(run / log.STUDY):
        known = sorted(p.parent.name for p in runs.glob(f"[!.]*/{log.STUDY}"))
        hint = f" (in {runs} there are: {', '.join(known)})" if known else ""
        text = f"is not a run folder{nearest(name, known)}{hint}"
        raise UserError(Problem(text, str(run)))
    log.refuse_links(run)
    return run


def reopen(runs: Path, name: str) -> tuple[Path, Study]:
    """An existing run folder and the study in it, with its plugins. UserError if it is none."""
    run = find_run(runs, name)
    path = run / log.STUDY
    described = read_yaml(path).data
    study, source = described.get("study"), described.get("source")
    if not isinstance(study, dict) or not isinstance(source, str):
        raise UserError(Problem("was not written by `tune-ssl search`", str(path)))
    plugins = run_plugins(run)
    if isinstance(study.get("study"), dict):  # a key of older versions, which means nothing now
        study["study"].pop("optuna_storage", None)
    if isinstance(study.get("fixed"), dict):
        study["fixed"] = renewed(study["fixed"])
    try:
        found = study_from(study, Path(source), plugins)
    except UserError as error:
        raise UserError(replace(problem, where=str(path)) for problem in error.problems) from None
    refuse_changed(run, {condition.id for condition in found.conditions})
    return run, found


def refuse_changed(run: Path, conditions: Collection[str]) -> None:
    """UserError for an event that no run writes: one that lacks a field, or is of another condition."""
    path = run / log.TRIALS
    for event in log.scan(path):
        log.expect(path, event, *WRITTEN[event["event"]])
        if event["condition"] not in conditions:
            text = f"has a record of condition {shown(event['condition'])}, which the run's study lacks"
            raise UserError(Problem(text, str(path)))


class Listed(NamedTuple):
    """A condition as study.yaml lists it: `cell` is its id without the method, where several are compared."""

    id: str
    cell: str
    method: str | None


def listed_conditions(run: Path) -> list[Listed]:
    """The run's conditions, in order. UserError if it has none."""
    path = run / log.STUDY
    listed = read_yaml(path).data.get("conditions")
    if not isinstance(listed, list) or not all(isinstance(c, dict) and "id" in c for c in listed):
        raise UserError(Problem("was not written by `tune-ssl search`", str(path)))
    return [
        Listed(str(entry["id"]), str(entry.get("cell", entry["id"])), entry.get("method"))
        for entry in listed
    ]


def by_cell(conditions: Iterable[Listed | Condition]) -> dict[str, list[str]]:
    """cell -> the ids of its conditions, one for each method, in order"""
    cells: dict[str, list[str]] = {}
    for condition in conditions:
        cells.setdefault(condition.cell, []).append(condition.id)
    return cells


def condition_ids(run: Path) -> list[str]:
    """The ids of the run's conditions, in order. UserError if it has none."""
    return [condition.id for condition in listed_conditions(run)]


def run_plugins(run: Path) -> tuple[Plugin, ...]:
    """Load the plugins that a run began with. UserError if one is gone or is another one now."""
    path = run / log.STUDY
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


def choose_condition(run: Path, wanted: str | None) -> str:
    """The id of the wanted condition, or of the only one there is; of a comparison's cell that of the winner.

    Of several methods in one cell the winner is chosen on validation images (`Ledger.best_of`). UserError for an
    unknown condition, for none named of several, and for a cell without a finished trial.
    """
    listed = listed_conditions(run)
    cells = by_cell(listed)
    if wanted in [condition.id for condition in listed]:
        return str(wanted)
    if wanted is None and len(cells) > 1:
        text = f"has {len(cells)} conditions: give --condition with one of {', '.join(cells)}"
        raise UserError(Problem(text, str(run)))
    cell = next(iter(cells)) if wanted is None else wanted
    if cell not in cells:
        known = list(dict.fromkeys((*cells, *(condition.id for condition in listed))))
        raise UserError(Problem(unknown("condition", cell, known), "--condition"))
    if len(cells[cell]) == 1:
        return cells[cell][0]
    mode = str(read_yaml(run / log.STUDY).data.get("mode"))
    winner = Ledger.glance(run).best_of(cells[cell], mode)
    if winner is None:
        raise UserError(Problem(f"has no finished trial in condition {cell} yet", str(run)))
    return winner
