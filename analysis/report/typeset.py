"""Text in LaTeX: what stands for each character, where a line may break, and how wide it is.

Widths are those of Computer Modern, so that no TeX is needed to know them.
"""

from __future__ import annotations

import re
from functools import lru_cache

from analysis.read.values import NONE

MARGIN = 1.01  # of a measured width, for kerns and what fonts differ in
LONGEST_WORD = 12  # characters, beyond which a line of a wrapped column may break within a word
LONGEST_OF_CAPTION = 24  # the same in a caption

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
# How much wider the smaller designs are than cmr10 made smaller, and bold than upright type.
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


def escape(text: str, longest: int = 0) -> str:
    """Text that LaTeX shows as it is; lines may break within words of more than `longest` characters."""
    words = text.split()
    if not longest:
        return " ".join(map(_escaped, words))
    parts = ([_escaped(piece) for piece in cut_word(word, longest)] for word in words)
    return " ".join(BREAK.join(own) for own in parts)


def escape_number(text: str) -> str:
    """Escaped, with minus signs in place of hyphens."""
    return _MINUS.sub("$-$", escape(text))


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


def line_width(line: str, bold: bool, points: float) -> float:
    """The width of a cell's line; a hyphen before a digit is set as a minus sign."""
    minus = len(_MINUS.findall(line)) * 0.445 * points
    return (BOLD if bold else 1.0) * (measured(line, points) + minus)


def cut_word(word: str, longest: int) -> list[str]:
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


def title_width(title: str, points: float, lines: int = 0) -> float:
    """The least width of a title, in any number of lines or in no more than `lines`."""
    pieces = [piece for word in title.split() for piece in cut_word(word, LONGEST_WORD)]
    least = max((measured(piece, points) for piece in pieces), default=0.0)
    while lines and len(title_lines(title, least, points)) > lines:
        least += points / 4
    return least


def title_lines(title: str, wide: float, points: float) -> list[str]:
    """A title in lines no wider than `wide`, as far as its pieces allow."""
    lines = [""]
    for word in title.split() or [""]:
        for number, piece in enumerate(cut_word(word, LONGEST_WORD)):
            longer = lines[-1] + (" " if lines[-1] and number == 0 else "") + piece
            if lines[-1] and measured(longer, points) > wide:
                lines.append(piece)
            else:
                lines[-1] = longer
    return lines


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)
