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
from functools import lru_cache

from analysis.read.values import NONE

WIDTH = 345.0  # pt: \textwidth of an `article` at 10 pt
HEIGHT = 500.0  # pt: a taller table is a longtable; a page has 550
MOST_ROWS = 200  # of a table in one file
LONGEST_WORD = 12  # characters, beyond which a line of a wrapped column may break within a word
LONGEST_OF_CAPTION = 24  # the same in a caption
NAMING = (
    "Condition",
    "Labels",
    "Method",
    "Trial",
)  # columns that name a row, where they come first
BRACKETS, PLUSMINUS, STACKED = INTERVALS = ("brackets", "plusminus", "stacked")
SIZES = {"small": 9.0, "footnotesize": 8.0, "scriptsize": 7.0}
LEADING = 1.25  # of a line's height to its type
SPACES = (6.0, 4.0, 3.0)  # pt: \tabcolsep
MARGIN = 1.01  # of a measured width, for kerns and what fonts differ in

# Widths of the printable ASCII characters from "!" on, in thousandths of the type's size (cmr10).
CMR10 = (
    *(278, 500, 833, 500, 833, 778, 278, 389, 389, 500, 778, 278, 333, 278, 500),
    *(500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 278, 278, 778, 778, 778, 472),
    *(778, 750, 708, 722, 764, 681, 653, 785, 750, 361, 514, 778, 625, 917, 750, 778),
    *(681, 778, 736, 556, 722, 750, 750, 1028, 750, 750, 611, 278, 500, 278, 500, 500),
    *(278, 500, 556, 444, 556, 444, 392, 528, 556, 278, 306, 528, 278, 833, 556, 500),
    *(556, 528, 392, 394, 389, 556, 528, 722, 528, 528, 444, 500, 278, 500, 500),
)
SPECIAL = {" ": 333, NONE: 500, "\u00b1": 778, "_": 340, "\\": 500, "{": 500, "|": 278, "}": 500}
UNKNOWN = 1030  # any other character: wider than most
# How much wider the smaller designs are, at their widest, and bold ones beside them.
WIDER = {10.0: 1.0, 9.0: 1.029, 8.0: 1.063, 7.0: 1.145}
BOLD = 1.16

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    NONE: "--",
    "\u00b1": r"$\pm$",
    **{character: "\\" + character for character in "&%$#_{}"},
}
BREAK = r"\allowbreak{}"
_AFTER = "._=/,:@+-"  # characters after which a long word may go on in the next line
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
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
            block = self._block(everything, size, SPACES[-1], wrap=True)
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
            if taken and not self._block((*naming, *taken, place), size, SPACES[-1], wrap=True):
                found += filter(None, [self._last((*naming, *taken), size)])
                taken = []
            taken.append(place)
        return [*found, *filter(None, [self._last((*naming, *taken), size)])]

    def _last(self, places: tuple[int, ...], size: str) -> Block | None:
        return self._block(places, size, SPACES[-1], wrap=True, always=True)

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
        title = _title_width(self.heads[place].title, points, lines=2)
        return max([title, *self._cells(place, points)])

    def _least(self, place: int, points: float) -> float:
        """The widest piece of a column that cannot be broken: of numbers that is a whole line."""
        title = _title_width(self.heads[place].title, points)
        if self.heads[place].number:
            return max([title, *self._cells(place, points)])
        pieces = {
            piece
            for row in self.rows
            for word in row[place].text.split()
            for piece in _pieces(word, LONGEST_WORD)
        }
        bold = BOLD if any(row[place].bold for row in self.rows) else 1.0
        return max([title, *(bold * measured(piece, points) for piece in pieces)])

    def _cells(self, place: int, points: float) -> Iterator[float]:
        """The width of each line of a column; what is below a mean is small and not bold."""
        for own, row in zip(self.lines, self.rows, strict=True):
            for line, small in own[place]:
                size = SIZES["scriptsize"] if small else points
                yield _width(line, row[place].bold and not small, size)

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
        yield _space(block)
        yield rf"\begin{{longtable}}{{{self._align(block)}}}"
        yield from [line + (r" \\" if line == named[-1] else "") for line in named]
        yield from (r"\toprule", self._titles(block), r"\midrule", r"\endhead")
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
        lines = _title_lines(self.heads[place].title, wide, SIZES[self.size])
        if len(lines) == 1:
            return escape(lines[0])
        side = "r" if self.heads[place].number else "l"
        inner = r" \\ ".join(_guarded(escape(line)) for line in lines)
        return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{inner}\end{{tabular}}"

    def _body(self, block: Block) -> Iterator[str]:
        # \raggedright in the last cell of a row changes what \\ means there.
        end = r" \tabularnewline" if block.wrapped[-1] else r" \\"
        wrapped = dict(zip(block.places, block.wrapped, strict=True))
        for own, row in zip(self.lines, self.rows, strict=True):
            cells = [self._cell(own[p][0][0], row[p], p, wrapped[p]) for p in block.places]
            below = [own[place][1][0] if len(own[place]) > 1 else "" for place in block.places]
            yield _guarded(" & ".join(cells)) + end + ("*" if any(below) and self.long else "")
            if any(below):
                small = [rf"\scriptsize {_number(line)}" if line else "" for line in below]
                yield _guarded(" & ".join(small)) + end + "[2pt]"

    def _cell(self, line: str, cell: Cell, place: int, wrapped: float) -> str:
        number = self.heads[place].number
        shown = _number(line) if number else escape(line, LONGEST_WORD if wrapped else 0)
        shown = rf"\textbf{{{shown}}}" if cell.bold else shown
        return rf"\raggedright {shown}" if wrapped else shown


