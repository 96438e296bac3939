"""Training curves: each loss with its weight, the metrics and diagnostics, along the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from analysis.numbers.tables import Tables, confirm_trials
from analysis.plots import style
from analysis.plots.base import Plot, band, by_condition, confirmed_by, file_name, look
from analysis.plots.figure import Figure, merged
from analysis.read.history import counted_on
from analysis.read.load import Runs
from analysis.read.selection import DEFAULT_RULE
from analysis.read.values import is_share
from tune_ssl.records import log

CURVE_COLUMNS = str.split("condition method panel curve stage step mean low high n source")
IMAGES = "val/images"  # how many an evaluation looked at
VALUE, WEIGHTED, WEIGHT = "value", "weighted", "weight"  # the `curve` column

TITLES = {
    "loss/total": "Total loss",
    "diag/mask_rate": "Mask rate: share of pseudo-labels that count",
    "diag/pseudo_label_accuracy": "Accuracy of the confident pseudo-labels",
    "diag/contrastive_accuracy": "Contrastive accuracy: own second view is the closest",
    "diag/probe_accuracy": "Accuracy of the linear probe on the labeled batch",
    "diag/embedding_std": "Embedding std: 1 spread evenly, 0 collapsed",
    "diag/cluster_entropy": "Entropy of the cluster assignment, nats",
    "diag/largest_cluster_share": "Share of the largest cluster",
    "val/probe_accuracy": "Validation accuracy of a linear probe",
    "val/mean_class_accuracy": "Validation mean per-class accuracy",
    "val/accuracy": "Validation accuracy",
}


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One figure per panel and condition, of the confirmed configurations."""
    curves = training_curves(runs)
    for condition, rows in by_condition(curves):
        for panel in dict.fromkeys(rows["panel"]):
            shown = rows[rows["panel"] == panel]
            section = "diagnostics" if panel.startswith("diag/") else "training"
            name = file_name("curve", panel.replace("/", "_"), condition)
            figure = curves_figure(rows, panel, colours)
            caption = _caption(shown, panel)
            if panel.startswith("val/"):
                caption += _evaluated_on(runs, condition)
            yield Plot(section, name, panel_title(panel), figure, shown, caption, condition)


def training_curves(runs: Runs) -> pd.DataFrame:
    """Per condition, method, panel, stage and step: the mean and range over the chosen trials.

    The chosen trials are the confirm trials, or, where there are none, the search trial the rule
    picks (`source` says which). Panels are the study's metric, kNN's and the probe's accuracy
    (against the steps of a pretraining), each loss/<term> and each diag/<name>. `curve` is `value`;
    the panel of a term whose weight is not always 1 has two more: `weight` (weight/<term>, with its
    ramp-up) and `weighted` (the product). Steps count on over stages.
    """
    parts: list[pd.DataFrame] = []
    confirmed = confirm_trials(runs)
    for row in runs.conditions.to_dict("records"):
        study, condition = runs.study(str(row["run"])), str(row["condition"])
        trials = _of(confirmed, study.run, condition)
        history = _of(runs.history, study.run, condition)
        source = log.CONFIRM
        if not history["trial"].isin(trials["trial"]).any():
            scores = DEFAULT_RULE.scores(runs.ledgers[study.run], condition, study.mode)
            trials = _of(runs.trials, study.run, condition)
            trials, source = trials[trials["trial"].isin(list(scores)[:1])], log.SEARCH
        history = history[history["trial"].isin(trials["trial"])]
        if history.empty:
            continue
        own = {"condition": condition, "method": study.label, "source": source}
        parts += [rows.assign(**own) for rows in _panel_rows(counted_on(history), study.metric)]
    if not parts:
        return pd.DataFrame(columns=CURVE_COLUMNS)
    return pd.concat(parts, ignore_index=True)[CURVE_COLUMNS]


def stage_starts(curves: pd.DataFrame) -> pd.DataFrame:
    """One condition's curves -> method, stage, step at which each stage but the first begins.

    That is where the stage before it reported last.
    """
    rows = []
    for method, own in curves.groupby("method", sort=False):
        ends = own.groupby("stage", sort=False)["step"].max().sort_values(kind="stable")
        for stage, step in zip(ends.index[1:], ends.iloc[:-1], strict=True):
            rows.append({"method": method, "stage": stage, "step": step})
    return pd.DataFrame(rows, columns=["method", "stage", "step"])


