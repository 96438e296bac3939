"""The search's trials as they went: the curve of each, and which ran when."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, file_name, look
from analysis.plots.figure import Figure
from analysis.plots.search import value_scale
from analysis.read.history import counted_on
from analysis.read.load import Runs
from analysis.read.search_space import search_cells
from tune_ssl.records import log

CURVE_COLUMNS = str.split("condition method trial status metric step value")
SLOT_COLUMNS = str.split("slot trial method condition phase status start end resumed")
MOST_CURVES = 150  # of a figure
MOST_BARS = 1500
PHASES = {
    log.SEARCH: style.COLOURS[0],
    log.FINALIST: style.COLOURS[4],
    log.CONFIRM: style.COLOURS[2],
    log.RETUNE: style.COLOURS[6],
    log.ABLATE: style.COLOURS[3],
    "superseded": style.NEUTRAL,
}
WIDTHS = {log.FINISHED: 1.8}  # pixels of a curve; of any other ending 1


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """Per condition the curves of its search trials; and one timeline of all trials."""
    for condition, rows in by_condition(trial_curves(runs)):
        several = rows.groupby("trial").size()
        if (several < 2).all():
            continue
        trials = list(dict.fromkeys(rows["trial"]))
        shown = rows[rows["trial"].isin(_some(trials, MOST_CURVES))]
        caption = (
            f"{rows['metric'].iloc[0]} of each search trial along its steps; dashed were stopped early or ended badly. "
            "An evaluation on the way may look at a part of the validation images."
        )
        if len(trials) > MOST_CURVES:
            caption += f" {MOST_CURVES} of {len(trials):,} trials are drawn, evenly spaced."
        name = file_name("search-curves", condition)
        figure = curves_figure(shown, colours)
        yield Plot("search", name, "Curves of the search", figure, shown, caption, condition)
    folders = {study.run: study.path for study in runs.studies}
    of = runs.trials["run"].map(folders)
    for path in dict.fromkeys(folders.values()):
        slots = slot_table(runs.trials[of == path])
        if len(slots) < 2:
            continue
        shown = slots if len(slots) <= MOST_BARS else slots.iloc[:: -(-len(slots) // MOST_BARS)]
        alone = len(set(folders.values())) == 1
        name = "timeline" if alone else file_name("timeline", path.name, *_again(path, folders))
        title = "Timeline" if alone else f"Timeline, {path.name}"
        figure = timeline_figure(shown)
        yield Plot("compute", name, title, figure, shown, _timeline_caption(slots, len(shown)))


def _again(path: Path, folders: Mapping[str, Path]) -> list[int]:
    """What tells a folder from others of its name."""
    same = [other for other in dict.fromkeys(folders.values()) if other.name == path.name]
    return [same.index(path)] if len(same) > 1 else []


def _timeline_caption(slots: pd.DataFrame, shown: int) -> str:
    caption = (
        "When each trial ran, a row per slot. Slots are read off the times, and may differ from the machine's own; a "
        "trial that went on after an interruption counts from its first start."
    )
    whole = slots["end"].max() * slots["slot"].nunique()
    if not slots["resumed"].any() and whole > 0:
        busy = (slots["end"] - slots["start"]).sum() / whole
        caption += f" Trials cover {100 * busy:.0f} % of the slots' time from the first start to the last end."
    if shown < len(slots):
        caption += f" {shown:,} of {len(slots):,} trials are drawn, evenly spaced."
    return caption


def trial_curves(runs: Runs) -> pd.DataFrame:
    """A row per search trial and evaluation at which the study's metric is known. Steps count on over stages."""
    parts = []
    history = {key: rows for key, rows in runs.history.groupby(["run", "condition"], sort=False)}
    for study, condition, trials in search_cells(runs):
        reports = history.get((study.run, condition))
        if reports is None or study.metric not in reports:
            continue
        reports = reports[reports["trial"].isin(trials["trial"])]
        if reports.empty:
            continue
        reports = counted_on(reports).dropna(subset=[study.metric])
        endings = dict(zip(trials["trial"], trials["status"], strict=True))
        own = {"condition": condition, "method": study.label, "metric": study.metric}
        rows = reports.assign(
            **own,
            status=reports["trial"].map(endings),
            step=reports["total_step"],
            value=reports[study.metric],
        )
        parts.append(rows[CURVE_COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=CURVE_COLUMNS)


def curves_figure(curves: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition: a thin line per trial in its method's colour. Takes `trial_curves`."""
    scale, unit = value_scale(curves["metric"])
    fig = style.figure("training step", unit, height=360)
    named: set[object] = set()
    for (method, trial), rows in curves.groupby(["method", "trial"], sort=False):
        status = str(rows["status"].iloc[0])
        fig.add_scatter(
            x=rows["step"],
            y=scale * rows["value"],
            mode="lines+markers" if len(rows) == 1 else "lines",
            name=style.safe(method),
            legendgroup=style.safe(method),
            showlegend=method not in named,
            opacity=0.7,
            line={
                "color": look(method, colours).colour,
                "width": WIDTHS.get(status, 1),
                "dash": "solid" if status in (log.FINISHED, "running") else "dash",
            },
            hovertemplate=f"{style.safe(trial)}, {status.replace('_', ' ')}: %{{y:.4g}} at step %{{x}}"
            "<extra>%{fullData.name}</extra>",
        )
        named.add(method)
    fig.update_layout(showlegend=curves["method"].nunique() > 1)
    return fig


def slot_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Each ended trial with the first slot that was free at its start; seconds from the first start of all.

    A trial that failed and was begun again counts from its last beginning, which is as long ago as it took.
    """
    trials = trials.dropna(subset=["started", "ended"])
    last = (trials["ended"] - trials["seconds"]).where(trials["resumed"].fillna(0) == 0)
    began_at = pd.concat([trials["started"], last], axis=1).max(axis=1)
    trials = trials.assign(started=began_at).sort_values("started", kind="stable")
    rows = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []  # (end, slot)
    slots = 0
    began = trials["started"].min()
    for trial in trials.to_dict("records"):
        while busy and busy[0][0] <= trial["started"] + 1e-3:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, slots)
            slots += 1
        slot = heapq.heappop(free)
        heapq.heappush(busy, (trial["ended"], slot))
        own = {
            "method": trial["label"],
            "start": trial["started"] - began,
            "end": trial["ended"] - began,
        }
        rows.append({**{key: trial.get(key) for key in SLOT_COLUMNS}, **own, "slot": slot + 1})
    return pd.DataFrame(rows, columns=SLOT_COLUMNS)


def timeline_figure(slots: pd.DataFrame) -> Figure:
    """A bar per trial, coloured by phase. Takes `slot_table`."""
    count = int(slots["slot"].max())
    fig = style.figure("seconds since the first start", "slot", height=130 + 26 * min(count, 24))
    for phase, rows in slots.groupby("phase", sort=False):
        fig.add_bar(
            x=rows["end"] - rows["start"],
            base=rows["start"],
            y=rows["slot"],
            orientation="h",
            name=str(phase),
            marker={"color": PHASES.get(str(phase), style.NEUTRAL), "line": {"width": 0}},
            text=[
                f"{style.safe(trial)}, {style.safe(method)}, {style.safe(condition)}"
                for trial, method, condition in zip(
                    rows["trial"], rows["method"], rows["condition"], strict=True
                )
            ],
            textposition="none",
            hovertemplate="%{text}: %{x:.1f} s<extra>" + str(phase) + "</extra>",
        )
    fig.update_layout(barmode="overlay", showlegend=True, bargap=0.25, meta="wide")
    fig.update_yaxes(autorange="reversed", dtick=1 if count <= 24 else None)
    return fig


def _some(trials: list[str], most: int) -> list[str]:
    """At most `most` of them, evenly spaced."""
    return trials if len(trials) <= most else [trials[i * len(trials) // most] for i in range(most)]
