"""Figures of the report: each module computes a table, then draws it.

To add one: a function that yields `Plot`s, named in SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from analysis.numbers.tables import Tables
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
from analysis.plots.base import Plot
from analysis.read.load import Runs

__all__ = ["SOURCES", "Plot", "all_plots"]

T = TypeVar("T")
Follow = Callable[[Iterable[Any], str, int], Iterable[Any]]  # items, what is done to them, how many

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


def unfollowed(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The items, and nothing is shown of how far they are."""
    return items


def all_plots(runs: Runs, tables: Tables, follow: Follow = unfollowed) -> list[Plot]:
    """Every figure that the runs have the numbers for, in the order of SOURCES.

    `follow` hands the sources on one by one, and may show how far it is.
    """
    colours = style.colours(runs.labels)
    sources = follow(SOURCES, "drawing figures", len(SOURCES))
    return [plot for source in sources for plot in source(runs, tables, colours)]
