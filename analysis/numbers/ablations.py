"""Ablations: what each variant of a frozen reference costs, on the same seeds and validation images.

Shares are fractions. Differences are variant minus reference, paired by seed, so that a part that
helps shows as a negative difference of the variant without it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.numbers.stats import (
    holm,
    mean_interval,
    paired_difference,
    paired_t_p_value,
    probability_of_improvement,
    sign_flip_p_value,
    t_p_value,
)
from analysis.read.load import Runs
from tune_ssl.records import log

ABLATION_COLUMNS = str.split(
    "method condition labels variant changes retuned metric mean low high n missing steps "
    "diff diff_low diff_high pairs p_better p_better_low p_better_high p p_holm p_sign_flip unpaired run"
)
EFFECT_COLUMNS = str.split("method condition labels effect metric mean low high n p p_holm run")
JOIN = "+"  # of the names of the switches that are on


def ablation_trials(runs: Runs) -> pd.DataFrame:
    """The trials of each planned row, one per (run, condition, variant, seed), as in Runs.trials.

    A confirm trial of the same config stands for the reference where the ablation trained none: a
    confirmation's `value` is the validation metric, as everywhere.
    """
    ablated = runs.trials[runs.trials["phase"] == log.ABLATE]
    confirmed = []
    for row in runs.variants.to_dict("records"):
        if row["variant"] == log.REFERENCE:
            own = runs.trials[
                (runs.trials["phase"] == log.CONFIRM)
                & (runs.trials["run"] == row["run"])
                & (runs.trials["condition"] == row["condition"])
            ]
            same = [config == row["config"] for config in own["full_config"]]
            confirmed.append(own[same].assign(variant=log.REFERENCE))
    table = pd.concat([ablated, *confirmed]) if confirmed else ablated
    twice = table.duplicated(["run", "condition", "variant", "seed"])
    return table[~twice].reset_index(drop=True)


def ablation_table(runs: Runs) -> pd.DataFrame:
    """One row per method, condition and variant, the reference first: its mean, and what it changes.

    `missing` trials did not finish or have no value; `unpaired` seeds had other labeled images than
    the reference's. `p` is of the paired t test, `p_holm` corrected over all rows of one method (each
    condition's variants together): it decides. `p_sign_flip` is of the sign-flip test.
    """
    rows: list[dict[str, Any]] = []
    trials = ablation_trials(runs)
    for row, own, reference in _rows(runs, trials):
        study = runs.study(row["run"])
        values, base, unpaired = _paired(own, reference)
        mean = mean_interval(_finished(own).values())
        diff = paired_difference(values, base)
        better = probability_of_improvement(values, base)
        alone = row["variant"] == log.REFERENCE
        nan = math.nan
        rows.append(
            {
                "run": row["run"],
                "method": row["label"],
                "condition": row["condition"],
                "labels": row["labels"],
                "variant": row["variant"],
                "changes": changes_text(row["changes"], row["retune"]),
                "retuned": bool(row["retune"]),
                "metric": study.metric,
                **{"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n},
                "missing": len(own) - mean.n,
                "steps": own["step"].max() if len(own) else nan,
                **{
                    "diff": nan if alone else diff.mean,
                    "diff_low": nan if alone else diff.low,
                    "diff_high": nan if alone else diff.high,
                    "pairs": nan if alone else diff.n,
                    "p_better": nan if alone else better.mean,
                    "p_better_low": nan if alone else better.low,
                    "p_better_high": nan if alone else better.high,
                    "p": nan if alone else paired_t_p_value(values, base),
                    "p_sign_flip": nan if alone else sign_flip_p_value(values, base),
                },
                "unpaired": unpaired,
            }
        )
    table = pd.DataFrame(rows, columns=ABLATION_COLUMNS)
    return _corrected(table).sort_values("labels", kind="stable", ignore_index=True)


def effect_table(runs: Runs) -> pd.DataFrame:
    """Main effects and two-way interactions of each full factorial design, paired by seed.

    The effect of a switch is the mean over all settings of the others of (on minus off); `a x b` is
    how much the effect of a differs with b on from that with b off. A seed counts where every
    combination of it finished. `p` is of the t test that the effect is 0, `p_holm` corrected over all
    rows of one method.
    """
    rows: list[dict[str, Any]] = []
    trials, labels = ablation_trials(runs), _labels(runs)
    for (run, condition), plan in runs.variants.groupby(["run", "condition"], sort=False):
        rows_of = {row["variant"]: row["switches"] for row in plan.to_dict("records")}
        designs = [tuple(on) for on in rows_of.values() if isinstance(on, list) and len(on) > 1]
        designs.sort(key=len, reverse=True)  # a part of a larger design says the same of fewer runs
        own = trials[(trials["run"] == run) & (trials["condition"] == condition)]
        for design in designs:
            names = {on: JOIN.join(on) or log.REFERENCE for on in _settings(design)}
            if not set(names.values()) <= set(rows_of):
                continue  # a combination was left out, being the same as another row
            values = {on: _finished(own[own["variant"] == name]) for on, name in names.items()}
            for effect, per_seed in _effects(design, values):
                found = mean_interval(per_seed)
                rows.append(
                    {
                        **{"run": run, "method": runs.study(str(run)).label, "effect": effect},
                        **{"condition": condition, "labels": labels.get((run, condition))},
                        "metric": runs.study(str(run)).metric,
                        **{"mean": found.mean, "low": found.low, "high": found.high, "n": found.n},
                        "p": t_p_value(per_seed),
                    }
                )
    table = pd.DataFrame(rows, columns=EFFECT_COLUMNS)
    table = table[~table.duplicated(["run", "condition", "effect"])]
    return _corrected(table).sort_values("labels", kind="stable", ignore_index=True)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `p_holm`: `p` corrected over all rows of a run."""
    found = [pd.Series(holm(list(p)), index=p.index) for _, p in table.groupby("run")["p"]]
    return table.assign(p_holm=pd.concat(found) if found else math.nan)


