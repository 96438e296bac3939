"""A table as LaTeX that fits the text of an `article`: small type, wrapped text, columns in blocks.

What is tried, in this order, until the table is no wider than WIDTH: smaller type and less space
between columns; wrapped text columns; the columns in several blocks under one caption, each with
the columns that name the row. A table taller than a page becomes a longtable. Widths come from
the metrics of Computer Modern, so that no TeX is needed to know them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.report.typeset import (
    BOLD,
    LONGEST_OF_CAPTION,
    LONGEST_WORD,
    cut_word,
    escape,
    escape_number,
    line_width,
    measured,
    title_lines,
    title_width,
)

WIDTH = 345.0  # pt: \textwidth of an `article` at 10 pt
HEIGHT = 500.0  # pt: a taller table is a longtable; a page has 550
MOST_ROWS = 200  # of a table in one file
NAMING = ("Condition", "Labels", "Method", "Trial")  # name a row, where they come first
BRACKETS, PLUSMINUS, STACKED = INTERVALS = ("brackets", "plusminus", "stacked")
SIZES = {"small": 9.0, "footnotesize": 8.0, "scriptsize": 7.0}
LEADING = 1.25  # of a line's height to its type
NARROW = 3.0  # pt: \tabcolsep of a table whose text is wrapped

_INTERVAL = re.compile(r"(?P<mean>\S.*?) (?P<ends>\[.+, .+\]|\(no interval\))")


@dataclass(frozen=True)
class Cell:
    """A cell's text; `half` is half its interval's width as text, where that is symmetric."""

    text: str
    bold: bool = False
    half: str = ""


@dataclass(frozen=True)
class Head:
    """A column: its title, and whether it holds numbers, which are never wrapped."""

    title: str
    number: bool = True


@dataclass(frozen=True)
class Block:
    """Columns that stand side by side: their places, and the width in pt of what is wrapped, else 0."""

    places: tuple[int, ...]
    wrapped: tuple[float, ...]
    widths: tuple[float, ...]
    space: float

    @property
    def width(self) -> float:
        """In pt, with the space between columns and none outside."""
        return sum(self.widths) + 2 * self.space * (len(self.widths) - 1)


class Layout:
    """A table set as LaTeX: `text` is the file's, `blocks` say how wide each part is."""

    def __init__(
        self,
        stem: str,
        heads: Sequence[Head],
        rows: Sequence[Sequence[Cell]],
        caption: str = "",
        intervals: str = BRACKETS,
    ) -> None:
        self.stem, self.heads, self.intervals = stem, list(heads), intervals
        self.total, self.rows = len(rows), rows[:MOST_ROWS]
        self.caption = " ".join(filter(None, [caption, *self._notes()]))
        self.lines = [
            [
                _lines(cell, intervals) if head.number else [(cell.text, False)]
                for cell, head in zip(row, self.heads, strict=True)
            ]
            for row in self.rows
        ]
        self.size, self.blocks = self._fitting()
        self.long = self._height() > HEIGHT

    def _notes(self) -> Iterator[str]:
        """What the caption says of this setting."""
        cells = [cell for row in self.rows for cell in row]
        if self.intervals == PLUSMINUS and any(cell.half for cell in cells):
            yield "The number after \u00b1 is half the width of the interval."
        if self.total > len(self.rows):
            yield f"The first {len(self.rows):,} of {self.total:,} rows."

    def _fitting(self) -> tuple[str, list[Block]]:
        """The first setting in which all columns fit side by side, else blocks of them."""
        everything = tuple(range(len(self.heads)))
        for size, space in (("small", 6.0), ("small", 4.0), ("footnotesize", 4.0)):
            block = self._block(everything, size, space, wrap=False)
            if block and block.width <= WIDTH:
                return size, [block]
        for size in ("footnotesize", "scriptsize"):
            block = self._block(everything, size, NARROW, wrap=True)
            if block:
                return size, [block]
        return "footnotesize", self._blocks("footnotesize")

    def _blocks(self, size: str) -> list[Block]:
        """As many columns in each block as fit beside those that name the row."""
        naming = [p for p, head in enumerate(self.heads) if head.title in NAMING]
        naming = [place for index, place in enumerate(naming) if place == index]
        naming = naming if len(naming) < len(self.heads) else []
        found: list[Block] = []
        taken: list[int] = []
        for place in range(len(naming), len(self.heads)):
            if taken and not self._block((*naming, *taken, place), size, NARROW, wrap=True):
                found += filter(None, [self._last((*naming, *taken), size)])
                taken = []
            taken.append(place)
        return [*found, *filter(None, [self._last((*naming, *taken), size)])]

    def _last(self, places: tuple[int, ...], size: str) -> Block | None:
        return self._block(places, size, NARROW, wrap=True, always=True)

    def _block(
        self, places: tuple[int, ...], size: str, space: float, wrap: bool, always: bool = False
    ) -> Block | None:
        """The columns side by side; None where they cannot be wrapped to the width."""
        natural = [self._natural(place, SIZES[size]) for place in places]
        room = WIDTH - 2 * space * (len(places) - 1)
        if not wrap or sum(natural) <= room:
            return Block(places, (0.0,) * len(places), tuple(natural), space)
        least = [self._least(place, SIZES[size]) for place in places]
        if sum(least) > room and not always:
            return None
        cap = _cap(natural, least, max(room, sum(least)))
        widths = [max(low, min(full, cap)) for low, full in zip(least, natural, strict=True)]
        wrapped = [
            width if width < full and not self.heads[place].number else 0.0
            for place, width, full in zip(places, widths, natural, strict=True)
        ]
        return Block(places, tuple(wrapped), tuple(widths), space)

    def _natural(self, place: int, points: float) -> float:
        """The widest line of a column without wrapping; its title may take two lines."""
        title = title_width(self.heads[place].title, points, lines=2)
        return max([title, *self._cells(place, points)])

    def _least(self, place: int, points: float) -> float:
        """The widest piece of a column that cannot be broken: of numbers that is a whole line."""
        title = title_width(self.heads[place].title, points)
        if self.heads[place].number:
            return max([title, *self._cells(place, points)])
        pieces = {
            piece
            for row in self.rows
            for word in row[place].text.split()
            for piece in cut_word(word, LONGEST_WORD)
        }
        bold = BOLD if any(row[place].bold for row in self.rows) else 1.0
        return max([title, *(bold * measured(piece, points) for piece in pieces)])

    def _cells(self, place: int, points: float) -> Iterator[float]:
        """The width of each line of a column; what is below a mean is small and not bold."""
        for own, row in zip(self.lines, self.rows, strict=True):
            for line, small in own[place]:
                size = SIZES["scriptsize"] if small else points
                yield line_width(line, row[place].bold and not small, size)

    def _height(self) -> float:
        """About how tall the table and its caption are, in pt."""
        line = SIZES[self.size] * LEADING
        height = 60 + 12 * (measured(self.caption, 10.0) // WIDTH + 1)
        for block in self.blocks:
            found = dict(zip(block.places, block.wrapped, strict=True))
            height += 3 * line + 12
            for own, row in zip(self.lines, self.rows, strict=True):
                deep = [
                    1.3 * measured(row[place].text, SIZES[self.size]) // wide + 1
                    for place, wide in found.items()
                    if wide
                ]
                height += line * (max([1, *deep]) + any(len(own[p]) > 1 for p in found))
        return height

    @property
    def text(self) -> str:
        """The file: what it needs, the table or tables, with the caption above them."""
        packages = "booktabs, longtable" if self.long else "booktabs"
        fits = f"fits {WIDTH:.0f} pt, the text width of article at 10 pt"
        lines = [f"% Needs the packages {packages}; {fits}."]
        if len(self.blocks) > 1:
            lines.append(f"% Its columns are in {len(self.blocks)} blocks, one below the other.")
        if self.total > len(self.rows):
            whole = f"{self.stem}.csv has all of them"
            lines.append(f"% The first {len(self.rows):,} of {self.total:,} rows; {whole}.")
        named = [rf"\caption{{{escape(self.caption, LONGEST_OF_CAPTION)}}}"] if self.caption else []
        named.append(rf"\label{{tab:{self.stem}}}")
        if self.long:
            lines += [rf"\begingroup\{self.size}"]
            for number, block in enumerate(self.blocks):
                lines += self._longtable(block, named if number == 0 else [])
            return "\n".join([*lines, r"\endgroup", ""])
        lines += [r"\begin{table}", r"\centering", *named, rf"\{self.size}"]
        for number, block in enumerate(self.blocks):
            lines += [r"\par\medskip"] if number else []
            lines += [_space(block), rf"\begin{{tabular}}{{{self._align(block)}}}", r"\toprule"]
            lines += [self._titles(block), r"\midrule", *self._body(block)]
            lines += [r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*lines, r"\end{table}", ""])

    def _longtable(self, block: Block, named: list[str]) -> Iterator[str]:
        head = (r"\toprule", self._titles(block), r"\midrule")
        yield _space(block)
        yield rf"\begin{{longtable}}{{{self._align(block)}}}"
        yield from [line + (r" \\" if line == named[-1] else "") for line in named]
        yield from (*head, r"\endfirsthead", *head, r"\endhead")
        yield from (r"\bottomrule", r"\endfoot", *self._body(block), r"\end{longtable}")

    def _align(self, block: Block) -> str:
        found = [
            f"p{{{wide:.1f}pt}}" if wide else "r" if self.heads[place].number else "l"
            for place, wide in zip(block.places, block.wrapped, strict=True)
        ]
        return "@{}" + "".join(found) + "@{}"

    def _titles(self, block: Block) -> str:
        return " & ".join(self._title(p, w) for p, w in _pairs(block)) + r" \\"

    def _title(self, place: int, wide: float) -> str:
        """A title in as many lines as it takes to be no wider than its column."""
        lines = title_lines(self.heads[place].title, wide, SIZES[self.size])
        if len(lines) == 1:
            return escape(lines[0])
        side = "r" if self.heads[place].number else "l"
        inner = r" \\ ".join(_guarded(escape(line)) for line in lines)
        return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{inner}\end{{tabular}}"

    def _body(self, block: Block) -> Iterator[str]:
        # \raggedright in the last cell of a row changes what \\ means there.
        end = r" \tabularnewline" if any(block.wrapped[-1:]) else r" \\"
        wrapped = dict(zip(block.places, block.wrapped, strict=True))
        for own, row in zip(self.lines, self.rows, strict=True):
            cells = [self._cell(own[p][0][0], row[p], p, wrapped[p]) for p in block.places]
            below = [own[place][1][0] if len(own[place]) > 1 else "" for place in block.places]
            yield _guarded(" & ".join(cells)) + end + ("*" if any(below) and self.long else "")
            if any(below):
                small = [rf"\scriptsize {escape_number(line)}" if line else "" for line in below]
                yield _guarded(" & ".join(small)) + end + "[2pt]"

    def _cell(self, line: str, cell: Cell, place: int, wrapped: float) -> str:
        number = self.heads[place].number
        shown = escape_number(line) if number else escape(line, LONGEST_WORD if wrapped else 0)
        shown = rf"\textbf{{{shown}}}" if cell.bold else shown
        return rf"\raggedright {shown}" if wrapped else shown


