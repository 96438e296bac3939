"""What a figure of the report is, and what several of them draw with."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.plots import style
from analysis.plots.figure import Figure
from analysis.read.selection import DEFAULT_RULE

WIDE = 8  # an axis that spans more than this factor is logarithmic
MANY = 9  # ticks that an axis has room for
LONGEST = 120  # characters of a file name, without its suffix


@dataclass(frozen=True)
class Plot:
    """A figure with the numbers that it draws, which the report offers as CSV.

    `section` is the part of the report it stands in; `name` is unique in a report and serves as a
    file name; `group` is the condition, where a section has a figure of each; `caption` names the
    selection rule wherever trials were chosen.
    """

    section: str
    name: str
    title: str
    figure: Figure
    table: pd.DataFrame
    caption: str = ""
    group: str = ""

    @property
    def full_title(self) -> str:
        """The title with the condition, which a heading does not repeat inside its group."""
        return ", ".join(part for part in (self.title, self.group) if part)


@dataclass(frozen=True)
class Look:
    """How one method is drawn on every figure of a report: it differs in more than its colour."""

    colour: str
    dash: str
    symbol: str


def look(method: object, colours: Mapping[str, str]) -> Look:
    """The look of a method, by its place among `colours`: one that shares a colour has another dash and symbol."""
    place = list(colours).index(str(method))
    turn = place + place // len(style.COLOURS)
    dash = style.DASHES[turn % len(style.DASHES)]
    return Look(colours[str(method)], dash, style.MARKERS[turn % len(style.MARKERS)])


def file_name(*parts: object) -> str:
    """The parts as one file name, without a suffix; a checksum keeps apart what had to be changed."""
    plain = "-".join(str(part) for part in parts)
    found = re.sub(r"[^A-Za-z0-9._=,@+-]", "_", plain)
    if found == plain and len(found) <= LONGEST:
        return found
    return f"{found[: LONGEST - 9]}-{zlib.crc32(plain.encode()):08x}"


def confirmed_by(seeds: Sequence[float] | pd.Series) -> str:
    """A caption's sentence on figures of the confirm trials; `seeds` holds how many each mean has."""
    counts = sorted({int(n) for n in seeds if not pd.isna(n)})
    spread = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    return (
        f"Confirm trials of the configuration chosen by '{DEFAULT_RULE.name}' on validation data, "
        f"{spread} fresh seed{'' if counts == [1] else 's'} per mean."
    )


def by_condition(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(condition, its rows), in order of appearance."""
    for condition, rows in table.groupby("condition", sort=False):
        yield str(condition), rows


def band(
    fig: Figure, x: pd.Series, low: pd.Series, high: pd.Series, colour: str, method: str
) -> None:
    """Add the area between `low` and `high`, in the method's colour."""
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


def error_bars(rows: pd.DataFrame, scale: float = 1, stem: str = "") -> dict[str, Any]:
    """Bars from `<stem>low` to `<stem>high` around `<stem>mean`; a row without an interval has none."""
    mean = scale * rows[f"{stem}mean"]
    return {
        "type": "data",
        "symmetric": False,
        "array": scale * rows[f"{stem}high"] - mean,
        "arrayminus": mean - scale * rows[f"{stem}low"],
        "thickness": 1.5,
        "width": 3,
    }


def wide_ticks(values: pd.Series) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, written out in full."""
    low, high = values.min() / 2, values.max() * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    kept = [tick for tick in ticks if low <= tick <= high]
    if len(kept) > MANY:
        kept = [tick for tick in kept if math.log10(tick).is_integer()]
    return {"type": "log", "tickvals": kept, "ticktext": [f"{tick:,.12g}" for tick in kept]}


def spans_wide(values: pd.Series) -> bool:
    """Whether an axis of these values should be logarithmic."""
    known = values.dropna()
    return bool(len(known) and known.min() > 0 and known.max() / known.min() > WIDE)
