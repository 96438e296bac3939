"""Figures of the report: each module computes a table, then draws it.

To add one: a function that yields `Plot`s, named in SOURCES.
"""

from __future__ import annotations

from analysis.plots import (
    ablation,
    calibration,
    compute,
    curves,
    early,
    errors,
    expected,
    importance,
    parallel,
    results,
    rungs,
    search,
    slices,
    stability,
    style,
    trials,
)
from analysis.plots.base import Plot, Tables
from analysis.read.load import Runs

__all__ = ["SOURCES", "Plot", "all_plots"]

SOURCES = (
    results.plots,
    errors.plots,
    calibration.plots,
    ablation.plots,
    curves.plots,
    search.plots,
    trials.plots,
    expected.plots,
    rungs.plots,
    early.plots,
    slices.plots,
    parallel.plots,
    importance.plots,
    stability.plots,
    compute.plots,
)


def all_plots(runs: Runs, tables: Tables) -> list[Plot]:
    """Every figure that the runs have the numbers for, in the order of SOURCES."""
    colours = style.colours(runs.labels)
    return [plot for source in SOURCES for plot in source(runs, tables, colours)]
