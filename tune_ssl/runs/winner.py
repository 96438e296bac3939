"""`tune-ssl best`: a condition's winning spec as a study file, for train, check and search."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError, printable, unknown
from tune_ssl.base.spec import StudySpec, digest
from tune_ssl.base.yaml_file import read_yaml, to_yaml
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import by_cell, choose_condition, reopen
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import TrialSpec, override

SEARCHING = ("name", "searcher", "sampler", "scheduler", "grace_period", "reduction_factor")


@dataclass(frozen=True)
class Winner:
    """A condition's chosen config. `value` is its tuning score over `seeds`, `of` so many candidates.

    `spec` has the first fresh seed, so that training it repeats the first run of the confirmation.
    """

    index: int
    condition: Condition
    trial: str
    config: dict[str, Any]
    digest: str
    value: float
    locked: bool
    seeds: tuple[int, ...]
    of: int
    spec: TrialSpec


def winners(run: Path, study: Study, condition: str | None, *, every: bool) -> list[Winner]:
    """The winner of a condition; with `every` and none named, those of all conditions that have one.

    Of a comparison a condition's winner is that of the method which wins there on validation images. What is
    locked is taken; before that, what the selection rule picks now.

    Raises:
        UserError: an unknown condition, none named of several, or no finished trial.
    """
    known = [condition.id for condition in study.conditions]
    ledger = Ledger.glance(run)
    if condition is None and every:
        cells = by_cell(study.conditions).values()
        bests = [ledger.best_of(ids, study.settings.mode) for ids in cells]
        found = [_winner(ledger, study, known.index(best)) for best in bests if best is not None]
        if not any(found):
            raise UserError(Problem("has no finished search trial yet", str(run)))
        return [winner for winner in found if winner]
    wanted = choose_condition(run, condition)
    winner = _winner(ledger, study, known.index(wanted))
    if winner is None:
        raise UserError(
            Problem(f"has no finished search trial in condition {wanted} yet", str(run))
        )
    return [winner]


def study_of_trial(run: Path, trial: str) -> Study:
    """The study whose fixed part is the whole spec of one of a run's trials. UserError if it has none of that name."""
    run, study = reopen(run.parent, str(run))
    ledger = Ledger.glance(run)
    begun = ledger.begun.get(trial)
    if begun is None:
        raise UserError(Problem(unknown("trial", trial, list(ledger.begun)[:20]), "--trial"))
    condition = next(c for c in study.conditions if c.id == begun["condition"])
    spec = override(condition.spec, {**begun["config"], "seed": begun["seed"]})
    entry = next(entry for entry in study.entries if entry.label == condition.method)
    alone = replace(entry, fixed=spec, axes={}, search={}, ablate={})
    return replace(study, entries=(alone,))


def _winner(ledger: Ledger, study: Study, index: int) -> Winner | None:
    condition, settings = study.conditions[index], study.settings
    best = ledger.best(condition.id, settings.mode)
    if best is None:
        return None
    start = ledger.begun[best.trial]
    repeats = {
        begun["seed"]
        for _, begun, _ in ledger.trials(condition.id, log.FINALIST)
        if begun.get("repeats") == best.trial
    }
    return Winner(
        index=index,
        condition=condition,
        trial=best.trial,
        config=start["config"],
        digest=start["digest"],
        value=best.value,
        locked=best.locked,
        seeds=(settings.tuning_seed, *sorted(repeats)),
        of=len(ledger.scores(condition.id, settings.mode, log.SEARCH)),
        spec=override(condition.spec, {**start["config"], "seed": settings.seeds[0]}),
    )


def as_yaml(run: Path, study: Study, winner: Winner) -> str:
    """The study file: the whole spec as its fixed part, no conditions, nothing searched."""
    settings = study.settings.model_dump(mode="json", exclude=set(SEARCHING))
    defaults = StudySpec().model_dump(mode="json")
    kept = {k: v for k, v in settings.items() if v != defaults[k] or k in ("metric", "seeds")}
    body = {
        "fixed": winner.spec.model_dump(mode="json"),
        "study": {**kept, "num_trials": 1, "finalists": 1},
    }
    lines = "".join(f"# {printable(line)}\n" for line in about(run, study, winner))
    return lines + to_yaml(body)


def about(run: Path, study: Study, winner: Winner) -> list[str]:
    """Where the spec comes from, how good it looked where it was chosen, and what to do with it."""
    described = read_yaml(run / log.STUDY).data
    settings, spec, seeds = study.settings, winner.spec, winner.seeds
    tuned = digest(override(spec, {"seed": settings.tuning_seed}))
    over = "tuning seed" if len(seeds) == 1 else "mean over tuning seeds"
    lines = [
        f"{spec.method.name} on {spec.data.dataset}, condition {winner.condition.id}: "
        f"the config of trial {winner.trial} of run {run}.",
        "It is locked: its results are those on the fresh seeds."
        if winner.locked
        else "Nothing is locked yet: it is what the selection rule picks now, and not confirmed.",
        f"{settings.metric} {winner.value:.4f} on validation images, {over} {_listed(seeds)}: "
        f"the best of {winner.of} finished trials,",
        "and for that too good. It has no interval and is no result; "
        f"`tune-ssl report {run}` has those.",
        f"Digest {winner.digest} with tuning seed {settings.tuning_seed}, {digest(spec)} with seed "
        f"{spec.seed}, as below.",
        f"Dataset digest {described['dataset']['digest']}, tune-ssl "
        f"{described['versions']['tune_ssl']}.",
    ]
    if tuned != winner.digest:
        lines.append(f"This tune-ssl gives it the digest {tuned}: its defaults are others.")
    lines += [f"Needs --plugin {plugin.path} (digest {plugin.digest})." for plugin in study.plugins]
    again = f"    (as c{winner.index}-confirm-s{spec.seed} was)" if winner.locked else ""
    return [
        *lines,
        f"Train it:   tune-ssl train FILE{again}",
        f"Confirm it: tune-ssl search FILE    (on seeds {_listed(settings.seeds)})",
    ]


def write(run: Path, study: Study, chosen: list[Winner], out: Path) -> list[Path]:
    """One file, or a file of each winner in the folder `out` where the study has several conditions.

    Raises:
        UserError: a file is there already, or cannot be written. Then none is written.
    """
    into = out.is_dir() or len(chosen) > 1
    paths = [out / file_name(winner) for winner in chosen] if into else [out]
    if taken := [path for path in paths if os.path.lexists(path)]:
        raise UserError(Problem("exists already", str(path)) for path in taken)
    written: list[Path] = []
    try:
        if into:
            out.mkdir(parents=True, exist_ok=True)
        for path, winner in zip(paths, chosen, strict=True):
            text = as_yaml(run, study, winner)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise UserError(Problem(f"cannot be written: {error.strerror}", str(out))) from None
    return paths


def file_name(winner: Winner) -> str:
    """Of a study file that gives its run a name: letters, digits, dot, underscore and minus."""
    condition = re.sub(r"[^A-Za-z0-9._-]+", "-", winner.condition.id)[:60]
    return f"c{winner.index}-{condition}.yaml"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
