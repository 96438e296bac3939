"""What a study searched: its keys, their domains, and where each trial stands in them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.read.load import Runs
from analysis.read.study import Study
from tune_ssl.records import log
from tune_ssl.records.domain import Domain


@dataclass(frozen=True)
class Key(Domain):
    """One searched key: its domain, over columns of numbers. Choices stand at their places 0, 1, ..."""

    name: str = ""

    def column(self, trials: pd.DataFrame) -> pd.Series:
        """Each trial's number, or the place of its choice; nan where it has none, and where the key is inactive."""
        column = f"config.{self.name}"
        if column not in trials:
            return pd.Series(math.nan, index=trials.index, dtype=float)
        if not self.choices:
            return pd.to_numeric(trials[column], errors="coerce").astype(float)
        found = [_position(value, self.choices) for value in trials[column].tolist()]
        places = pd.Series(found, index=trials.index, dtype=float)
        return places.where(self._held(trials)) if None in self.choices else places

    def _held(self, trials: pd.DataFrame) -> pd.Series:
        """Whether each trial's config has the key: a table shows a choice of null and no key alike."""
        if "full_config" not in trials:
            return pd.Series(True, index=trials.index)
        held = [isinstance(c, dict) and self.name in c for c in trials["full_config"]]
        return pd.Series(held, index=trials.index, dtype=bool)

    def scaled(self, values: Any) -> Any:
        """Numbers as the search spread them: the decimal logarithm where equal factors count alike."""
        return np.log10(values) if self.log else values

    def unit(self, values: Any) -> Any:
        """Numbers as parts of the domain, 0 to 1; each whole number and choice has an even share."""
        low, high = self.scaled(self.low), self.scaled(self.high)
        half = 0.5 if self.counted else 0.0
        return np.clip((self.scaled(values) - low + half) / (high - low + 2 * half), 0, 1)

    def place(self, parts: Any) -> Any:
        """The number at a part of the domain: the inverse of `unit`."""
        low, high = self.scaled(self.low), self.scaled(self.high)
        half = 0.5 if self.counted else 0.0
        found = low - half + parts * (high - low + 2 * half)
        return 10**found if self.log else found

    @property
    def counted(self) -> bool:
        """Whether its values stand side by side, each with an even share: choices, and whole numbers off the log."""
        return bool(self.choices) or (self.whole and not self.log)

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
    found = []
    for name, leaf in search.items():
        with contextlib.suppress(ValueError):  # somebody changed the file: no figure needs the key
            domain = Domain.of(leaf)
            found.append(Key(domain.kind, domain.values, domain.step, domain.when, str(name)))
    return [key for key in found if key.low < key.high]


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


def _position(value: Any, choices: tuple[Any, ...]) -> float:
    """Tables turn None into nan and whole numbers into floats: the type decides, then equality."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return float(choices.index(None)) if None in choices else math.nan
    same = [i for i, choice in enumerate(choices) if type(choice) is type(value)]
    for i in [*same, *range(len(choices))]:
        if choices[i] == value:
            return float(i)
    return math.nan
