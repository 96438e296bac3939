"""What to do next, as commands that can be copied: each with the reason that the numbers give for it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.numbers.places import LOWER
from analysis.numbers.stats import LEAST_SEEDS
from analysis.read.load import Runs
from analysis.read.search_space import Key, searched_keys
from analysis.read.study import Study
from analysis.words.candidates import FEW
from analysis.words.display import count

Tables = Mapping[str, pd.DataFrame]
MOST_SEEDS = 30  # in all, beyond which no further ones are proposed
WIDER = (
    10  # by which factor a logarithmic domain grows at an edge; another one grows by its own width
)
ENOUGH = 2  # times as many trials, where too few finished


@dataclass(frozen=True)
class Step:
    """A reason, as a sentence, and the command."""

    reason: str
    command: str


def next_steps(runs: Runs, tables: Tables) -> list[Step]:
    """Seeds that would decide, domains to widen, searches to prolong and unequal budgets, in that order."""
    return [
        *_seeds(runs, tables["differences"], tables["results"]),
        *_wider(runs, tables["places"]),
        *_longer(runs, tables["budget"]),
        *_equal(runs, tables["budget"]),
    ]


def _seeds(runs: Runs, differences: pd.DataFrame, results: pd.DataFrame) -> Iterator[Step]:
    """More seeds, where so many as can be trained would decide something that is open."""
    open_rows = differences[(differences["n"] > 0) & (differences["seeds_needed"] > 0)]
    open_rows = open_rows[open_rows["seeds_needed"] + open_rows["n"] <= MOST_SEEDS]
    more, reason = 0, ""
    if len(open_rows):
        row = open_rows.sort_values("seeds_needed", kind="stable").iloc[0]
        more = math.ceil(row["seeds_needed"])
        of = len(open_rows)
        reason = (
            f"{_many(more, 'more seed')} would decide {row['method']} against {row['reference']} under "
            f"{row['condition']}, were the difference seen the true one"
            + (f" ({of} such comparisons are open)" if of > 1 else "")
        )
    elif len(results) and 0 < (fewest := int(results["n"].min())) < LEAST_SEEDS:
        more = LEAST_SEEDS - fewest
        reason = f"{_many(more, 'more seed')} would give 95 % intervals"
    for path in dict.fromkeys(study.path for study in runs.studies) if more else ():
        study = next(study for study in runs.studies if study.path == path)
        seeds = _more_seeds(study, more)
        if seeds:
            yield Step(reason, _resume(study, f"study.seeds={json.dumps(seeds)}"))


def _wider(runs: Runs, places: pd.DataFrame) -> Iterator[Step]:
    """A run of its own for the keys whose chosen value lies at an edge of its domain."""
    for study in runs.studies:
        own = places[(places["run"] == study.run) & (places["edge"] != "")]
        keys = {key.name: key for key in searched_keys(study)}
        overrides, said = [], []
        for name, rows in own.groupby("key", sort=False):
            leaf = widened(keys[str(name)], {str(edge) for edge in rows["edge"]})
            if leaf is None:
                continue
            overrides.append(f"{_entry(study)}search.{name}={json.dumps(leaf)}")
            ends = " and ".join(dict.fromkeys(rows["edge"]))
            said.append(f"{name} (its {ends} end, in {', '.join(rows['condition'])})")
        if overrides:
            yield Step(
                f"{study.label}: the chosen {' and '.join(said)} lies at an edge: better values may lie outside",
                _again(study, *overrides, name="wider"),
            )


def widened(key: Key, edges: set[str]) -> dict[str, Any] | None:
    """The domain's leaf with room at these ends; None where it cannot grow there: shares end at 0 and 1."""
    low, high = key.low, key.high
    width = high - low
    if LOWER in edges:
        low = low / WIDER if key.log else low - width
        low = max(low, 0) if key.low >= 0 else low
    if edges - {LOWER}:
        high = high * WIDER if key.log else high + width
        high = min(high, 1) if key.high <= 1 and not key.log and key.low >= 0 else high
    if key.whole:
        low, high = max(1, round(low)) if key.low >= 1 else round(low), round(high)
    if (low, high) == (key.low, key.high):
        return None
    return {**key.leaf(), key.kind: [_plain(low), _plain(high)]}


