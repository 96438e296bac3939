"""Expected best validation against the number of trials of a random search.

Dodge et al. (2019, Show Your Work) introduced the curve; this is its unbiased form, which draws
trials without replacement (Tang et al. 2020, Showing Your Work Doesn't Always Work).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, band, file_name, look
from analysis.plots.figure import Figure
from analysis.plots.search import value_scale
from analysis.read.load import RUNNING, Runs
from analysis.read.search_space import finished, search_cells
from analysis.read.study import Study

COLUMNS = str.split("condition method metric trials mean low high n")
POINTS = 60  # of a curve; more trials than that are spaced evenly in the logarithm
RESAMPLES = 200
CAPTION = (
    "Expected best {metric} of k random search trials. Drawn without replacement from those of the run (Dodge et "
    "al. 2019; unbiased form of Tang et al. 2020), with a 95 % percentile bootstrap band over trials, too narrow near "
    "the number of trials that ran. Only where every trial finished; other samplers learn from earlier trials, so "
    "that theirs have no such curve."
)


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per condition with a run of searcher random."""
    found = expected_best(runs)
    for (condition, metric), rows in found.groupby(["condition", "metric"], sort=False):
        name = file_name("search-expected", condition, metric)
        figure = expected_figure(rows, colours)
        caption = CAPTION.format(metric=metric)
        yield Plot("search", name, "Expected best", figure, rows, caption, str(condition))


def expected_best(runs: Runs, seed: int = 0) -> pd.DataFrame:
    """Per condition, method and number of `trials` k: the expected best value, in the metric's unit.

    Only of runs with searcher random in which every trial of the condition that ended has finished: no one
    knows what a stopped one would have reached. `low` and `high` are a 95 % bootstrap interval over `n` trials.
    """
    parts = []
    for study, condition, trials in search_cells(runs):
        settings = _settings(study)
        if "random" not in (settings.get("searcher"), settings.get("sampler")):
            continue
        trials = trials[trials["given"].isna()]  # those were not drawn
        ended = trials[trials["status"] != RUNNING]
        values = finished(ended)["value"].to_numpy(float)
        if len(values) < max(2, len(ended)):  # what a stopped trial would have reached is not known
            continue
        sign = 1 if study.mode == "max" else -1
        values = sign * values
        counts = np.unique(np.geomspace(1, len(values), POINTS).round().astype(int))
        weights = best_of_weights(len(values), counts)
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(values, size=(RESAMPLES, len(values))), axis=1) @ weights
        tails = np.quantile(drawn, [0.025, 0.975], axis=0)
        part = pd.DataFrame({"trials": counts, "mean": sign * (np.sort(values) @ weights)})
        part["low"], part["high"] = np.sort(sign * tails, axis=0)
        own = {"condition": condition, "method": study.label, "metric": study.metric}
        parts.append(part.assign(**own, n=len(values))[COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def best_of_weights(n: int, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The chance that the i-th smallest of n values is the largest of k drawn without replacement.

    That is C(i - 1, k - 1) / C(n, k), for i = 1..n (rows) and each k of `counts` (columns). [n, K]
    """
    from scipy.special import gammaln

    def log_choose(of: Any, k: Any) -> Any:
        return gammaln(of + 1) - gammaln(k + 1) - gammaln(of - k + 1)

    rank, k = np.arange(1, n + 1)[:, None], counts[None, :]
    possible = rank >= k
    free = np.where(possible, rank - 1, k - 1)
    weights = np.where(possible, np.exp(log_choose(free, k - 1) - log_choose(n, k)), 0.0)
    return np.asarray(weights / weights.sum(axis=0))


def expected_figure(expected: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition's curves, a band per method. Takes `expected_best`."""
    scale, unit = value_scale(expected["metric"])
    fig = style.figure("trials", f"expected best {unit}", height=320)
    for method, rows in expected.groupby("method", sort=False):
        own = look(method, colours)
        low, high = scale * rows["low"], scale * rows["high"]
        band(fig, rows["trials"], low, high, own.colour, str(method))
        fig.add_scatter(
            x=rows["trials"],
            y=scale * rows["mean"],
            mode="lines",
            name=style.safe(method),
            legendgroup=style.safe(method),
            line={"color": own.colour, "dash": own.dash, "width": 2},
            hovertemplate="best of %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    return fig


def _settings(study: Study) -> Mapping[str, Any]:
    return (study.raw.get("study") or {}).get("study") or {}
