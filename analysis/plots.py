"""Figures. `training_curves`, `search_progress` compute tables; `*_figure` functions draw them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis import style
from analysis.display import interval
from analysis.load import Runs
from analysis.select import DEFAULT_RULE
from analysis.tables import confirm_trials
from tune_ssl import records

CURVE_COLUMNS = str.split("condition method panel weighted step mean low high n source")
PROGRESS_COLUMNS = str.split("condition method order trial status value best metric")
WIDE = 8  # a label axis that spans more than this factor is logarithmic


def label_efficiency_figure(
    results: pd.DataFrame, colours: Mapping[str, str], logarithmic: bool | None = None
) -> go.Figure:
    """Test accuracy against the number of labels, a band per method. Takes `results_table`.

    Several conditions with one label count differ in something else: then points, no line.
    """
    fig = style.figure("labels", "mean per-class accuracy, %", height=420)
    found = results.dropna(subset=["labels", "mean"])
    for method, rows in found.groupby("method", sort=False):
        rows = rows.sort_values("labels")
        colour = colours[str(method)]
        curve = rows["labels"].is_unique and len(rows) > 1
        if curve and rows["low"].notna().all():
            _band(fig, rows["labels"], 100 * rows["low"], 100 * rows["high"], colour, str(method))
        error = {
            "symmetric": False,
            "array": 100 * (rows["high"] - rows["mean"]),
            "arrayminus": 100 * (rows["mean"] - rows["low"]),
            "thickness": 1.5,
        }
        cells = zip(rows["mean"], rows["low"], rows["high"], strict=True)
        fig.add_scatter(
            x=rows["labels"],
            y=100 * rows["mean"],
            error_y=None if curve else error,
            mode="lines+markers" if curve else "markers",
            name=style.safe(method),
            legendgroup=style.safe(method),
            line={"color": colour, "width": 2},
            marker={"size": 9},
            text=[
                f"{style.safe(c)}<br>{interval(*cell)} %, {n} seeds"
                for c, cell, n in zip(rows["condition"], cells, rows["n"], strict=True)
            ],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    counts = sorted(found["labels"].unique())
    if logarithmic is None:
        logarithmic = bool(counts) and counts[0] > 0 and counts[-1] / counts[0] > WIDE
    ticks = {"tickvals": counts, "ticktext": [f"{count:,.0f}" for count in counts]}
    fig.update_xaxes(type="log" if logarithmic else "linear", **(ticks if len(counts) < 9 else {}))
    return fig


def training_curves(runs: Runs) -> pd.DataFrame:
    """Per condition, method, panel and step: the mean and range over the chosen trials.

    The chosen trials are the confirm trials, or, where there are none, the search trial the rule
    picks (`source` says which). Panels are the study's metric, kNN's and the probe's accuracy
    (against the steps of a pretraining), each loss/<term> and each diag/<name>. `weighted` rows hold
    weight/<term> x loss/<term>. Steps count on over stages.
    """
    parts: list[pd.DataFrame] = []
    confirmed = confirm_trials(runs)
    for row in runs.conditions.to_dict("records"):
        study, condition = runs.study(str(row["run"])), row["condition"]
        trials = _of(confirmed, study.run, condition)
        history = _of(runs.history, study.run, condition)
        source = records.CONFIRM
        if not history["trial"].isin(trials["trial"]).any():
            best = DEFAULT_RULE.choose(_of(runs.trials, study.run, condition), study.mode)
            trials = pd.DataFrame([] if best is None else [best], columns=runs.trials.columns)
            source = records.SEARCH
        history = history[history["trial"].isin(trials["trial"])]
        if history.empty:
            continue
        history = _counted_on(history)
        for panel in [study.metric, *_panels(history)]:
            parts += _panel_rows(history, panel, str(condition), study.label, source)
    if not parts:
        return pd.DataFrame(columns=CURVE_COLUMNS)
    return pd.concat(parts, ignore_index=True)[CURVE_COLUMNS]


def curves_figure(curves: pd.DataFrame, panel: str, colours: Mapping[str, str]) -> go.Figure:
    """One panel of one condition: mean over seeds, the band from lowest to highest seed."""
    percent = "accuracy" in panel or "/knn@" in panel
    scale = 100 if percent else 1
    fig = style.figure("step", "%" if percent else "", height=280)
    shown = curves[curves["panel"] == panel]
    for (method, weighted), rows in shown.groupby(["method", "weighted"], sort=False):
        colour = colours[str(method)]
        if not weighted and (rows["n"] > 1).any():
            low, high = scale * rows["low"], scale * rows["high"]
            _band(fig, rows["step"], low, high, colour, str(method))
        fig.add_scatter(
            x=rows["step"],
            y=scale * rows["mean"],
            mode="lines+markers" if len(rows) == 1 else "lines",
            name=style.safe(method) + (" x weight" if weighted else ""),
            legendgroup=style.safe(method),
            showlegend=not weighted,
            line={"color": colour, "width": 2, "dash": "dash" if weighted else "solid"},
            text=[f"{n} trial(s)" for n in rows["n"]],
            hovertemplate="step %{x}: %{y:.4g}, %{text}<extra>%{fullData.name}</extra>",
        )
    fig.update_layout(showlegend=shown["method"].nunique() > 1)
    return fig


def search_progress(runs: Runs) -> pd.DataFrame:
    """Every search trial in start order; `best` is the best value of a finished trial so far.

    `value` is the value at the end, or the last one reported where the trial did not finish.
    """
    trials = runs.trials[runs.trials["phase"] == records.SEARCH]
    parts = []
    for (run, condition), own in trials.groupby(["run", "condition"], sort=False):
        study = runs.study(str(run))
        own = own.sort_values("number", kind="stable")
        finished = own["value"].where(own["status"] == records.FINISHED)
        best = finished.cummax() if study.mode == "max" else finished.cummin()
        shown = own["value"].fillna(own["last"])
        part = (
            own[["trial", "status"]]
            .assign(value=shown)
            .assign(best=best.ffill(), metric=study.metric)
        )
        part = part.assign(
            condition=str(condition), method=study.label, order=range(1, len(own) + 1)
        )
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=PROGRESS_COLUMNS)
    return pd.concat(parts, ignore_index=True)[PROGRESS_COLUMNS]


def search_figure(progress: pd.DataFrame, colours: Mapping[str, str]) -> go.Figure:
    """One condition's search: a marker per trial, its symbol the status, and the best so far.

    Trials without a value cannot be placed; the caption counts them (`unplaced`).
    """
    metrics = list(dict.fromkeys(progress["metric"]))
    percent = all("accuracy" in metric for metric in metrics)
    scale = 100 if percent else 1
    alone = progress["method"].nunique() == 1
    fig = style.figure("trial, in order of start", "%" if percent else "", height=320)
    for method, rows in progress.groupby("method", sort=False):
        colour = colours[str(method)]
        name = style.safe(method)
        for status, trials in rows.groupby("status", sort=False):
            fig.add_scatter(
                x=trials["order"],
                y=scale * trials["value"],
                mode="markers",
                name=str(status).replace("_", " "),
                legendgroup=name,
                showlegend=alone,
                marker={"symbol": style.SYMBOLS[str(status)], "size": 9, "color": colour},
                text=[style.safe(trial) for trial in trials["trial"]],
                hovertemplate="%{text}: %{y:.4g}<extra>" + name + ", %{fullData.name}</extra>",
            )
        fig.add_scatter(
            x=rows["order"],
            y=scale * rows["best"],
            mode="lines",
            name="best finished so far" if alone else name,
            legendgroup=name,
            line={"color": colour, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    return fig


def unplaced(progress: pd.DataFrame) -> int:
    """How many trials of a search figure have no value."""
    return int(progress["value"].isna().sum())


def panels_of(curves: pd.DataFrame, diagnostics: bool) -> list[str]:
    """The panels of a table of curves, in order of appearance."""
    panels: Sequence[str] = list(dict.fromkeys(curves["panel"]))
    return [panel for panel in panels if panel.startswith("diag/") == diagnostics]


def _of(table: pd.DataFrame, run: str, condition: object) -> pd.DataFrame:
    return table[(table["run"] == run) & (table["condition"] == condition)]


def _panels(history: pd.DataFrame) -> list[str]:
    columns = [str(column) for column in history.columns if history[column].notna().any()]
    total = [column for column in columns if column == "loss/total"]
    terms = [column for column in columns if column.startswith("loss/") and column not in total]
    features = [column for column in columns if column.startswith(("val/knn@", "val/probe_"))]
    diagnostics = [column for column in columns if column.startswith("diag/")]
    return features + total + terms + diagnostics


def _panel_rows(
    history: pd.DataFrame, panel: str, condition: str, method: str, source: str
) -> Iterable[pd.DataFrame]:
    weight = panel.replace("loss/", "weight/", 1)
    drawn = {False: history[panel]} if panel in history else {}
    if panel.startswith("loss/") and weight in history and (history[weight].dropna() != 1).any():
        drawn[True] = history[panel] * history[weight]
    for weighted, values in drawn.items():
        grouped = values.groupby(history["total_step"]).agg(["mean", "min", "max", "count"])
        grouped = grouped[grouped["count"] > 0].reset_index()
        grouped.columns = pd.Index(["step", "mean", "low", "high", "n"])
        own = {"condition": condition, "method": method, "panel": panel}
        yield grouped.assign(**own, weighted=weighted, source=source)


def _counted_on(history: pd.DataFrame) -> pd.DataFrame:
    """Adds `total_step`: a stage that starts again at step 0 is put behind the one before it."""
    parts = []
    for _, trial in history.groupby("trial", sort=False):
        last = 0.0
        for _, stage in trial.groupby("stage", sort=False):
            offset = last if stage["step"].min() <= last else 0.0
            stage = stage.assign(total_step=stage["step"] + offset).sort_values("total_step")
            last = stage["total_step"].max()
            parts.append(stage)
    return pd.concat(parts)


def _band(
    fig: go.Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, method: str
) -> None:
    fig.add_scatter(
        x=pd.concat([x, x[::-1]]),
        y=pd.concat([high, low[::-1]]),
        fill="toself",
        fillcolor=style.faded(colour),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=style.safe(method),
    )
