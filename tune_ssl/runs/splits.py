"""The data of a run and the splits of its labels, drawn and written down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.retry import until_it_works
from tune_ssl.data.splits import make_split
from tune_ssl.data.store import Store, prepare
from tune_ssl.records import log
from tune_ssl.study.study import Condition, Study


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


def record_splits(
    run: Path,
    study: Study,
    stores: dict[str, Store],
    seeds: list[int],
    tell: Callable[[str], None] = print,
) -> dict[tuple[str, int], str]:
    """Save the split of each (condition, seed) once; returns their digests. Stopped where the disk stays full."""
    path = run / log.SPLITS
    known = {(r["condition"], r["seed"]): r["digest"] for r in log.read(run / log.SPLITS)}
    for condition in study.conditions:
        for seed in seeds:
            if (condition.id, seed) in known:
                continue
            split = _split(stores[condition.id], condition, seed)
            line = {"condition": condition.id, "seed": seed, **split.to_record()}
            write = partial(log.append, path, line | {"digest": split.digest})
            until_it_works(write, OSError, f"{path} cannot be written", tell)
            known[condition.id, seed] = split.digest
    return known


def validation_count(store: Store, condition: Condition, seed: int) -> int:
    """Images that a trial of this condition is validated on."""
    if store.val is not None and condition.spec.data.validation == "split":
        return len(store.val.labels)
    return len(_split(store, condition, seed).validation)


def _split(store: Store, condition: Condition, seed: int) -> Any:
    spec = condition.spec.model_copy(update={"seed": seed})
    return make_split(
        store.train.labels,
        store.class_names,
        spec.data,
        seed=spec.split_seed,
        has_val=store.val is not None,
    )
