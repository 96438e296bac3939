"""Whether confidence can be believed: reliability diagrams and the calibration error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.numbers.stats import mean_interval
from analysis.numbers.tables import Tables
from analysis.plots import style
from analysis.plots.base import Plot, by_condition, confirmed_by, file_name, look
from analysis.plots.errors import Floats, matrices
from analysis.plots.figure import Figure
from analysis.read.load import Runs
from analysis.words.display import INTERVALS, interval

RELIABILITY = "test/reliability"
COLUMNS = str.split("condition method low high images confidence accuracy ece ece_low ece_high n")


def plots(runs: Runs, tables: Tables, colours: Mapping[str, str]) -> Iterator[Plot]:
    """One diagram per condition, with all methods."""
    for condition, rows in by_condition(reliability_table(runs)):
        errors = rows.drop_duplicates("method")
        listed = "; ".join(
            f"{method} {interval(*cell)} %"
            for method, *cell in zip(
                errors["method"], errors["ece"], errors["ece_low"], errors["ece_high"], strict=True
            )
        )
        caption = (
            f"Accuracy against confidence of the test images, bins pooled over seeds, empty bins "
            f"left out; a mark's area shows its share of the images. Under the diagonal a method "
            f"is overconfident. Expected calibration error (Guo et al. 2017), mean over seeds of "
            f"each seed's own bins, with {INTERVALS}: {listed}. {confirmed_by(errors['n'])}"
        )
        name = file_name("reliability", condition)
        figure = reliability_figure(rows, colours)
        yield Plot("errors", name, "Reliability diagram", figure, rows, caption, condition)


def reliability_table(runs: Runs) -> pd.DataFrame:
    """Per condition, method and bin with images: images, mean confidence and accuracy over n seeds.

    `low` and `high` are the bin's edges in (0, 1]. `ece` is the mean over the seeds of each one's
    sum over bins of |confidence - accuracy| x share of the images, with its interval.
    """
    parts = []
    for study, condition, bins_SB3, _ in matrices(runs, RELIABILITY, lambda _, s: s[1] == 3):
        images_B, confident_B, right_B = bins_SB3.sum(axis=0).T
        edges = np.linspace(0, 1, len(images_B) + 1)
        error = mean_interval(calibration_errors(bins_SB3))
        kept = images_B > 0
        part = pd.DataFrame(
            {
                "low": edges[:-1][kept],
                "high": edges[1:][kept],
                "images": images_B[kept],
                "confidence": confident_B[kept] / images_B[kept],
                "accuracy": right_B[kept] / images_B[kept],
            }
        )
        part = part.assign(condition=condition, method=study.label, n=len(bins_SB3))
        parts.append(part.assign(ece=error.mean, ece_low=error.low, ece_high=error.high))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def calibration_errors(bins_SB3: Floats) -> Floats:
    """(S, B, 3) images, summed confidence and right ones per bin -> (S,) calibration errors."""
    images_S = bins_SB3[:, :, 0].sum(axis=1)
    errors: Floats = np.abs(bins_SB3[:, :, 1] - bins_SB3[:, :, 2]).sum(axis=1) / images_S
    return errors


def reliability_figure(bins: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """One condition's diagram. Takes its rows of `reliability_table`."""
    fig = style.figure("confidence, %", "accuracy, %", height=380)
    line = {"color": style.NEUTRAL, "width": 1, "dash": "dash"}
    fig.add_line(x0=0, y0=0, x1=100, y1=100, line=line)
    for method, rows in bins.groupby("method", sort=False):
        own = look(method, colours)
        share = rows["images"] / rows["images"].sum()
        fig.add_scatter(
            x=100 * rows["confidence"],
            y=100 * rows["accuracy"],
            mode="lines+markers",
            name=f"{style.safe(method)}, ECE {100 * rows['ece'].iloc[0]:.1f} %",
            line={"color": own.colour, "width": 1, "dash": own.dash},
            marker={
                "color": own.colour,
                "symbol": own.symbol,
                "size": share,
                "sizemode": "area",
                "sizeref": 1 / 22**2,
                "sizemin": 3,
                "opacity": 0.85,
                "line": {"width": 0},
            },
            customdata=np.stack([100 * rows["low"], 100 * rows["high"], rows["images"]], axis=1),
            hovertemplate="confidence %{x:.1f} % (bin %{customdata[0]:.0f} to %{customdata[1]:.0f})"
            "<br>accuracy %{y:.1f} %<br>%{customdata[2]:,} images<extra>%{fullData.name}</extra>",
        )
    fig.update_xaxes(range=[-2, 102])
    fig.update_yaxes(range=[-3, 103])
    fig.update_layout(showlegend=True)
    return fig
