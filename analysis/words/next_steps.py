"""What to do next, as commands that can be copied: each with the reason that the numbers give for it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.numbers.places import LOWER
from analysis.numbers.stats import LEAST_SEEDS
from analysis.numbers.tables import Tables
from analysis.read.changes import changes
from analysis.read.load import RUNNING, Runs
from analysis.read.search_space import Key, searched_keys
from analysis.read.study import Study
from analysis.words.candidates import FEW
from analysis.words.display import count
from tune_ssl.records import log

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
    """What is still open in a run; else seeds that would decide, domains to widen, longer and equal searches."""
    found: list[Step] = []
    for studies in _folders(runs):
        if is_open(runs, studies, tables["results"]):
            found.append(Step("the run is not over", _resume(studies[0])))
        else:
            found += _wider(runs, studies, tables["places"])
            found += _longer(runs, studies, tables["budget"])
            found += _equal(runs, studies, tables["budget"])
    return [*_seeds(runs, tables["differences"], tables["results"]), *found]


def _folders(runs: Runs) -> list[list[Study]]:
    """The studies of each run folder: a run that compares methods has several."""
    paths = dict.fromkeys(study.path for study in runs.studies)
    return [[study for study in runs.studies if study.path == path] for path in paths]


def is_open(runs: Runs, studies: Sequence[Study], results: pd.DataFrame) -> bool:
    """Whether trials of a run folder are running, or planned and not begun."""
    for study in studies:
        own = runs.trials[runs.trials["run"] == study.run]
        if (own["status"] == RUNNING).any():
            return True
        ledger = runs.ledgers[study.run]
        if not study.searched or (ledger.planned and not (own["phase"] == log.SEARCH).any()):
            continue  # nothing was to be searched
        planned = study.settings.get("num_trials")
        grid = study.settings.get("searcher") == "grid"
        for condition in (each["id"] for each in study.raw["conditions"]):
            begun = own[(own["condition"] == condition) & (own["phase"] == log.SEARCH)]
            ends = grid or condition in ledger.exhausted
            asked = planned if isinstance(planned, int) and not ends else 1
            if len(begun) < asked:
                return True
        mine = results[results["method"] == study.label]
        seeds = study.planned_seeds
        if seeds is not None and (mine["n"] + mine["missing"] < seeds).any():
            return True
    return False


def _seeds(runs: Runs, differences: pd.DataFrame, results: pd.DataFrame) -> Iterator[Step]:
    """More seeds, where so many as can be trained would decide something that is open."""
    open_rows = differences[(differences["n"] > 0) & (differences["seeds_needed"] > 0)]
    open_rows = open_rows[open_rows["seeds_needed"] + open_rows["n"] <= MOST_SEEDS]
    asked = [study.label for study in runs.studies if study.unlabeled]
    if open_rows["method"].isin(asked).any():  # whether unlabeled images help is what is asked
        open_rows = open_rows[open_rows["method"].isin(asked)]
    if any("seeds" in change.settings and change.opened for change in changes(runs)):
        open_rows = open_rows[:0]  # once is more than enough
    more, reason, labels = 0, "", {*results["method"]}
    if len(open_rows):
        row = open_rows.sort_values("seeds_needed", kind="stable").iloc[0]
        more, labels = math.ceil(row["seeds_needed"]), {row["method"], row["reference"]}
        of = len(open_rows)
        reason = (
            f"{_many(more, 'more seed')} would decide {row['method']} against {row['reference']} under "
            f"{row['condition']} with a probability of 80 %, were the difference seen the true one"
            + (f" ({of} such comparisons are open)" if of > 1 else "")
            + "; seeds that are added in sight of test values make p too small, which the report will say"
        )
    elif len(results) and 0 < (fewest := int(results["n"].min())) < LEAST_SEEDS:
        more = LEAST_SEEDS - fewest
        reason = f"{_many(more, 'more seed')} would give 95 % intervals"
    for studies in _folders(runs) if more else ():
        if is_open(runs, studies, results) or not labels & {study.label for study in studies}:
            continue
        if seeds := _more_seeds(studies[0], more):
            yield Step(reason, _resume(studies[0], f"study.seeds={json.dumps(seeds)}"))


def _wider(runs: Runs, studies: Sequence[Study], places: pd.DataFrame) -> Iterator[Step]:
    """One run of its own for all keys of a folder whose chosen value lies at an edge of its domain."""
    overrides, said = [], []
    for study in studies:
        own = places[(places["run"] == study.run) & (places["edge"] != "")]
        keys = {key.name: key for key in searched_keys(study)}
        search = dict((study.raw.get("study") or {}).get("search") or {})
        grown = []
        for name, rows in own.groupby("key", sort=False):
            leaf = widened(keys[str(name)], {str(edge) for edge in rows["edge"]})
            if leaf is None:
                continue
            search[str(name)] = leaf
            ends = " and ".join(dict.fromkeys(rows["edge"]))
            grown.append(f"{name} (its {ends} end, in {', '.join(rows['condition'])})")
        if grown:  # all of the search, as one that is the method's own is replaced whole
            overrides.append(f"{_entry(study)}search={json.dumps(search)}")
            said.append(f"{study.label}: {' and '.join(grown)}")
    if overrides:
        yield Step(
            f"a chosen value lies at an edge, and better ones may lie outside ({'; '.join(said)})",
            _anew(studies[0], *overrides, name="wider"),
        )


def widened(key: Key, edges: set[str]) -> dict[str, Any] | None:
    """The domain's leaf with room at these ends; None where it cannot grow there.

    A share ends at 0, and towards 1 it grows half the way: some keys must stay below it.
    """
    low, high = key.low, key.high
    width = high - low
    if LOWER in edges:
        low = low / WIDER if key.log else low - width
        low = max(low, 0) if key.low >= 0 else low
    if edges - {LOWER}:
        high = high * WIDER if key.log else high + width
        if key.low >= 0 and key.high <= 1 and not key.whole:
            high = min(high, (1 + key.high) / 2)
    if key.whole:
        low, high = max(1, round(low)) if key.low >= 1 else round(low), round(high)
    if (low, high) == (key.low, key.high):
        return None
    return {**key.leaf(), key.kind: [_plain(low), _plain(high)]}


def _longer(runs: Runs, studies: Sequence[Study], budget: pd.DataFrame) -> Iterator[Step]:
    """More trials, where fewer than FEW could be chosen among; a run of its own where test data is open."""
    labels = [
        study.label
        for study in studies
        if study.searched
        and study.settings.get("searcher") != "grid"
        and not runs.ledgers[study.run].exhausted
    ]
    few = budget[(budget["trials"] > 0) & (budget["candidates"] < FEW)]
    few = few[few["method"].isin(labels)]
    if few.empty:
        return
    first = few.iloc[0]
    trials = ENOUGH * max(int(few["trials"].max()), int(studies[0].settings.get("num_trials") or 0))
    others = f" and {len(few) - 1} more" if len(few) > 1 else ""
    reason = (
        f"fewer than {FEW} search trials finished ({first['method']}, {first['condition']}{others})"
    )
    if any(runs.ledgers[study.run].locked for study in studies):
        reason += ": as test data is open, in a run of its own"
        yield Step(reason, _anew(studies[0], f"study.num_trials={trials}", name="longer"))
    else:
        yield Step(reason, _resume(studies[0], f"study.num_trials={trials}"))


def _equal(runs: Runs, studies: Sequence[Study], budget: pd.DataFrame) -> Iterator[Step]:
    """A run whose search had fewer trials than another's, with as many."""
    study = studies[0]
    own = budget[(budget["method"] == study.label) & (budget["flag"] != "")]
    others = budget[budget["condition"].isin(own["condition"])]
    grid = study.settings.get("searcher") == "grid"
    if own.empty or study.renamed is not None or grid or runs.ledgers[study.run].exhausted:
        return
    if others["trials"].max() > own["trials"].min():
        most = int(others["trials"].max())
        yield Step(
            f"{study.label} had {count(own['trials'].min())} search trials where another had {count(most)}",
            _anew(study, f"study.num_trials={most}", name="equal"),
        )


