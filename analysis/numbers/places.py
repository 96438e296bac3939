"""Where the chosen configurations lie in the domains that were searched: at an edge the best may lie outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.read.load import Runs
from analysis.read.search_space import Key, finished, search_cells, searched_keys
from analysis.read.values import missing

COLUMNS = str.split("condition labels method key domain chosen place edge spread default run value")
EDGE = 0.05  # of a range, on the scale that was searched
BEST = 5  # finished trials whose values are shown beside the chosen one
LOWER, UPPER = "lower", "upper"


def places_table(runs: Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """A row per chosen configuration of `chosen_table` and searched key that is active in it.

    `place` is 0 at the domain's lower end and 1 at its upper one, on the scale that was searched, nan of
    a choice. `edge` is LOWER or UPPER within EDGE of one (of whole numbers and steps: on it), else empty.
    `spread` are the values that the BEST best finished trials had, `default` that of the first trial, where
    it was given beforehand; `value` is the chosen value itself.
    """
    trials = {(study.run, condition): own for study, condition, own in search_cells(runs)}
    rows: list[dict[str, Any]] = []
    for row in chosen.to_dict("records"):
        study, config = runs.study(str(row["run"])), row["full_config"]
        own = trials.get((study.run, row["condition"]))
        if own is None or not isinstance(config, Mapping):
            continue
        best = finished(own).sort_values("value", ascending=study.mode == "min", kind="stable")
        given = own[own["given"].notna()]
        for key in searched_keys(study):
            if key.name not in config:
                continue
            value = config[key.name]
            place = _place(key, value)
            same = {name: row[name] for name in ("condition", "labels", "method", "run")}
            rows.append(
                {
                    **same,
                    "key": key.name,
                    "domain": domain_text(key),
                    "chosen": value_text(value),
                    "place": place,
                    "edge": _edge(key, place),
                    "spread": spread_text(key, best.head(BEST)),
                    "default": spread_text(key, given.head(1)),
                    "value": value,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def domain_text(key: Key) -> str:
    """0.001 to 0.1 (log), or the choices."""
    if key.choices:
        return ", ".join(map(value_text, key.choices))
    step = f", step {key.step:g}" if key.step else ""
    return f"{key.low:g} to {key.high:g}{' (log)' if key.log else ''}{step}"


def value_text(value: Any) -> str:
    """Numbers with three significant digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None else str(value)


def spread_text(key: Key, trials: pd.DataFrame) -> str:
    """From the lowest to the highest value of a range, or the choices with how often each was taken."""
    values = key.column(trials).dropna()
    if values.empty:
        return ""
    if not key.choices:
        ends = dict.fromkeys(f"{value:.3g}" for value in (values.min(), values.max()))
        return " to ".join(ends)
    counts = values.astype(int).value_counts()
    return ", ".join(
        f"{count} x {value_text(key.choices[place])}"
        for place, count in zip(counts.index.tolist(), counts, strict=True)
    )


def _place(key: Key, value: Any) -> float:
    if key.choices or missing(value) or not isinstance(value, (int, float)):
        return float("nan")
    low, high = key.scaled(key.low), key.scaled(key.high)
    return float((key.scaled(value) - low) / (high - low))


def _edge(key: Key, place: float) -> str:
    """Whether the best may lie beyond the domain's end; a domain of two values has no inside."""
    reach = 1e-9 if key.stride else EDGE
    if place != place or key.count <= 2:
        return ""
    return LOWER if place <= reach else UPPER if place >= 1 - reach else ""
