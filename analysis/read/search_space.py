"""What a study searched: its keys, their domains, and where each trial stands in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.read.load import Runs
from analysis.read.study import Study
from tune_ssl.records import log


@dataclass(frozen=True)
class Key:
    """One searched key: a range from `low` to `high`, both inside, or a list of `choices`.

    Choices stand at positions 0, 1, ... in the order of study.yaml.
    """

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def values(self, trials: pd.DataFrame) -> pd.Series:
        """Each trial's number, or the position of its choice; nan where it has none."""
        column = f"config.{self.name}"
        if column not in trials:
            return pd.Series(math.nan, index=trials.index, dtype=float)
        if not self.choices:
            return pd.to_numeric(trials[column], errors="coerce").astype(float)
        found = [_position(value, self.choices) for value in trials[column].tolist()]
        return pd.Series(found, index=trials.index, dtype=float)

    def scaled(self, values: Any) -> Any:
        """Numbers as the search spread them: the decimal logarithm of a log_uniform key's."""
        return np.log10(values) if self.log else values

    def unit(self, values: Any) -> Any:
        """Numbers as parts of the domain, 0 to 1; each whole number and choice has an even share."""
        low, high = self.scaled(self.low), self.scaled(self.high)
        half = 0.5 if self.whole or self.choices else 0.0
        return np.clip((self.scaled(values) - low + half) / (high - low + 2 * half), 0, 1)

    def place(self, parts: Any) -> Any:
        """The number at a part of the domain: the inverse of `unit`."""
        low, high = self.scaled(self.low), self.scaled(self.high)
        half = 0.5 if self.whole or self.choices else 0.0
        found = low - half + parts * (high - low + 2 * half)
        return 10**found if self.log else found

    def texts(self, values: pd.Series) -> list[str]:
        """Numbers with four digits, or the names of choices; nan is empty."""
        if not self.choices:
            return ["" if math.isnan(value) else f"{value:.4g}" for value in values]
        return ["" if math.isnan(value) else str(self.choices[int(value)]) for value in values]


def spread(trials: pd.DataFrame, key: Key) -> pd.Series:
    """How far each trial is drawn from its choice's place, up to a quarter; 0 for a range.

    By the trial's number times the golden ratio, so that neighbours do not cover each other.
    """
    offset = (trials["number"].astype(float).fillna(0) * 0.618034) % 1 - 0.5
    return offset * (0.5 if key.choices else 0.0)


def searched_keys(study: Study) -> list[Key]:
    """The keys under study.yaml's `study.search`, without those that have a single value."""
    search = (study.raw.get("study") or {}).get("search") or {}
    found = [_key(str(name), leaf) for name, leaf in search.items()]
    return [key for key in found if key is not None]


def search_cells(runs: Runs) -> Iterator[tuple[Study, str, pd.DataFrame]]:
    """(study, condition, its search trials in start order), where there are any."""
    trials = runs.trials[runs.trials["phase"] == log.SEARCH]
    cells = {key: rows for key, rows in trials.groupby(["run", "condition"], sort=False)}
    for row in runs.conditions.to_dict("records"):
        own = cells.get((row["run"], row["condition"]))
        if own is not None:
            ordered = own.sort_values("number", kind="stable")
            yield runs.study(str(row["run"])), str(row["condition"]), ordered


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """Those that finished with a finite value: the only ones whose values can be compared."""
    usable = (trials["status"] == log.FINISHED) & np.isfinite(trials["value"].astype(float))
    return trials.loc[usable]


def _key(name: str, leaf: Any) -> Key | None:
    """None for a leaf that is no domain, or one that leaves nothing to vary."""
    if not isinstance(leaf, dict) or len(leaf) != 1:
        return None
    [(kind, values)] = leaf.items()
    if not isinstance(values, (list, tuple)) or len(values) < 2:
        return None
    if kind == "choice":
        return Key(name, 0, len(values) - 1, choices=tuple(values))
    if len(values) != 2 or not all(isinstance(value, (int, float)) for value in values):
        return None
    low, high = map(float, values)
    if low >= high or (kind == "log_uniform" and low <= 0):
        return None
    return Key(name, low, high, log=kind == "log_uniform", whole=kind == "int")


def _position(value: Any, choices: tuple[Any, ...]) -> float:
    """Tables turn None into nan and whole numbers into floats: the type decides, then equality."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return float(choices.index(None)) if None in choices else math.nan
    same = [i for i, choice in enumerate(choices) if type(choice) is type(value)]
    for i in [*same, *range(len(choices))]:
        if choices[i] == value:
            return float(i)
    return math.nan
