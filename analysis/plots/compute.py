"""What accuracy costs: test accuracy against the device-seconds of a model, and what nothing cheaper beats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.numbers.stats import mean_interval
from analysis.numbers.tables import Tables, condition_of, confirm_trials, device_seconds
from analysis.plots import style
from analysis.plots.base import Plot, confirmed_by, error_bars, look, wide_ticks
from analysis.plots.figure import Figure
from analysis.read.load import RUNNING, Runs
from analysis.words.display import INTERVALS, condition_names, count, interval
from tune_ssl.records import log

TUNING = (log.SEARCH, log.FINALIST)
COST_COLUMNS = str.split(
    "condition method labels accuracy_mean accuracy_low accuracy_high n seconds_mean seconds_low seconds_high "
    "pretraining recorded steps images_seen tuning_seconds tuning_steps front"
)
CAPTION = (
    "Test accuracy against the device-seconds of one trained model; the line joins those that nothing cheaper beats. "
    "{shared}Mean over the seeds, with {intervals} of accuracy. Seconds are wall-clock seconds of each trial, without "
    "the time in which it waited for another's pretraining; they hold the waiting for a machine that trials share, and "
    "are comparable only between runs of one machine under one load. {seeds}"
)
SHARED = (
    "Pretraining that several models share is charged in full to each of them here; the table of budgets counts its "
    "seconds once. "
)
UNCHARGED = "Not charged, as no trial of the run trained it: the shared pretraining of {methods}. "
UNKNOWN = "Whether pretraining was shared is not recorded, and not charged: {methods}. "


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure, once configurations have been confirmed."""
    costs = cost_table(runs, tables["results"]).dropna(subset=["accuracy_mean", "seconds_mean"])
    costs = costs[costs["seconds_mean"] > 0]
    if len(costs):
        caption = CAPTION.format(
            shared=_charges(costs), intervals=INTERVALS, seeds=confirmed_by(costs["n"])
        )
        figure = cost_figure(costs, colours)
        yield Plot("compute", "cost", "Accuracy against cost", figure, costs, caption)


def cost_table(runs: Runs, results: pd.DataFrame) -> pd.DataFrame:
    """Per condition and method: test accuracy (of `results_table`) and what it cost.

    `seconds_*`, `steps`, `images_seen`: per trained model, means over the finished confirm trials, as if
    each had trained alone: `pretraining` are the seconds of what it took from another trial, at the mean pace
    of the run's trials that trained all of theirs, nan where none did and it is not charged. `recorded`
    says whether the trials say what they took. `tuning_*`: what the search
    and the finalists really spent, as far as they ended. `front`: whether no method is both cheaper and
    better under the condition. nan where unknown.
    """
    rows = []
    confirmed = confirm_trials(runs)
    confirmed = confirmed[confirmed["status"] == log.FINISHED]
    tuned = runs.trials[runs.trials["phase"].isin(TUNING) & (runs.trials["status"] != RUNNING)]
    names = {study.label: study.run for study in runs.studies}
    paces = {run: _pace(runs, run) for run in names.values()}
    several = runs.history.groupby("run")["stage"].nunique() > 1
    staged = {run: bool(several.get(run, False)) for run in names.values()}
    for row in results.to_dict("records"):
        run = names[row["method"]]
        models, tuning = (_of(trials, run, row["condition"]) for trials in (confirmed, tuned))
        reused = models["reused"].fillna(0)
        charged = reused * paces[run] if (reused > 0).any() else reused
        seconds = mean_interval(device_seconds(models) + charged.fillna(0))
        rows.append(
            {
                **{key: row[key] for key in ("condition", "method", "labels", "n")},
                **{f"accuracy_{key}": row[key] for key in ("mean", "low", "high")},
                "seconds_mean": seconds.mean,
                "seconds_low": seconds.low,
                "seconds_high": seconds.high,
                "pretraining": charged.mean(),
                "recorded": bool(models["reused"].notna().all()) or not staged[run],
                "steps": models["step"].mean(),
                "images_seen": models["images_seen"].mean(),
                "tuning_seconds": device_seconds(tuning).sum(min_count=1),
                "tuning_steps": tuning["step"].sum(min_count=1),
            }
        )
    table = pd.DataFrame(rows, columns=COST_COLUMNS)
    table["front"] = False
    for _, group in table.groupby(["condition", "labels"], dropna=False, sort=False):
        table.loc[group.index, "front"] = front(group)
    return table


