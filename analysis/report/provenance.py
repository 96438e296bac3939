"""Where a run's numbers come from: its facts, when test data was opened, how to train it again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from analysis.read.load import Runs
from analysis.read.selection import DEFAULT_RULE
from analysis.read.study import Study
from analysis.read.values import NONE
from analysis.report.trace import reproduce
from analysis.words.display import text
from tune_ssl.records import log


def provenance(runs: Runs, study: Study, chosen: pd.DataFrame) -> dict[str, Any]:
    """One run's part of the page: name, facts, opened (test data), commands per condition."""
    trials = runs.trials[runs.trials["run"] == study.run]
    mine = chosen[chosen["run"] == study.run].to_dict("records")
    opened = runs.locks[runs.locks["run"] == study.run].to_dict("records")
    return {
        "name": study.label,
        "facts": {key: text(value) for key, value in _facts(study, trials).items()},
        "opened": [
            f"{row['condition']}: {moment(row['time'])}, for {row['trial']}, "
            f"digest {text(row['digest'])}{', taken back later' if row['taken_back'] else ''}"
            for row in opened
        ],
        "commands": [(row["condition"], _command(study, row, trials)) for row in mine],
    }


def used_rules(chosen: pd.DataFrame) -> list[str]:
    """The rules the runs wrote down at their locks, where not word for word the page's own."""
    locked = chosen[chosen["locked"].astype(bool)]
    rules = dict.fromkeys(text(rule) for rule in locked["rule"])
    return [rule for rule in rules if rule != DEFAULT_RULE.sentence]


def moment(time: Any) -> str:
    """Seconds since 1970 as a UTC date and time."""
    if not isinstance(time, (int, float)) or pd.isna(time):
        return NONE
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _facts(study: Study, trials: pd.DataFrame) -> dict[str, Any]:
    raw, dataset = study.raw, study.dataset
    git = raw.get("git") or {}
    changed = " with uncommitted changes" if git.get("dirty") else ""
    seeds = {
        phase: sorted({int(s) for s in trials.loc[trials["phase"] == phase, "seed"].dropna()})
        for phase in (log.SEARCH, log.FINALIST, log.CONFIRM)
    }
    return {
        "Run": study.run,
        "Folder": study.path,
        "Method": study.method,
        "Loss terms": _listed(raw.get("loss_terms")),
        "Created": raw.get("created"),
        "Command": raw.get("command"),
        "Spec": raw.get("source"),
        "Dataset": f"{text(dataset.get('name'))}, digest {text(dataset.get('digest'))}",
        "Classes": _listed(dataset.get("classes")),
        "Images": _listed(dataset.get("counts")),
        "Code": f"{text(git.get('revision'))}{changed}",
        "Versions": _listed(raw.get("versions")),
        "Machine": _listed(raw.get("machine")),
        "Seeds of the search": _listed(seeds[log.SEARCH]),
        "Seeds of the finalists": _listed(seeds[log.FINALIST]),
        "Fresh seeds": _listed(seeds[log.CONFIRM]),
    }


def _command(study: Study, row: dict[Any, Any], trials: pd.DataFrame) -> str:
    wanted = log.CONFIRM if row["locked"] else log.SEARCH
    own = trials[(trials["condition"] == row["condition"]) & (trials["phase"] == wanted)]
    if not row["locked"]:
        own = own[own["trial"] == row["trial"]]
    seeds = own["seed"].dropna()
    values = next(c.get("values") for c in study.raw["conditions"] if c["id"] == row["condition"])
    config = {**(values or {}), **row["full_config"]}
    trial = str(own["trial"].iloc[0]) if len(own) else ""
    return reproduce(study, config, int(seeds.iloc[0]) if len(seeds) else None, trial)


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else text(value)