def changes_text(changes: Mapping[str, Any], retune: Any = ()) -> str:
    """`losses.cluster.weight=0.0; optim.lr tuned again`"""
    parts = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in changes.items()]
    parts += [f"{key} tuned again" for key in retune or ()]
    return "; ".join(parts)


def _rows(
    runs: Runs, trials: pd.DataFrame
) -> Iterator[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """(planned row, its trials, the reference's trials), the reference first in each condition."""
    labels = _labels(runs)
    for (run, condition), plan in runs.variants.groupby(["run", "condition"], sort=False):
        own = trials[(trials["run"] == run) & (trials["condition"] == condition)]
        reference = own[own["variant"] == log.REFERENCE]
        ordered = sorted(plan.to_dict("records"), key=lambda r: r["variant"] != log.REFERENCE)
        for row in ordered:
            known = {str(k): v for k, v in row.items()} | {"labels": labels.get((run, condition))}
            yield known, own[own["variant"] == row["variant"]], reference


def _labels(runs: Runs) -> dict[Any, Any]:
    """(run, condition) -> its number of labels"""
    return {(r["run"], r["condition"]): r["labels"] for r in runs.conditions.to_dict("records")}


def _paired(
    own: pd.DataFrame, reference: pd.DataFrame
) -> tuple[dict[int, float], dict[int, float], int]:
    """The finished values by seed of both sides, without seeds on different splits (counted)."""
    ours, theirs = _finished(own), _finished(reference)
    splits = [dict(zip(t["seed"], t["split"], strict=True)) for t in (own, reference)]
    other = {
        seed
        for seed in set(ours) & set(theirs)
        if len({s[seed] for s in splits if isinstance(s[seed], str)}) > 1
    }
    return {k: v for k, v in ours.items() if k not in other}, theirs, len(other)


def _finished(trials: pd.DataFrame) -> dict[int, float]:
    """seed -> value of the trials that finished with one"""
    kept = trials[(trials["status"] == log.FINISHED) & trials["value"].notna()]
    return {int(s): float(v) for s, v in zip(kept["seed"], kept["value"], strict=True)}


def _settings(design: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every combination of switches, in the design's order; the empty one is the reference."""
    for size in range(len(design) + 1):
        yield from itertools.combinations(design, size)


def _effects(
    design: tuple[str, ...], values: Mapping[tuple[str, ...], Mapping[int, float]]
) -> Iterator[tuple[str, list[float]]]:
    """(name, the effect in each seed) of every switch and pair of switches."""
    seeds = sorted(set.intersection(*(set(v) for v in values.values())))
    for size in (1, 2):
        for names in itertools.combinations(design, size):
            scale = 2 ** (len(design) - size)
            signs = {s: (-1) ** (size - len(set(s) & set(names))) / scale for s in values}
            effect = [sum(sign * values[s][seed] for s, sign in signs.items()) for seed in seeds]
            yield " x ".join(names), effect
