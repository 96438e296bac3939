"""A run that went on after its end, in sentences: what was changed, chosen anew, or left undone."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.read.changes import Change, changes
from analysis.read.load import Runs
from tune_ssl.records import log


def change_sentences(runs: Runs) -> Iterator[str]:
    """What was changed, when, and what that means for the choices."""
    for change in changes(runs):
        said = log.changes_in_words(change.settings)
        yield f"{change.run} went on with {said} at {change.time}: {_choices(change)}."


def reopened_caveats(runs: Runs) -> Iterator[str]:
    """The conditions whose choice was taken back with test data in sight."""
    for study in runs.studies:
        ledger = runs.ledgers[study.run]
        for condition, events in ledger.reopened.items():
            times = f"{len(events)} time{'' if len(events) == 1 else 's'}"
            locked = condition in ledger.locked
            yield (
                f"{study.label}, {condition}: the configuration {'was' if locked else 'is being'} chosen anew after "
                f"its test data had been opened ({times}): its test figures are not those of a config that was "
                "chosen blindly."
            )


def seeds_caveats(runs: Runs) -> Iterator[str]:
    """The runs that got more seeds once test values had been seen: p takes their number for fixed beforehand."""
    for change in changes(runs):
        if "seeds" in change.settings and change.opened:
            yield (
                f"{change.run}: seeds were added after test values had been seen: a p value takes their number for "
                "fixed beforehand, and is too small where they were added until something was decided."
            )


def cut_caveats(runs: Runs) -> Iterator[str]:
    """What a time budget left undone."""
    for study in runs.studies:
        for event in runs.ledgers[study.run].cut:
            why = event.get("reason") or "work was left undone"
            yield f"{study.label}, {event['condition']}, {event['phase']}: {why}."


def old_reference_caveats(runs: Runs) -> Iterator[str]:
    """The ablations of a config that is not the chosen one any more."""
    for study in runs.studies:
        ledger = runs.ledgers[study.run]
        for condition in ledger.planned:
            if ledger.ablates_old_choice(condition):
                yield (
                    f"{study.label}, {condition}: the ablation takes the config apart that was chosen before a "
                    "reopening, and not the chosen one."
                )


def _choices(change: Change) -> str:
    stand = [condition for condition in change.opened if condition not in change.reopened]
    if not change.opened:
        return "no test data was open then"
    parts = []
    if change.reopened:
        parts.append(
            f"the test data of {_listed(change.reopened)} was open, and the choice was taken back"
        )
    if stand:
        parts.append(
            f"of {_listed(stand)} the choice was made before the test data was opened and stands"
        )
    return "; ".join(parts)


def _listed(conditions: list[str] | tuple[str, ...]) -> str:
    return " and ".join(conditions)
