"""What accuracy costs: test accuracy against the compute of a model and of its tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.numbers.stats import mean_interval
from analysis.numbers.tables import confirm_trials
from analysis.plots import style
from analysis.plots.base import Plot, Tables, confirmed_by, error_bars, look, spans_wide, wide_ticks
from analysis.plots.figure import Figure
from analysis.read.load import RUNNING, Runs
from analysis.read.values import missing
from analysis.words.display import INTERVALS, count, interval
from tune_ssl.records import log

TUNING = (log.SEARCH, log.FINALIST)
COST_COLUMNS = str.split(
    "condition method labels accuracy_mean accuracy_low accuracy_high n "
    "seconds_mean seconds_low seconds_high steps images_seen tuning_seconds tuning_steps"
)
CLOCK = (
    "Device-seconds are wall-clock seconds of each trial: they hold the waiting for a machine that "
    "trials share, and are comparable only between runs of one machine under one load."
)
EQUAL = {"steps": "steps", "images_seen": "images seen"}
# column -> file stem, title, axis, what the caption says about it
VIEWS = {
    "seconds_mean": (
        "model-seconds",
        "Accuracy against device-seconds per model",
        "device-seconds per trained model",
        f"Mean over the seeds, with {INTERVALS} both ways. {CLOCK}",
    ),
    "steps": (
        "model-steps",
        "Accuracy against steps per model",
        "optimizer steps per trained model",
        "Steps are summed over stages. A step of one method may cost several of another's.",
    ),
    "images_seen": (
        "model-images",
        "Accuracy against images seen per model",
        "images seen per trained model",
        "Labeled and unlabeled ones, as often as each was seen.",
    ),
    "tuning_seconds": (
        "tuning-seconds",
        "Accuracy against the cost of tuning",
        "device-seconds of search and finalists",
        f"Of all trials that ended, also the stopped and the failed ones. {CLOCK}",
    ),
}


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Test accuracy against each kind of cost, once configurations have been confirmed."""
    costs = cost_table(runs, tables["results"])
    for column, (stem, title, axis, note) in VIEWS.items():
        drawn = costs.dropna(subset=["accuracy_mean", column])
        # Equal budgets, the usual case, would make a single column of points.
        if drawn.empty or (column in EQUAL and drawn[column].nunique() == 1):
            continue
        figure = cost_figure(drawn, column, axis, colours)
        caption = f"A point per method and condition. {note} {confirmed_by(drawn['n'])}"
        caption += "".join(
            f" All models were trained for {drawn[same].iloc[0]:,.0f} {word}."
            for same, word in EQUAL.items()
            if drawn[same].nunique() == 1
        )
        yield Plot("compute", stem, title, figure, drawn, caption)


def cost_table(runs: Runs, results: pd.DataFrame) -> pd.DataFrame:
    """Per condition and method: test accuracy (of `results_table`) and what it cost.

    `seconds_*`, `steps`, `images_seen`: per trained model, means over the finished confirm trials;
    `tuning_*`: totals of the search and the finalists, as far as they ended. nan where unknown.
    """
    rows = []
    confirmed = confirm_trials(runs)
    confirmed = confirmed[confirmed["status"] == log.FINISHED]
    tuned = runs.trials[runs.trials["phase"].isin(TUNING) & (runs.trials["status"] != RUNNING)]
    names = {study.label: study.run for study in runs.studies}
    for row in results.to_dict("records"):
        own = (names[row["method"]], row["condition"])
        models, tuning = _of(confirmed, *own), _of(tuned, *own)
        seconds = mean_interval(models["seconds"])
        rows.append(
            {
                **{key: row[key] for key in ("condition", "method", "labels", "n")},
                **{f"accuracy_{key}": row[key] for key in ("mean", "low", "high")},
                "seconds_mean": seconds.mean,
                "seconds_low": seconds.low,
                "seconds_high": seconds.high,
                "steps": models["step"].mean(),
                "images_seen": models["images_seen"].mean(),
                "tuning_seconds": tuning["seconds"].sum(min_count=1),
                "tuning_steps": tuning["step"].sum(min_count=1),
            }
        )
    return pd.DataFrame(rows, columns=COST_COLUMNS)


def cost_figure(costs: pd.DataFrame, column: str, axis: str, colours: Mapping[str, str]) -> Figure:
    """Accuracy over one cost. Takes `cost_table`; a number beside a point is its label count."""
    fig = style.figure(axis, "mean per-class accuracy, %", height=360)
    for method, rows in costs.groupby("method", sort=False):
        own = look(method, colours)
        numbers = zip(
            rows["condition"],
            rows[column],
            rows["accuracy_mean"],
            rows["accuracy_low"],
            rows["accuracy_high"],
            rows["n"],
            strict=True,
        )
        fig.add_scatter(
            x=rows[column],
            y=100 * rows["accuracy_mean"],
            error_x=error_bars(rows, stem="seconds_") if column == "seconds_mean" else None,
            error_y=error_bars(rows, 100, "accuracy_"),
            mode="markers+text",
            text=["" if missing(labels) else f"{labels:,.0f}" for labels in rows["labels"]],
            textposition="top right",
            textfont={"size": 11},
            name=style.safe(method),
            marker={"color": own.colour, "symbol": own.symbol, "size": 10},
            customdata=[
                f"{style.safe(condition)}<br>{interval(mean, low, high)} %, {n} seeds<br>"
                f"{count(cost) if cost >= 100 else f'{cost:.3g}'} {axis}"
                for condition, cost, mean, low, high, n in numbers
            ],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    if spans_wide(costs[column]):
        fig.update_xaxes(**wide_ticks(costs[column]))
    else:
        fig.update_xaxes(rangemode="tozero")
    # Room at the right for the last point's label
    fig.update_layout(showlegend=costs["method"].nunique() > 1, margin={"r": 36})
    return fig


def _of(table: pd.DataFrame, run: str, condition: object) -> pd.DataFrame:
    return table[(table["run"] == run) & (table["condition"] == condition)]
