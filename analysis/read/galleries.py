"""What the model sees: the galleries of each condition's first confirmed seed, as the page shows them.

A torn or malformed line is left out and noted, since no result rests on a picture.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.read.study import Study
from analysis.read.values import missing
from tune_ssl.records import ledger, log

PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")  # base64 that starts as every PNG does
WIDEST = 4000  # pixels of a strip


@dataclass(frozen=True)
class Strip:
    """One row of images: a PNG in base64, `width` pixels wide, with a caption below each of its images."""

    title: str
    png: str
    width: int
    captions: tuple[str, ...]

    @property
    def cells(self) -> list[tuple[str, bool]]:
        """Each caption, and whether it is another class than the first image's."""
        return [(caption, caption != self.captions[0]) for caption in self.captions]

    @property
    def alt(self) -> str:
        """The strip in words, for those who do not see it."""
        first, *others = self.captions or (self.title,)
        return f"{first}; nearest: {', '.join(others)}" if others else first


@dataclass(frozen=True)
class Gallery:
    """One gallery of a run's condition; `sentence` says its number in words, if it has one."""

    label: str
    condition: str
    trial: str
    title: str
    sentence: str
    rows: tuple[Strip, ...]


def read_galleries(study: Study, notes: list[str]) -> list[Gallery]:
    """The galleries of a run, the last one written of each; `notes` gets what is left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = [
            mine
            for line in log.read(study.path / log.GALLERIES)
            if (mine := study.own(line)) is not None
        ]
    own = f"{study.path.name}: {log.GALLERIES}: "
    notes += [own + str(w.message).split(": ", 1)[-1] + "." for w in caught]
    known = [condition["id"] for condition in study.raw["conditions"]]
    sound = [line for line in lines if _is_complete(line) and line["condition"] in known]
    strange = len(lines) - len(sound)
    found = []
    for line in ledger.latest_galleries(sound):
        if line.get("error"):
            notes.append(
                f"{own}{line['name']} of {line['trial']} could not be made: {line['error']}."
            )
            continue
        gallery = _gallery(study, line)
        strange += gallery is None
        found += [gallery] if gallery else []
    if strange:
        notes.append(f"{own}{strange} strange line(s) left out.")
    return found


def agreement(values: Any) -> str:
    """The class agreement in words; empty without one."""
    share, k, images = (values.get(key) for key in ("class_agreement", "k", "images"))
    if missing(share) or not all(isinstance(n, (int, float)) for n in (share, k, images)):
        return ""
    return (
        f"Over all {images:,.0f} validation images: of the {k:.0f} nearest validation images, "
        f"{100 * share:.1f} % have the query's class."
    )


def _is_complete(line: log.Record) -> bool:
    keys = ("trial", "name", "condition")
    return line.get("schema") == log.SCHEMA and all(isinstance(line.get(k), str) for k in keys)


def _gallery(study: Study, line: log.Record) -> Gallery | None:
    """The line's gallery; None where it is no such thing."""
    rows, values = line.get("rows"), line.get("values")
    if not isinstance(rows, list) or not rows:
        return None
    found = [_strip(row) for row in rows]
    if None in found:
        return None
    return Gallery(
        study.label,
        line["condition"],
        line["trial"],
        str(line.get("title") or line["name"]),
        agreement(values if isinstance(values, dict) else {}),
        tuple(row for row in found if row),
    )


def _strip(row: Any) -> Strip | None:
    if not isinstance(row, dict):
        return None
    png, width, captions = row.get("png"), row.get("width"), row.get("captions", [])
    if not isinstance(png, str) or not PNG.fullmatch(png):
        return None
    if not isinstance(width, int) or not 0 < width <= WIDEST or not isinstance(captions, list):
        return None
    return Strip(str(row.get("title", "")), png, width, tuple(map(str, captions)))


def galleries_by_condition(galleries: Sequence[Gallery]) -> list[tuple[str, list[Gallery]]]:
    """Condition -> its galleries, of all runs."""
    groups: dict[str, list[Gallery]] = {}
    for gallery in galleries:
        groups.setdefault(gallery.condition, []).append(gallery)
    return list(groups.items())
