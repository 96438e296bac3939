"""A run that goes on with more: trials, finalists, fresh seeds or time; each change is written down in study.yaml."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.base.files import write_atomically
from tune_ssl.base.spec import StudySpec
from tune_ssl.base.yaml_file import YamlFile, parse_value, read_yaml, to_yaml
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.describe import command_line
from tune_ssl.study.domains import trials_of
from tune_ssl.study.overrides import apply_overrides, keys_of
from tune_ssl.study.study import Condition, Study, checked

CHOOSING = ("num_trials", "finalists")  # more of them is a new choice
NEVER_NONE = (*CHOOSING, "seeds", "max_retries", "loggers")
FREE = ("seeds", "time_budget", "max_concurrent", "max_retries", "loggers")


def extended(study: Study, overrides: Sequence[str], run: Path) -> Study:
    """The run's study with more of what CHOOSING and FREE name. UserError for other keys, and for less."""
    problems = [p for text in overrides for p in _other_key(text)]
    if problems:
        raise UserError(problems)
    file = YamlFile(study.source, study.resolved())
    found = checked(file, list(apply_overrides(file, overrides)))
    problems = list(_less(study, found, run))
    if problems:
        raise UserError(problems)
    return replace(found, file=study.file, name=study.name, plugins=study.plugins)


def changed(before: Study, after: Study) -> dict[str, list[Any]]:
    """key -> [before, after] of the settings that differ"""
    old, new = (s.settings.model_dump(mode="json") for s in (before, after))
    return {key: [old[key], new[key]] for key in (*CHOOSING, *FREE) if old[key] != new[key]}


def reopening(before: Study, after: Study, ledger: Ledger, reopen: bool) -> list[log.Record]:
    """An event for each condition whose choice is taken back. UserError where that is not allowed.

    A condition that is locked has opened its test data: to choose again after that is what no search may do
    unseen. One in which there is nothing more to choose among keeps its choice.
    """
    choosing = [key for key in CHOOSING if key in changed(before, after)]
    gaining = [
        c for c in after.conditions if c.id in ledger.locked and _gains(before, after, c, ledger)
    ]
    if choosing and ledger.locked and not reopen:
        key, condition = choosing[0], next(iter(ledger.locked))
        text = (
            f"is {getattr(after.settings, key)}, but the config of condition {condition} is chosen and its test data "
            "was opened; --reopen chooses anew, and the report says so. study.seeds needs no new choice"
        )
        raise UserError(Problem(text, f"study.{key}"))
    if reopen and not gaining and set(ledger.reopened) <= set(ledger.locked):
        why = "there is no other config to choose: every config of the space was tried"
        if not choosing:
            why = f"nothing new is to be chosen: give study.{' or study.'.join(CHOOSING)}"
        raise UserError(Problem(f"takes back what was chosen, but {why}", "--reopen"))
    return [
        {
            "event": log.REOPENED,
            "phase": log.CONFIRM,
            "trial": None,
            "condition": condition.id,
            "reason": command_line(),
        }
        for condition in gaining
        if reopen
    ]


def _gains(before: Study, after: Study, condition: Condition, ledger: Ledger) -> bool:
    """Whether a condition gets trials or finalists that it did not have."""
    old, new = before.settings, after.settings
    trials = trials_of(new.searcher, condition.search, new.num_trials)
    begun = sum(1 for _ in ledger.trials(condition.id, log.SEARCH))
    finished = len(ledger.scores(condition.id, new.mode, log.SEARCH))
    finished += len(ledger.runners_up(condition.id, new.mode, new.finalists))
    more = min(new.finalists, finished) > min(old.finalists, finished)
    return more or (trials > begun and (condition.id, None) not in ledger.exhausted)


def write_changes(run: Path, changes: dict[str, list[Any]], opened: Sequence[str]) -> None:
    """Write the settings into study.yaml, and what they were before. `opened` names conditions that are locked."""
    described = read_yaml(run / log.STUDY).data
    described["study"]["study"].update({key: new for key, (_, new) in changes.items()})
    described.setdefault("changes", []).append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command_line(),
            "settings": changes,
            "opened": list(opened),
        }
    )
    text = to_yaml(log.plain(described)).encode()
    write_atomically(run / log.STUDY, lambda file: file.write(text))


def _other_key(text: str) -> Iterator[Problem]:
    name, _, value = (part.strip() for part in text.partition("="))
    section, *rest = keys_of(name)
    key, place = ".".join(map(str, rest)), f"override {text}"
    allowed = [f"study.{key}" for key in (*CHOOSING, *FREE)]
    if section == "study" and key in (*CHOOSING, *FREE):
        if key in NEVER_NONE and _is_null(value):
            yield Problem("must have a value", name, place)
    elif section == "study" and key in StudySpec.model_fields:
        why = "cannot be changed in a run that has begun"
        yield Problem(f"{why} (what can: {', '.join(allowed)})", name, place)
    else:
        yield Problem(unknown("key that a run can be taken on with", name, allowed), where=place)


def _is_null(value: str) -> bool:
    with contextlib.suppress(ValueError):  # said where the override is written
        return parse_value(value) is None
    return False


def _less(before: Study, after: Study, run: Path) -> Iterator[Problem]:
    old, new = before.settings, after.settings
    for key in CHOOSING:
        if getattr(new, key) < getattr(old, key):
            text = f"is {getattr(new, key)}, but the run has {getattr(old, key)}: it can only be raised"
            yield Problem(text, f"study.{key}", str(run))
    if missing := [seed for seed in old.seeds if seed not in new.seeds]:
        text = f"is {new.seeds}, but must have the run's own {missing} too"
        yield Problem(text, "study.seeds", str(run))
    if new.seeds[: len(old.seeds)] != old.seeds and not missing:
        text = f"is {new.seeds}, but must begin with the run's own {old.seeds}"
        yield Problem(text, "study.seeds", str(run))
    if new.num_trials != old.num_trials and old.searcher == "grid":
        text = f"is {new.num_trials}, but a grid of more points is another grid: begin a new run"
        yield Problem(text, "study.num_trials", str(run))
