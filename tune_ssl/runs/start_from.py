"""`study.start_from: [RUN]`: the winners of earlier runs, written into a new study as the configs that they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError, nearest
from tune_ssl.data.store import Store
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import reopen, stores_of
from tune_ssl.study.given import WORDS, fitted
from tune_ssl.study.study import FROM, OF, Study


def with_starts(study: Study, stores: dict[str, Store], runs: Path) -> Study:
    """The study with each run that `start_from` names replaced by its winners' configs, the run's name beside them.

    UserError for what is no run, one on other images, and one that searched none of the same keys or has no winner.
    """
    found: list[Any] = []
    for entry in study.settings.start_from:
        if isinstance(entry, dict) or entry in WORDS:
            found.append(entry)
            continue
        try:
            found += _winners(study, stores, runs, entry)
        except UserError as error:
            place = study.file.where(("study", "start_from"))
            raise UserError(
                Problem(
                    f"names {entry}{nearest(entry, WORDS)}: {problem}",
                    "study.start_from",
                    place,
                )
                for problem in error.problems
            ) from None
    return replace(study, settings=study.settings.model_copy(update={"start_from": found}))


def _winners(
    study: Study, stores: dict[str, Store], runs: Path, name: str
) -> Iterator[dict[str, Any]]:
    run, other = reopen(runs, name)
    images = {digest for digest, _ in stores_of(run).values()}
    own = {store.digest for store in stores.values()}
    if not images & own:
        text = (
            f"has images of digest {', '.join(sorted(images))}, and not of {', '.join(sorted(own))}"
        )
        raise UserError(Problem(text, str(run)))
    ledger, taken, methods = Ledger.glance(run), [], set()
    of_one = not study.compares and not other.compares
    for condition in other.conditions:
        mine = next((e for e in study.entries if of_one or e.label == condition.method), None)
        best = ledger.best(condition.id, other.settings.mode)
        if mine is None or mine.fixed.method.name != condition.spec.method.name:
            continue
        methods.add(mine.label)
        config = ledger.begun[best.trial]["config"] if best else {}
        known = {key: value for key, value in config.items() if key in mine.search}
        if shared := fitted(mine.search, known):
            taken.append({FROM: f"{run.name}, {condition.id}", OF: mine.label, **shared})
    if not taken:
        won = any(ledger.best(c.id, other.settings.mode) for c in other.conditions)
        text = "searched none of the keys that this study searches"
        if not won:
            text = "has no finished trial"
        elif not methods:
            theirs, ours = (", ".join(e.label for e in one.entries) for one in (other, study))
            text = f"is of {theirs}, and not of {ours}"
        raise UserError(Problem(text, str(run)))
    yield from taken
