"""What was changed when a run went on, as its study.yaml and its records have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.read.load import Runs
from analysis.read.study import Study


@dataclass(frozen=True)
class Change:
    """One time that a run went on with other settings: key -> (before, after).

    `opened` are the conditions, by the run's own ids, whose test data was open by then; `reopened`
    those of them whose choice was taken back for it.
    """

    run: str
    time: str
    settings: Mapping[str, tuple[Any, Any]]
    opened: tuple[str, ...]
    reopened: tuple[str, ...]


def changes(runs: Runs) -> Iterator[Change]:
    """Those of each run folder in order; a run that compares methods is one folder."""
    folders = {
        study.path: [s for s in runs.studies if s.path == study.path] for study in runs.studies
    }
    for studies in folders.values():
        raw = studies[0].raw
        for entry in _mappings(raw.get("changes")):
            opened = tuple(map(str, entry.get("opened") or ()))
            taken = {c for s in studies for c in _reopened_by(runs, s, entry.get("command"))}
            again = tuple(condition for condition in opened if condition in taken)
            name, time = str(raw["name"]), str(entry.get("time"))
            yield Change(name, time, _settings(entry.get("settings")), opened, again)


def _mappings(listed: Any) -> list[Mapping[str, Any]]:
    """The entries that are mappings; somebody may have changed the file."""
    found = listed if isinstance(listed, (list, tuple)) else ()
    return [entry for entry in found if isinstance(entry, Mapping)]


def _settings(found: Any) -> dict[str, tuple[Any, Any]]:
    pairs = found if isinstance(found, Mapping) else {}
    return {str(key): (pair[0], pair[-1]) for key, pair in pairs.items() if isinstance(pair, list)}


def _reopened_by(runs: Runs, study: Study, command: object) -> Iterator[str]:
    """The conditions, by the run's own ids, that this command took the choice of back."""
    own = {name: whole for whole, name in (study.renamed or {}).items()}
    for condition, events in runs.ledgers[study.run].reopened.items():
        if any(event.get("reason") == command for event in events):
            yield own.get(condition, condition)