def _longer(runs: Runs, budget: pd.DataFrame) -> Iterator[Step]:
    """More trials, where fewer than FEW could be chosen among; a run of its own where test data is open."""
    searched = {study.label: study for study in runs.studies if study.searched}
    few = budget[(budget["trials"] > 0) & (budget["candidates"] < FEW)]
    found: dict[Path, list[dict[Any, Any]]] = {}
    for row in few[few["method"].isin(list(searched))].to_dict("records"):
        found.setdefault(searched[row["method"]].path, []).append(row)
    for path, rows in found.items():
        study = next(study for study in runs.studies if study.path == path)
        trials = ENOUGH * int(max(row["trials"] for row in rows))
        locked = any(runs.ledgers[s.run].locked for s in runs.studies if s.path == path)
        where = f"{rows[0]['method']}, {rows[0]['condition']}"
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        reason = f"fewer than {FEW} search trials finished ({where}{others})"
        if locked:
            reason += ": as test data is open, in a run of its own"
            yield Step(reason, _again(study, f"study.num_trials={trials}", name="longer"))
        else:
            yield Step(reason, _resume(study, f"study.num_trials={trials}"))


def _equal(runs: Runs, budget: pd.DataFrame) -> Iterator[Step]:
    """The runs whose searches had fewer trials than another's, with as many."""
    for study in runs.studies:
        own = budget[(budget["method"] == study.label) & (budget["flag"] != "")]
        others = budget[budget["condition"].isin(own["condition"])]
        if (
            own.empty
            or study.renamed is not None
            or not others["trials"].max() > own["trials"].min()
        ):
            continue
        most = int(others["trials"].max())
        yield Step(
            f"{study.label} had {count(own['trials'].min())} search trials where another had {count(most)}",
            _again(study, f"study.num_trials={most}", name="equal"),
        )


def _entry(study: Study) -> str:
    """Where the study's own keys stand: a comparison has them under its entry's name."""
    return "" if study.renamed is None else f"compare.{study.run.rpartition('/')[2]}."


def _more_seeds(study: Study, more: int) -> list[int]:
    """The run's fresh seeds and the next ones that are no tuning seeds; none where it does not say its own."""
    settings = ((study.raw.get("study") or {}).get("study")) or {}
    seeds = settings.get("seeds")
    if not isinstance(seeds, (list, tuple)) or not all(isinstance(seed, int) for seed in seeds):
        return []
    tuning = {settings.get("tuning_seed"), *(settings.get("finalist_seeds") or ())}
    fresh = (seed for seed in range(10**6) if seed not in tuning and seed not in seeds)
    return [*seeds, *(next(fresh) for _ in range(more))]


def _resume(study: Study, *overrides: str) -> str:
    return shlex.join(["tune-ssl", "search", "--resume", *_place(study), *overrides])


def _again(study: Study, *overrides: str, name: str) -> str:
    """The run's own command with overrides, as another run."""
    try:
        words = shlex.split(str(study.raw.get("command") or ""))
    except ValueError:  # no closing quotation
        words = []
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word in ("--name", "--resume"):
            skip = not skip
        elif not word.startswith(("--name=", "--resume=")):
            kept.append(word)
    if len(kept) < 2:
        kept = ["tune-ssl", "search", str(study.raw.get("source") or "STUDY.yaml")]
    keys = {override.partition("=")[0] for override in overrides}
    kept = [word for word in kept if word.partition("=")[0] not in keys]
    return shlex.join([*kept, *overrides, "--name", f"{study.raw['name']}-{name}"])


def _place(study: Study) -> list[str]:
    """The run as the command line takes it."""
    where = [] if study.path.parent == Path("runs") else ["--runs", str(study.path.parent)]
    return [str(study.raw["name"]) if where == [] else study.path.name, *where]


def _plain(value: float) -> float:
    """Without the digits that a product leaves behind."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