def _entry(study: Study) -> str:
    """Where the study's own keys stand: a comparison has them under its entry's name."""
    return "" if study.renamed is None else f"compare.{study.run.rpartition('/')[2]}."


def _more_seeds(study: Study, more: int) -> list[int]:
    """The run's fresh seeds and the next ones that are no tuning seeds; none where it does not say its own."""
    settings = study.settings
    seeds = settings.get("seeds")
    if not isinstance(seeds, (list, tuple)) or not all(isinstance(seed, int) for seed in seeds):
        return []
    tuning = {settings.get("tuning_seed"), *(settings.get("finalist_seeds") or ())}
    fresh = (seed for seed in range(10**6) if seed not in tuning and seed not in seeds)
    return [*seeds, *(next(fresh) for _ in range(more))]


def _resume(study: Study, *overrides: str) -> str:
    command = "search" if study.renamed is None else "compare"
    return shlex.join(["tune-ssl", command, "--resume", *study.address, *overrides])


def _anew(study: Study, *overrides: str, name: str) -> str:
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
    if 0 < (study.planned_seeds or 0) < LEAST_SEEDS:
        overrides = (*overrides, f"study.seeds={json.dumps(list(range(LEAST_SEEDS)))}")
    keys = {override.partition("=")[0] for override in overrides}
    kept = [word for word in kept if "=" not in word or word.partition("=")[0] not in keys]
    return shlex.join([*kept, *overrides, "--name", f"{study.raw['name']}-{name}"])


def _plain(value: float) -> float:
    """Without the digits that a product leaves behind."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