def curves_figure(curves: pd.DataFrame, panel: str, colours: Mapping[str, str]) -> Figure:
    """One panel of one condition: mean over seeds, the band from lowest to highest seed.

    Thin lines are the loss times its weight; the weight itself has a strip below. Dotted vertical
    lines are the starts of a method's later stages, read from all panels of `curves`.
    """
    shown = curves[curves["panel"] == panel]
    scale = 100 if is_share(panel) else 1
    strip = (shown["curve"] == WEIGHT).any()
    fig = style.figure("step", "%" if scale == 100 else "", height=340 if strip else 280)
    if strip:
        below = merged(fig.layout["yaxis"], {"title": {"text": "weight"}, "domain": [0, 0.2]})
        fig.update_layout(yaxis2={**below, "rangemode": "tozero", "nticks": 3})
        fig.update_layout(yaxis={"domain": [0.28, 1], "title": {"text": "loss"}})
        fig.update_layout(xaxis={"anchor": "y2"})
    named: set[object] = set()
    for (method, curve, _), rows in shown.groupby(["method", "curve", "stage"], sort=False):
        own = look(method, colours)  # stages are apart: the total loss of one is no other's
        if curve == VALUE and (rows["n"] > 1).any():
            low, high = scale * rows["low"], scale * rows["high"]
            band(fig, rows["step"], low, high, own.colour, str(method))
        name = {VALUE: "", WEIGHTED: " x weight", WEIGHT: ", weight"}[str(curve)]
        fig.add_scatter(
            x=rows["step"],
            y=scale * rows["mean"],
            yaxis="y2" if curve == WEIGHT else "y",
            mode="lines+markers" if len(rows) == 1 else "lines",
            name=style.safe(method) + name,
            legendgroup=style.safe(method),
            showlegend=curve == VALUE and method not in named,
            line={"color": own.colour, "width": 1 if curve == WEIGHTED else 2, "dash": own.dash},
            marker={"symbol": own.symbol},
            text=[f"{n} trial(s)" for n in rows["n"]],
            hovertemplate="step %{x}: %{y:.4g}, %{text}<extra>%{fullData.name}</extra>",
        )
        named |= {method} if curve == VALUE else set()
    starts = stage_starts(curves[curves["method"].isin(shown["method"])])
    for method, stage, step in starts.drop_duplicates(["stage", "step"]).itertuples(index=False):
        line = {"color": look(method, colours).colour, "width": 1, "dash": "dot"}
        fig.add_line(x0=step, x1=step, y0=0, y1=1, yref="paper", line=line)
        fig.add_note(x=step, y=1, yref="paper", text=style.safe(stage), xanchor="left")
    fig.update_layout(showlegend=shown["method"].nunique() > 1, margin={"r": 24})
    return fig


def panel_title(panel: str) -> str:
    """A panel in words; an unknown one is called by its key."""
    if panel in TITLES:
        return TITLES[panel]
    if panel.startswith("loss/"):
        return f"Loss term: {panel.removeprefix('loss/')}"
    if panel.startswith("val/knn@"):
        return f"Validation accuracy of nearest neighbours ({panel.removeprefix('val/knn@')})"
    return panel


def _evaluated_on(runs: Runs, condition: str) -> str:
    """Where evaluations on the way looked at a part of the validation images: which."""
    counts = runs.history.get(IMAGES, pd.Series(dtype=float))
    own = counts[runs.history["condition"] == condition].dropna()
    if own.empty or own.min() == own.max():
        return ""
    return (
        f" Evaluations on the way look at {own.min():,.0f} validation images, always the same; those at which trials "
        f"are compared, and the last of each stage, at all {own.max():,.0f}."
    )


def _caption(shown: pd.DataFrame, panel: str) -> str:
    found = shown[shown["curve"] == VALUE]
    parts = [f"{panel}."] if panel_title(panel) != panel else []
    measured = found[found["source"] == log.CONFIRM]
    if len(measured):
        parts.append(confirmed_by(measured["n"]))
    if (found["n"] > 1).any():
        parts.append("The band is from the lowest to the highest seed.")
    searched = dict.fromkeys(found.loc[found["source"] == log.SEARCH, "method"])
    if searched:
        rule = f"the search trial that the rule '{DEFAULT_RULE.name}' picks"
        parts.append(f"Of {', '.join(searched)}: {rule}, which is not confirmed yet.")
    if (shown["curve"] == WEIGHTED).any():
        parts.append("Thin: the loss times its weight, which is drawn below.")
    return " ".join(parts)


def _of(table: pd.DataFrame, run: str, condition: object) -> pd.DataFrame:
    return table[(table["run"] == run) & (table["condition"] == condition)]


def _panels(history: pd.DataFrame) -> list[str]:
    columns = [str(column) for column in history.columns if history[column].notna().any()]
    total = [column for column in columns if column == "loss/total"]
    terms = [column for column in columns if column.startswith("loss/") and column not in total]
    features = [column for column in columns if column.startswith(("val/knn@", "val/probe_"))]
    diagnostics = [column for column in columns if column.startswith("diag/")]
    return features + total + terms + diagnostics


def _panel_rows(history: pd.DataFrame, metric: str) -> Iterator[pd.DataFrame]:
    """For each panel and curve, a row per stage and step: over the trials that have a value there."""
    drawn: dict[tuple[str, str], pd.Series] = {}
    for panel in dict.fromkeys([metric, *_panels(history)]):
        weight = panel.replace("loss/", "weight/", 1)
        if panel in history:
            drawn[panel, VALUE] = history[panel]
        if (
            panel.startswith("loss/")
            and weight in history
            and (history[weight].dropna() != 1).any()
        ):
            drawn[panel, WEIGHTED] = history[panel] * history[weight]
            drawn[panel, WEIGHT] = history[weight]
    if not drawn:
        return
    values = pd.concat(drawn, axis=1)
    places = values.groupby([history["stage"], history["total_step"]], sort=False)
    means, lows, highs, counts = places.mean(), places.min(), places.max(), places.count()
    keys = means.index.set_names(["stage", "step"]).to_frame(index=False)
    for column in drawn:
        numbers = {"mean": means, "low": lows, "high": highs, "n": counts}
        rows = keys.assign(**{name: table[column].to_numpy() for name, table in numbers.items()})
        rows = rows[rows["n"] > 0].sort_values("step", kind="stable")
        yield rows.assign(panel=column[0], curve=column[1])