def escape(text: str, longest: int = 0) -> str:
    """Text that LaTeX shows as it is; lines may break within words of more than `longest` characters."""
    words = text.split()
    if not longest:
        return " ".join(map(_escaped, words))
    parts = ([_escaped(piece) for piece in _pieces(word, longest)] for word in words)
    return " ".join(BREAK.join(own) for own in parts)


def measured(text: str, points: float) -> float:
    """The width of a line in pt, set in Computer Modern of this size."""
    return MARGIN * WIDER[points] * points * _units(text) / 1000


@lru_cache(maxsize=100_000)
def _units(text: str) -> int:
    return sum(map(_unit, text))


def _unit(character: str) -> int:
    if character in SPECIAL:
        return SPECIAL[character]
    place = ord(character) - 33
    return CMR10[place] if 0 <= place < len(CMR10) else UNKNOWN


def _lines(cell: Cell, intervals: str) -> list[tuple[str, bool]]:
    """A number's lines, and whether they are set small: the mean, and its interval as asked for."""
    found = _INTERVAL.fullmatch(cell.text)
    if found and intervals == STACKED:
        return [(found["mean"], False), (found["ends"], True)]
    if found and intervals == PLUSMINUS and cell.half:
        return [(f"{found['mean']} \u00b1 {cell.half}", False)]
    return [(cell.text, False)]


def _width(line: str, bold: bool, points: float) -> float:
    """The width of a cell's line; a hyphen before a digit is set as a minus sign."""
    minus = len(_MINUS.findall(line)) * 0.445 * points
    return (BOLD if bold else 1.0) * (measured(line, points) + minus)


def _cap(natural: Sequence[float], least: Sequence[float], room: float) -> float:
    """How wide the wide columns may be, so that all fit: those below it keep their width."""
    low, high = 0.0, max(natural)
    for _ in range(40):
        cap = (low + high) / 2
        used = sum(max(le, min(full, cap)) for le, full in zip(least, natural, strict=True))
        low, high = (low, cap) if used > room else (cap, high)
    return low


def _pieces(word: str, longest: int) -> list[str]:
    """A word cut where a line may break in it: after punctuation, and in what is too long without any."""
    if len(word) <= longest:
        return [word]
    found: list[str] = []
    for part in re.findall(rf"[^{re.escape(_AFTER)}]*[{re.escape(_AFTER)}]+|.+", word):
        short = len(part) <= longest + 2  # a word of `longest` characters and its punctuation
        step = len(part) if short else longest
        found += [part[start : start + step] for start in range(0, len(part), step)]
    merged: list[str] = []
    for part in found:  # no break beside a piece of one or two characters
        if merged and min(len(part), len(merged[-1])) < 3 and len(merged[-1] + part) <= longest:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _title_width(title: str, points: float, lines: int = 0) -> float:
    """The least width of a title, in any number of lines or in no more than `lines`."""
    pieces = [piece for word in title.split() for piece in _pieces(word, LONGEST_WORD)]
    least = max((measured(piece, points) for piece in pieces), default=0.0)
    while lines and len(_title_lines(title, least, points)) > lines:
        least += points / 4
    return least


def _title_lines(title: str, wide: float, points: float) -> list[str]:
    """A title in lines no wider than `wide`, as far as its pieces allow."""
    lines = [""]
    for word in title.split() or [""]:
        for number, piece in enumerate(_pieces(word, LONGEST_WORD)):
            longer = lines[-1] + (" " if lines[-1] and number == 0 else "") + piece
            if lines[-1] and measured(longer, points) > wide:
                lines.append(piece)
            else:
                lines[-1] = longer
    return lines


def _pairs(block: Block) -> Iterator[tuple[int, float]]:
    return zip(block.places, block.widths, strict=True)


def _space(block: Block) -> str:
    return rf"\setlength{{\tabcolsep}}{{{block.space:g}pt}}"


def _number(text: str) -> str:
    """Escaped, with minus signs in place of hyphens."""
    return _MINUS.sub("$-$", escape(text))


def _guarded(row: str) -> str:
    """A row that opens with [ or * would be read as an argument of the row end before it."""
    return "{}" + row if row.startswith(("[", "*")) else row


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)


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
