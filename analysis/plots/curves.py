"""Training curves: each loss with its weight, the metrics and diagnostics, along the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd
import plotly.graph_objects as go

from analysis import style
from analysis.load import Runs
from analysis.plots.base import Plot, Tables, band, by_condition
from analysis.select import DEFAULT_RULE
from analysis.tables import confirm_trials
from tune_ssl import records

CURVE_COLUMNS = str.split("condition method panel weighted step mean low high n source")


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per panel and condition, of the confirmed configurations."""
    curves = training_curves(runs)
    for condition, rows in by_condition(curves):
        for panel in dict.fromkeys(rows["panel"]):
            shown = rows[rows["panel"] == panel]
            section = "diagnostics" if panel.startswith("diag/") else "training"
            figure = curves_figure(rows, panel, colours)
            yield Plot(section, f"curve-{panel}-{condition}", panel, figure, shown, group=condition)


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
            band(fig, rows["step"], low, high, colour, str(method))
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
