"""How many labels the reference needs for what a method reaches with fewer: read off its label-efficiency curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.numbers.comparisons import reference_study
from analysis.numbers.stats import LEAST_SEEDS, Floats, t_quantile
from analysis.numbers.tables import by_seed, cells, confirm_trials
from analysis.read.load import Runs
from analysis.read.study import Study
from analysis.read.values import missing, only_budgets

Bools = npt.NDArray[np.bool_]
COLUMNS = str.split("method reference condition labels equals low high n least most")
STEPS = 400  # of the curve, even in the logarithm of the labels


def labels_saved(runs: Runs) -> pd.DataFrame:
    """Per method and label count: the number of labels at which the reference's curve `equals` it.

    The reference's test values are joined, seed by seed, by straight lines over the logarithm of the
    number of labels, from the `least` to the `most` that were measured; beyond nothing is guessed. At
    each count N between them the differences d_s(N) = method_s - reference_s(N) of the `n` shared
    seeds have a mean and a 95 % Student's t interval. `equals` is the smallest N at which the mean is
    not above 0; `low` the smallest at which the interval reaches 0, `high` the largest at which it
    still does (the inversion of the paired t test). 0 stands for fewer than `least`, inf for more than
    `most`; low and high are nan with fewer than LEAST_SEEDS seeds.

    Empty where the conditions differ in anything but the label count, or the reference has only one.
    """
    rows = []
    confirmed = [cell for cell in cells(runs, confirm_trials(runs)) if not cell[2].empty]
    if confirmed:
        reference = reference_study([study for study, _, _ in confirmed])
        curve = _curve(reference, confirmed)
        for study, condition, trials in confirmed if len(curve) > 1 else ():
            if study.run == reference.run or condition["labels"] not in curve:
                continue
            own: dict[str, Any] = {"method": study.label, "reference": reference.label}
            own |= {"condition": condition["condition"], "labels": condition["labels"]}
            own |= equivalent(_values(trials), curve)
            rows.append({**own, "least": min(curve), "most": max(curve)})
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        "labels", kind="stable", ignore_index=True
    )


def equivalent(
    values: Mapping[int, float], curve: Mapping[float, Mapping[int, float]]
) -> dict[str, float]:
    """`equals`, `low`, `high` and `n` of a method's values by seed, given the reference's by labels and seed."""
    counts = sorted(curve)
    seeds = sorted(set(values).intersection(*(set(curve[count]) for count in counts)))
    nothing = {"equals": math.nan, "low": math.nan, "high": math.nan, "n": len(seeds)}
    if not seeds:
        return nothing
    points_G = np.geomspace(counts[0], counts[-1], STEPS)
    ours_S = np.array([values[seed] for seed in seeds])
    theirs_SG = np.array(
        [
            np.interp(np.log(points_G), np.log(counts), [curve[count][seed] for count in counts])
            for seed in seeds
        ]
    )
    gaps_SG = ours_S[:, None] - theirs_SG
    mean_G = gaps_SG.mean(axis=0)
    found = {**nothing, "equals": _first(mean_G <= 0, points_G)}
    if len(seeds) >= LEAST_SEEDS:
        reach_G = t_quantile(len(seeds) - 1) * gaps_SG.std(axis=0, ddof=1) / math.sqrt(len(seeds))
        found["low"] = _first(mean_G - reach_G <= 0, points_G)
        found["high"] = _last(mean_G + reach_G >= 0, points_G)
    return found


def _curve(
    reference: Study, confirmed: list[tuple[Study, dict[str, Any], pd.DataFrame]]
) -> dict[float, dict[int, float]]:
    """Labels -> seed -> test value of the reference; empty where label counts do not tell its conditions apart."""
    curve: dict[float, dict[int, float]] = {}
    if not only_budgets(condition["condition"] for _, condition, _ in confirmed):
        return {}
    for labels, values in _points(reference, confirmed):
        if math.isnan(labels) or labels <= 0 or labels in curve:
            return {}
        curve[labels] = values
    return curve


def _points(
    reference: Study, confirmed: list[tuple[Study, dict[str, Any], pd.DataFrame]]
) -> Iterator[tuple[float, dict[int, float]]]:
    for study, condition, trials in confirmed:
        if study.run == reference.run:
            labels = condition["labels"]
            yield math.nan if missing(labels) else float(labels), _values(trials)


def _values(trials: pd.DataFrame) -> dict[int, float]:
    """Test values by seed."""
    values = by_seed(trials)["value"].dropna()
    return dict(zip(values.index.astype(int).tolist(), values.tolist(), strict=True))


def _first(reached_G: Bools, points_G: Floats) -> float:
    """The first point where it is reached: 0 where that is the very first, inf where none."""
    if not reached_G.any():
        return math.inf
    place = int(reached_G.argmax())
    return float(points_G[place]) if place else 0.0


def _last(held_G: Bools, points_G: Floats) -> float:
    """The last point where it holds: inf where that is the very last, 0 where none."""
    if not held_G.any():
        return 0.0
    place = len(held_G) - 1 - int(held_G[::-1].argmax())
    return float(points_G[place]) if place < len(held_G) - 1 else math.inf
