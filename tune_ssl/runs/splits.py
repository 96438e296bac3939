"""The data of a run and the splits of its labels, drawn and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.retry import until_it_works
from tune_ssl.base.spec import UNBALANCED, DataSpec
from tune_ssl.data.folder import first_names
from tune_ssl.data.sets import split_of
from tune_ssl.data.splits import Split
from tune_ssl.data.store import Store, changes_since, pinned_store, prepare
from tune_ssl.models import TIMM
from tune_ssl.records import log
from tune_ssl.records.decisions import LEAST_SEEDS, smallest_effect
from tune_ssl.records.ties import half_width
from tune_ssl.study.named import cautions
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import check_contrast, override

Ints = NDArray[np.int64]

SEEN = 1.5  # standard deviations: a difference that is larger need not be said to be small
PROPOSED = 10  # seeds
FEW_VALIDATION = 30  # images, of which a 95 % half-width is 25 points
FEW_OF_A_CLASS = 5  # likewise, of which one image is 20 points of its class


def check_data(
    study: Study, began: Mapping[str, tuple[str, str]] | None = None, negatives: bool = True
) -> dict[str, Store]:
    """Open (or build) the store of each condition and draw its split. UserError with file:line.

    `began` has the (digest, path) of the store that each condition of a run began with: those are used again.
    `negatives` asks whether there are images enough for what contrasts them.
    """
    stores: dict[str, Store] = {}
    found: dict[Problem, list[str]] = {}
    opened: dict[str, Store] = {}  # by the keys that say which images they are
    drawn: set[str] = set()  # by all keys of `data` that methods share
    for condition in study.conditions:
        try:
            spec = condition.data
            images = spec.of_images().model_dump_json()
            if images not in opened:
                pinned = began.get(condition.id) if began else None
                opened[images] = (
                    prepare(spec) if pinned is None else pinned_store(spec, pinned[1], pinned[0])
                )
            store = stores[condition.id] = opened[images]
            data = spec.model_dump_json(exclude={"batch_size", "mu"})
            for seed in (*study.settings.tuning_seeds, *study.settings.seeds):
                if data not in drawn:
                    _split(store, condition, seed)
            drawn.add(data)
            check_models(condition, store)
            if negatives:
                check_negatives(condition, store, study)
        except UserError as error:
            for problem in error.problems:
                place = problem.where or study.where(problem.key, condition.method)
                found.setdefault(replace(problem, where=place), []).append(condition.id)
    if found:
        everywhere = len(study.conditions)
        raise UserError(
            Problem(
                p.text if len(ids) == everywhere else f"{p.text} (condition {', '.join(ids)})",
                p.key,
                p.where,
            )
            for p, ids in found.items()
        )
    return stores


def store_of(
    condition: Condition, data: DataSpec, stores: Mapping[str, Store], others: dict[str, Store]
) -> Store:
    """The images of a trial: those of its condition, unless its config is about them: then of `others`."""
    images = data.of_images()
    if images == condition.data.of_images():
        return stores[condition.id]
    key = images.model_dump_json()
    if key not in others:
        others[key] = prepare(images)
    return others[key]


def check_negatives(condition: Condition, store: Store, study: Study) -> None:
    """UserError where a trial contrasts more images in a step than it may take for unlabeled ones."""
    if any(stage.contrasts for stage in condition.spec.stages()):
        own = len(_split(store, condition, study.settings.tuning_seed).unlabeled)
        more = len(store.unlabeled.labels) if store.unlabeled else 0
        check_contrast(condition.spec, own + more)


def without_negatives(study: Study, stores: Mapping[str, Store]) -> dict[str, str]:
    """method -> why its steps have too few or too many images to contrast, of a comparison's conditions."""
    found = {}
    for condition in study.conditions:
        try:
            check_negatives(condition, stores[condition.id], study)
        except UserError as error:
            found[condition.method or ""] = str(error.problems[0])
    return found


def check_models(condition: Condition, store: Store) -> None:
    """UserError where an encoder of the condition, or of its search, does not take the images or its weights."""
    ends = {k: d.ends() for k, d in condition.search.items() if k.startswith("model.")}
    for values in [{}, *({key: value} for key, of in ends.items() for value in of)]:
        model = override(condition.spec, values).model
        plain = model.weights == "none" and model.freeze in ("all", "none") and model.mean is None
        if model.encoder.startswith(TIMM) or not plain:  # else there is nothing to load torch for
            from tune_ssl.models.fit import check_fit

            check_fit(model, store.task(condition.data))


def changed_folders(study: Study, stores: dict[str, Store]) -> list[str]:
    """A sentence for each store of which the user's files differ by now: a run goes on with what it began with."""
    lines = {}
    for condition in study.conditions:
        store = stores[condition.id]
        if store.path in lines:
            continue
        try:
            changes = changes_since(store, condition.data)
        except UserError as error:
            changes = str(error.problems[0])
        lines[store.path] = changes and (
            f"the images have changed since this run began ({changes}): it goes on with those of {store.path}"
        )
    return [line for line in lines.values() if line]