def _lines(cell: Cell, intervals: str) -> list[tuple[str, bool]]:
    """A number's lines, and whether they are set small: the mean, and its interval as asked for."""
    found = _INTERVAL.fullmatch(cell.text)
    if found and intervals == STACKED:
        return [(found["mean"], False), (found["ends"], True)]
    if found and intervals == PLUSMINUS and cell.half:
        return [(f"{found['mean']} \u00b1 {cell.half}", False)]
    return [(cell.text, False)]


def _cap(natural: Sequence[float], least: Sequence[float], room: float) -> float:
    """How wide the wide columns may be, so that all fit: those below it keep their width."""
    low, high = 0.0, max(natural)
    for _ in range(40):
        cap = (low + high) / 2
        used = sum(max(le, min(full, cap)) for le, full in zip(least, natural, strict=True))
        low, high = (low, cap) if used > room else (cap, high)
    return low


def _pairs(block: Block) -> Iterator[tuple[int, float]]:
    return zip(block.places, block.widths, strict=True)


def _space(block: Block) -> str:
    return rf"\setlength{{\tabcolsep}}{{{block.space:g}pt}}"


def _guarded(row: str) -> str:
    """A row that opens with [ or * would be read as an argument of the row end before it."""
    return "{}" + row if row.startswith(("[", "*")) else row


def half_widths(
    rows: Sequence[Mapping[str, object]], ends: tuple[str, str], percent: Sequence[bool]
) -> list[str]:
    """Per row half the width of its interval as text: in percent, or with four significant digits."""
    found = []
    for row, share in zip(rows, percent, strict=True):
        low, high = row.get(ends[0]), row.get(ends[1])
        if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low != low:
            found.append("")
        else:
            half = (high - low) / 2
            found.append(f"{100 * half:.1f}" if share else f"{half:.4g}")
    return found
