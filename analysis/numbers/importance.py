"""How much each searched key mattered in a search: fANOVA and PED-ANOVA, with bootstrap intervals.

Exploratory: a search is no experiment, and the two answer different questions. fANOVA (Hutter et al.
2014) is the share of the variance over the whole domain that a key explains alone, in a random forest
fitted to the trials. PED-ANOVA (Watanabe et al. 2023) is how far the best trials' distribution of a
key is from that of all trials. Both see finished trials only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.read.load import Runs
from analysis.read.search_space import Key, finished, search_cells, searched_keys
from analysis.read.study import Study

FANOVA, PED_ANOVA = "fANOVA", "PED-ANOVA"
REST = "interactions and rest"
COLUMNS = str.split(
    "condition method key evaluator share low high used finished resamples explained"
)
LEAST = 8  # finished trials; with fewer, the forest and the top trials are a handful
MOST = 200  # finished trials that are used; of more, a random subset of this size
TREES, RESAMPLED_TREES = 64, 8
RESAMPLES = 240  # in a report, shared among its conditions and methods
FEWEST, ENOUGH = 15, 60  # resamples of one of them; with fewer, no interval is given
LEVEL = 0.9
TOP, TOP_TRIALS = 0.1, 5  # PED-ANOVA: the best tenth, but at least 5 trials, and at most half

Array = NDArray[Any]


def importance_table(runs: Runs, seed: int = 0) -> pd.DataFrame:
    """Per condition, method, key and evaluator: the share of importance, and its interval.

    Columns COLUMNS. `share` is in [0, 1] and sums to 1 over the rows of an evaluator, nan where
    nothing can be told apart; fANOVA has a row REST for what no key explains alone. `low` and `high`
    are the 90 % percentile bootstrap interval over trials,
    nan where the report has too many conditions. `used` of `finished` trials are in. `explained`
    is the out-of-bag R2 of fANOVA's forest: near 0 or below, its shares say nothing.
    """
    cells = [
        (study, condition, *_usable(study, trials))
        for study, condition, trials in search_cells(runs)
    ]
    cells = [cell for cell in cells if len(cell[2]) >= LEAST and len(cell[3]) >= 2]
    resamples = min(ENOUGH, RESAMPLES // max(1, len(cells)))
    rows: list[dict[str, Any]] = []
    for study, condition, trials, keys in cells:
        used = trials.sample(MOST, random_state=seed) if len(trials) > MOST else trials
        counts = {"used": len(used), "finished": len(trials)}
        own = {"condition": condition, "method": study.label, **counts}
        rows += [{**own, **row} for row in _cell_rows(used, keys, study.mode, resamples, seed)]
    return pd.DataFrame(rows, columns=COLUMNS)


def importance_notes(runs: Runs) -> list[str]:
    """A sentence for each condition and method whose importance is not shown, and why."""
    notes = []
    for study, condition, trials in search_cells(runs):
        ended, keys = _usable(study, trials)
        where = f"{study.label}, {condition}: no importance is shown, as "
        if len(ended) < LEAST:
            notes.append(f"{where}{len(ended)} search trials finished, of at least {LEAST} needed.")
        elif len(keys) < 2:
            some = f"{len(keys)} searched key{'' if len(keys) == 1 else 's'}"
            notes.append(f"{where}{some} varied among finished trials, of at least 2 needed.")
        elif ended["value"].nunique() < 2:
            notes.append(f"{where}all {len(ended)} finished trials have the same value.")
        elif conditional := [key.name for key in searched_keys(study) if key.when]:
            names = ", ".join(conditional)
            notes.append(
                f"{study.label}, {condition}: {names}: active in some trials only, and without importance."
            )
    return notes


def fanova(points: Array, values: Array, trees: int, seed: int) -> tuple[Array, float]:
    """Each key's share of the explained variance, and the forest's out-of-bag R2.

    points: [N, D] in the unit cube. values: [N]. Returns shares [D], nan where the forest is flat.
    The main effects of Hutter et al. (2014, algorithm 2), as parts of each tree's variance, averaged over trees:
    what they lack to 1 is the work of keys together. As in Optuna's evaluator, but on the scale that was
    searched (Optuna's puts log keys on a linear scale), with
    one axis per choice instead of one per value, and an order of magnitude faster.
    """
    from sklearn import config_context
    from sklearn.tree import DecisionTreeRegressor

    count = len(values)
    rng = np.random.default_rng(seed)
    narrow = np.ascontiguousarray(points, dtype=np.float32)  # as the trees want it
    total, out, times = np.zeros(points.shape[1]), np.zeros(count), np.zeros(count)
    for _ in range(trees):
        chosen = rng.integers(count, size=count)
        tree = DecisionTreeRegressor(random_state=int(rng.integers(2**31)))
        with config_context(skip_parameter_validation=True):
            tree.fit(narrow[chosen], values[chosen], check_input=False)
        total += _main_effects(tree.tree_, points.shape[1])
        left_out = np.ones(count, dtype=bool)
        left_out[chosen] = False
        out[left_out] += tree.tree_.predict(narrow[left_out])[:, 0]
        times[left_out] += 1
    seen = times > 0
    error = ((out[seen] / times[seen] - values[seen]) ** 2).sum()
    spread = ((values[seen] - values[seen].mean()) ** 2).sum()
    shares = total / trees if total.any() else np.full(len(total), np.nan)
    return shares, float(1 - error / spread) if spread > 0 else np.nan


def ped_anova(trials: pd.DataFrame, keys: Sequence[Key], mode: str) -> Callable[[Array], Array]:
    """A function of positions in `trials` (with repeats) that gives each key's share, [D].

    The best tenth is compared with all trials, but at least 5 trials (as Optuna's documentation
    asks) and at most half of them. Shares are nan where all trials tie.
    """
    import optuna

    class Resampled(optuna.Study):
        """A study that shows only chosen trials: adding them to a new one copies each, slowly."""

        chosen: list[optuna.trial.FrozenTrial]

        def get_trials(self, *_: Any, **__: Any) -> list[optuna.trial.FrozenTrial]:
            return self.chosen

    places = {key.name: _distribution(key) for key in keys}
    columns = {key.name: _optuna_values(key, trials) for key in keys}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(
            storage=storage, direction="maximize" if mode == "max" else "minimize"
        )
        for i, value in enumerate(trials["value"]):
            params = {name: column[i] for name, column in columns.items()}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=places, value=float(value))
            )
        shown = Resampled(study.study_name, storage)
    finally:
        optuna.logging.set_verbosity(level)
    everything = study.trials

    def shares(chosen: Array) -> Array:
        quantile = min(0.5, max(TOP, TOP_TRIALS / len(chosen)))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        shown.chosen = [everything[i] for i in chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that values which all tie give equal sets
            found = evaluator.evaluate(shown)
        return _normalised(np.array([found.get(key.name, 0.0) for key in keys]))

    return shares


def _usable(study: Study, trials: pd.DataFrame) -> tuple[pd.DataFrame, list[Key]]:
    """The finished trials that have every key, and the keys that vary among them.

    A key that only some configs have (`when`) is left out: its share of all trials' variance has no meaning.
    """
    ended = finished(trials)
    every = [key for key in searched_keys(study) if not key.when]
    keys = [key for key in every if f"config.{key.name}" in trials]
    whole = pd.Series(True, index=ended.index)
    for key in keys:
        whole &= key.column(ended).notna()
    ended = ended[whole]
    return ended, [key for key in keys if key.column(ended).nunique() > 1]


def _cell_rows(
    trials: pd.DataFrame, keys: Sequence[Key], mode: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    values = trials["value"].to_numpy(float)
    if np.ptp(values) == 0:
        return []
    points = np.column_stack([key.unit(key.column(trials).to_numpy()) for key in keys])
    everything = np.arange(len(trials))
    ped = ped_anova(trials, keys, mode)
    shares, explained = fanova(points, values, TREES, seed)
    found = {FANOVA: shares, PED_ANOVA: ped(everything)}
    drawn: dict[str, list[Array]] = {FANOVA: [], PED_ANOVA: []}
    rng = np.random.default_rng(seed)
    for resample in range(resamples if resamples >= FEWEST else 0):
        chosen = rng.integers(len(trials), size=len(trials))
        drawn[FANOVA].append(fanova(points[chosen], values[chosen], RESAMPLED_TREES, resample)[0])
        drawn[PED_ANOVA].append(ped(chosen))
    rows = []
    for evaluator, share in found.items():
        names, several = [key.name for key in keys], drawn[evaluator]
        if evaluator == FANOVA:
            names, share, several = [*names, REST], _with_rest(share), [*map(_with_rest, several)]
        low, high = _interval(several, len(names))
        for i, name in enumerate(names):
            numbers = {"share": share[i], "low": low[i], "high": high[i]}
            fit = explained if evaluator == FANOVA else np.nan
            own = {"key": name, "evaluator": evaluator, "explained": fit}
            rows.append({**own, **numbers, "resamples": len(drawn[evaluator])})
    return rows


def _interval(drawn: Sequence[Array], keys: int) -> tuple[Array, Array]:
    kept = [shares for shares in drawn if np.isfinite(shares).all()]
    if len(kept) < FEWEST:
        return np.full(keys, np.nan), np.full(keys, np.nan)
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _main_effects(tree: Any, keys: int) -> Array:
    """The part of a tree's variance over the unit cube that each key explains alone: [keys]."""
    lows = np.zeros((tree.node_count, keys))
    highs = np.ones((tree.node_count, keys))
    left, right, split = tree.children_left, tree.children_right, tree.feature
    for node in np.flatnonzero(left >= 0):  # a parent comes before its children
        for child, bounds in ((left[node], highs), (right[node], lows)):
            lows[child], highs[child] = lows[node], highs[node]
            bounds[child, split[node]] = tree.threshold[node]
    leaves = left < 0
    lows, highs, value = lows[leaves], highs[leaves], tree.value[leaves, 0, 0]
    volume = (highs - lows).prod(axis=1)
    mean = volume @ value
    variance = volume @ (value - mean) ** 2
    if variance <= 0:
        return np.zeros(keys)
    effects = np.empty(keys)
    for key in range(keys):
        edges = np.unique(np.concatenate([lows[:, key], highs[:, key]]))
        middles, sizes = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        inside = (lows[:, [key]] <= middles) & (middles < highs[:, [key]])
        rest = volume / (highs[:, key] - lows[:, key])
        marginal = (value * rest) @ inside
        effects[key] = sizes @ (marginal - mean) ** 2 / variance
    return effects


def _with_rest(shares: Array) -> Array:
    """Main effects [D] and what they lack to 1: [D + 1]."""
    return np.append(shares, max(0.0, 1 - shares.sum()) if np.isfinite(shares).all() else np.nan)


def _normalised(shares: Array) -> Array:
    total = shares.sum()
    return shares / total if total > 0 else np.full(len(shares), np.nan)


def _distribution(key: Key) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if key.choices:  # by position, as True, 1 and 1.0 are one choice to Optuna
        return CategoricalDistribution(range(len(key.choices)))
    if key.counted:
        return IntDistribution(int(key.low), int(key.high))
    return FloatDistribution(float(key.scaled(key.low)), float(key.scaled(key.high)))


def _optuna_values(key: Key, trials: pd.DataFrame) -> list[Any]:
    values = key.column(trials)
    if key.choices:
        return values.astype(int).to_list()
    # A logarithm may leave the domain by a rounding error.
    inside = np.clip(values, key.low, key.high)
    scaled = np.clip(key.scaled(inside), key.scaled(key.low), key.scaled(key.high))
    return list(scaled.astype(int) if key.counted else scaled)