def front(group: pd.DataFrame) -> list[bool]:
    """Which rows no other one beats in mean accuracy at no higher cost."""
    points = list(zip(group["seconds_mean"], group["accuracy_mean"], strict=True))
    return [
        not any(x <= cost and y >= score and (x, y) != (cost, score) for x, y in points if x == x)
        and not math.isnan(cost + score)
        for cost, score in points
    ]


def cost_figure(costs: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Accuracy over the logarithm of the cost, a line along each condition's front. Takes `cost_table`."""
    height = 400 + 10 * costs["method"].nunique()
    fig = style.figure("device-seconds of a model", "mean per-class accuracy, %", height=height)
    names = condition_names(costs)
    for _, rows in costs.groupby(["condition", "labels"], dropna=False, sort=False):
        best = rows[rows["front"].astype(bool)].sort_values("seconds_mean")
        name = names[condition_of(rows.iloc[0])]
        fig.add_scatter(
            x=best["seconds_mean"],
            y=100 * best["accuracy_mean"],
            mode="lines+text",
            text=[*[""] * (len(best) - 1), f"\u00a0{style.safe(name)}"] if len(names) > 1 else None,
            textposition="top right",
            textfont={"size": 11},
            line={"color": style.NEUTRAL, "width": 1.5, "dash": "dot", "shape": "hv"},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
        )
    for method, rows in costs.groupby("method", sort=False):
        own = look(method, colours)
        numbers = zip(
            rows["condition"],
            rows["seconds_mean"],
            rows["accuracy_mean"],
            rows["accuracy_low"],
            rows["accuracy_high"],
            rows["n"],
            strict=True,
        )
        fig.add_scatter(
            x=rows["seconds_mean"],
            y=100 * rows["accuracy_mean"],
            error_y={**error_bars(rows, 100, "accuracy_"), "thickness": 1, "width": 0},
            mode="markers",
            name=style.safe(method),
            marker={"color": own.colour, "symbol": own.symbol, "size": 10},
            customdata=[
                f"{style.safe(condition)}<br>{interval(mean, low, high)} %, {n} seeds<br>"
                f"{count(cost) if cost >= 100 else f'{cost:.3g}'} device-seconds"
                for condition, cost, mean, low, high, n in numbers
            ],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    fig.update_xaxes(**wide_ticks(costs["seconds_mean"]))
    # Room at the right for the last point's label
    fig.update_layout(showlegend=costs["method"].nunique() > 1, margin={"r": 64})
    return fig


def _charges(costs: pd.DataFrame) -> str:
    """What the caption says of shared pretraining."""
    said = SHARED if (costs["pretraining"] > 0).any() else ""
    for sentence, which in (
        (UNCHARGED, costs["pretraining"].isna()),
        (UNKNOWN, ~costs["recorded"].astype(bool)),
    ):
        if which.any():
            said += sentence.format(methods=", ".join(dict.fromkeys(costs.loc[which, "method"])))
    return said


def _pace(runs: Runs, run: str) -> float:
    """Seconds per step of the first stage, over a run's ended trials that say they trained all of it themselves."""
    trials = runs.trials[(runs.trials["run"] == run) & (runs.trials["reused"] == 0)]
    reports = runs.history[
        (runs.history["run"] == run) & runs.history["trial"].isin(trials["trial"])
    ]
    if reports.empty:
        return math.nan
    first = reports[reports["stage"] == reports["stage"].iloc[0]]
    ends = first.groupby("trial")[["seconds", "step"]].max()
    waited = trials.drop_duplicates("trial").set_index("trial")["waited"].fillna(0)
    waited = waited.reindex(ends.index)
    paces = ((ends["seconds"] - waited) / ends["step"]).where(ends["step"] > 0)
    return float(paces.mean())


def _of(table: pd.DataFrame, run: str, condition: object) -> pd.DataFrame:
    return table[(table["run"] == run) & (table["condition"] == condition)]
