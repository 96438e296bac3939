"""The one reading of a run's records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tune_ssl.records import log
from tune_ssl.records.log import Record


def latest_reports(reports: Iterable[Record]) -> list[Record]:
    """One report per (trial, stage, step): the last one written, in the order of first writing."""
    kept: dict[tuple[Any, Any, Any], Record] = {}
    for report in reports:
        kept[report["trial"], report["stage"], report["step"]] = report
    return list(kept.values())


def latest_galleries(galleries: Iterable[Record]) -> list[Record]:
    """One gallery per (trial, name): the last one written, in the order of first writing."""
    kept: dict[tuple[Any, Any], Record] = {}
    for gallery in galleries:
        kept[gallery["trial"], gallery["name"]] = gallery
    return list(kept.values())


def endings(events: Iterable[Record]) -> dict[str, Record]:
    """trial -> the event that ended it (the first one: an ending is final)."""
    ended: dict[str, Record] = {}
    for event in events:
        if event["event"] in log.ENDINGS:
            ended.setdefault(event["trial"], event)
    return ended


def tuned(starts: Mapping[str, Record], ended: Mapping[str, Record]) -> dict[str, float]:
    """`scores` of trials given as trial -> the event that began it, and trial -> the one that ended it."""
    return scores(
        {
            "trial": trial,
            "phase": start["phase"],
            "repeats": start.get("repeats"),
            "status": ended.get(trial, {}).get("event"),
            "value": ended.get(trial, {}).get("value"),
        }
        for trial, start in starts.items()
    )


def scores(trials: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """search trial -> what a condition's config is chosen by, for each trial that may be chosen.

    `trials` are one condition's, as mappings with phase, trial, status, value and (of finalists)
    repeats. A candidate has finished with a finite value. Where the best ones were run again on
    further tuning seeds, only those count whose repeats all finished, by their mean over all seeds.
    """
    own: dict[str, float] = {}
    repeats: dict[str, list[float | None]] = {}
    for trial in trials:
        value = trial["value"] if trial["status"] == log.FINISHED else None
        value = value if value is not None and math.isfinite(value) else None
        if trial["phase"] == log.SEARCH and value is not None:
            own[trial["trial"]] = value
        elif trial["phase"] == log.FINALIST:
            repeats.setdefault(trial["repeats"], []).append(value)
    means = {
        trial: sum([own[trial], *values]) / (1 + len(values))  # type: ignore[list-item]
        for trial, values in repeats.items()
        if trial in own and None not in values
    }
    return means or own


def planned(events: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """condition -> variant -> its `planned` event, the reference first; the first one written counts."""
    plan: dict[str, dict[str, Record]] = {}
    for event in events:
        if event["event"] == log.PLANNED:
            plan.setdefault(event["condition"], {}).setdefault(event["variant"], event)
    return plan