def caveats(study: Study, stores: dict[str, Store]) -> list[str]:
    """What was left out of the data, and what the number of validation images does not let a study see.

    All of it is said before anything is trained.
    """
    unique = {store.path: store for store in stores.values()}
    lines = list(dict.fromkeys(line for store in unique.values() for line in store.remarks()))
    lines += [*cautions(study.settings), *_decides(study)]
    cells = {c.cell: c for c in study.conditions}
    uneven = any(key in c.data.model_dump() for c in cells.values() for key in UNBALANCED)
    for condition in cells.values():
        store, seed = stores[condition.id], study.settings.tuning_seed
        split = _split(store, condition, seed)
        validated, labels = _validation_labels(store, split), len(split.labeled)
        count = len(validated)
        if uneven:
            lines.append(f"{condition.cell}: {_composition(condition.data, store, split)}")
        per_class = np.bincount(validated, minlength=len(store.class_names))
        thin = {
            name: int(n)
            for name, n in zip(store.class_names, per_class, strict=True)
            if 0 < n < FEW_OF_A_CLASS
        }
        absent = [n for n, k in zip(store.class_names, per_class, strict=True) if not k]
        if absent:
            present = len(store.class_names) - len(absent)
            lines.append(
                f"{condition.cell}: {first_names(absent)} without validation image: mean_class_accuracy averages "
                f"{present} of {len(store.class_names)} classes"
            )
        if thin:
            least = min(thin, key=lambda name: thin[name])
            jump = 100 / thin[least] / (len(store.class_names) - len(absent))
            few = first_names([f"{name} {n}" for name, n in thin.items()])
            lines.append(
                f"{condition.cell}: few validation images of a class ({few}): one image of {least} moves "
                f"mean_class_accuracy by {jump:.0f} points"
            )
        points = min(100.0, 100 * half_width(count))
        if count < FEW_VALIDATION:
            lines.append(
                f"{condition.cell}: {count} validation images: a share of them is known to +-{points:.0f} points, so "
                "that the choice between configurations is close to chance"
            )
        if count > labels and condition.spec.data.validation == "split":
            lines.append(
                f"{condition.cell}: {count} labeled images validate what {labels} train; "
                "data.validation=within_budget takes them out of the budget"
            )
    return lines


def _composition(data: DataSpec, store: Store, split: Split) -> str:
    """How many labeled and unlabeled images there are, of the largest and the smallest class and of others."""
    labeled, unlabeled = (store.train.labels[rows] for rows in (split.labeled, split.unlabeled))
    count, every = len(store.class_names), len(store.meta["class_names"])
    of = f" of {count} of {every} classes" if count < every else ""
    said = f"{len(labeled)} labeled images{of}, {_span(labeled, store)}; {len(unlabeled)} unlabeled"
    if data.unlabeled_mismatch is None:
        said += f", {_span(unlabeled, store)}"
    else:
        said += f", {100 * float((unlabeled < 0).mean()):.0f} % of them of other classes"
    if store.unlabeled is not None:
        said += f", and {len(store.unlabeled.labels)} of the dataset's own, as they are"
    return said


def _span(labels: Ints, store: Store) -> str:
    """The largest class and the smallest one."""
    counts = np.bincount(labels, minlength=len(store.class_names))
    most, least = int(counts.argmax()), len(counts) - 1 - int(counts[::-1].argmin())
    names = store.class_names
    return f"{counts[most]} of {names[most]} to {counts[least]} of {names[least]}"


def _decides(study: Study) -> list[str]:
    """What the fresh seeds can decide, by the rule of the report; nothing of a study without any."""
    seeds = len(study.settings.seeds)
    cells = len({condition.cell for condition in study.conditions})
    methods = len({condition.method for condition in study.conditions})
    pairs = cells * max(1, methods - 1)
    if seeds < LEAST_SEEDS:
        return [
            f"study.seeds has {seeds}: nothing is decided with fewer than {LEAST_SEEDS} fresh seeds, and no interval "
            "of them is a 95 % one"
        ]
    if seeds >= PROPOSED or (effect := smallest_effect(seeds, pairs)) <= SEEN:
        return []
    which = (
        f"of {pairs} comparisons only those are"
        if methods > 1
        else "beside another method only what is"
    )
    return [
        f"study.seeds has {seeds}: {which} decided whose difference is {effect:.1f} times its own spread over seeds; "
        f"with {PROPOSED} seeds {smallest_effect(PROPOSED, pairs):.1f} times"
    ]


def _validation_labels(store: Store, split: Split) -> Any:
    """The class of each validation image, (N,)."""
    if split.validation_part == "val" and store.val is not None:
        return store.val.labels[store.val.rows]
    return store.train.labels[split.validation]


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


def label_budget(store: Store, condition: Condition, seed: int) -> int:
    """Labels that a trial of this condition is given: those that train, and those of the budget that validate."""
    split = _split(store, condition, seed)
    within = condition.data.validation == "within_budget"
    return len(split.labeled) + (len(_validation_labels(store, split)) if within else 0)


def validation_count(store: Store, condition: Condition, seed: int) -> int:
    """Images that a trial of this condition is validated on."""
    return len(_validation_labels(store, _split(store, condition, seed)))


def _split(store: Store, condition: Condition, seed: int) -> Split:
    spec = condition.spec.model_copy(update={"seed": seed})
    return split_of(store, spec.data, spec.split_seed)
