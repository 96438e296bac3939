"""The part of the report on single images: thumbnails and words for the page, and its tables as CSV files.

The images themselves are in a run's data, which only the caller can open: it passes what finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from analysis.numbers.images import MOST, OWN, Group, Tables, best_groups, groups, pairs, tables_of
from analysis.read.load import Runs
from analysis.read.study import Study
from analysis.report.paper import csv_text
from tune_ssl.base.errors import Problem, UserError

SHOWN = 12  # images of a list on the page
PAIRS = 4  # of classes, with as many images each as make SHOWN
LARGEST = 1_000_000  # characters of all thumbnails on the page
STEMS = ("confused", "label_suspects", "label_next")


class Images(Protocol):
    """The images of one run's data, but for its test images."""

    def names(self, part: str, rows: Sequence[int]) -> list[str]:
        """The file of each row, "" where there is none."""
        ...

    def picture(self, part: str, row: int) -> tuple[str, int] | None:
        """A small PNG in base64 and its width in pixels."""
        ...


FindImages = Callable[[str, str], Images | None]  # digest and path of a store -> its images


@dataclass(frozen=True)
class Shown:
    """One image on the page. `png` is empty where it cannot be shown."""

    name: str
    words: str
    png: str = ""
    width: int = 0


@dataclass
class SingleImages:
    """What the report says of single images: `conditions` for the page, `tables` for the files, by stem."""

    conditions: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    absent: bool = False  # of a run the images are not on this machine
    cut: bool = False  # there are more thumbnails than the page has room for

    def write(self, folder: Path) -> None:
        """Write each table to `folder` as a CSV file. UserError where that cannot be."""
        for stem, table in self.tables.items():
            path = folder / f"{stem}.csv"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(csv_text(table), encoding="utf-8")
            except OSError as error:
                raise UserError(
                    Problem(f"cannot be written: {error.strerror}", str(path))
                ) from None


def single_images(runs: Runs, find: FindImages | None = None) -> SingleImages:
    """Everything that the report says of single images. Without `find` none of them is shown or named."""
    found = groups(runs)
    result = SingleImages()
    if not found:
        return result
    opened: dict[tuple[str, str], Images | None] = {}
    room = [LARGEST]
    best = {id(group) for group in best_groups(found)}
    rows: dict[str, list[pd.DataFrame]] = {stem: [] for stem in STEMS}
    several = len(runs.studies) > 1
    for group in found:
        study = runs.study(group.run)
        images = _images(study, group.condition, find, opened)
        result.absent |= images is None
        own = tables_of(group)
        for stem, table in zip(STEMS, own, strict=True):
            rows[stem].append(_for_file(group, study, table, images))
        if id(group) in best:
            view = _view(group, own, _class_names(study), images, room)
            view["method"] = group.label if several else ""
            result.conditions.append(view)
    result.cut = room[0] < 0
    result.tables = {stem: pd.concat(parts, ignore_index=True) for stem, parts in rows.items()}
    return result


def _images(
    study: Study,
    condition: str,
    find: FindImages | None,
    opened: dict[tuple[str, str], Images | None],
) -> Images | None:
    """The images that a condition began with; opened once for all conditions of the same data."""
    about: Mapping[str, Any] = next(c for c in study.raw["conditions"] if c["id"] == condition)
    digest = str(about.get("data") or study.dataset.get("digest") or "")
    key = digest, str(about.get("store") or "")
    if find is None or not digest:
        return None
    if key not in opened:
        opened[key] = find(*key)
    return opened[key]


def _class_names(study: Study) -> Callable[[int], str]:
    classes = study.dataset.get("classes")
    names = [str(name) for name in classes] if isinstance(classes, (list, tuple)) else []
    return lambda label: names[label] if 0 <= label < len(names) else f"class {label}"


def _for_file(
    group: Group, study: Study, table: pd.DataFrame, images: Images | None
) -> pd.DataFrame:
    """A table with the names of files and classes, as its CSV has it."""
    name = _class_names(study)
    files: dict[tuple[str, int], str] = {}
    if images is not None:
        for part, rows in table.groupby("part")["row"]:
            own = [int(row) for row in rows]
            names = images.names(str(part), own)
            files |= {(str(part), row): file for row, file in zip(own, names, strict=True)}
    places = zip(table["part"], table["row"], strict=True)
    found = table.assign(file=[files.get((str(part), int(row)), "") for part, row in places])
    for column in ("given", "predicted"):
        if column in found:
            found[column] = [name(label) for label in found[column]]
    columns = ["file", *table.columns]
    return found[columns].assign(**group.own)[[*OWN, *columns]].drop(columns="run")


# ---- the page -------------------------------------------------------------------------------------


def _view(
    group: Group,
    own: Tables,
    name: Callable[[int], str],
    images: Images | None,
    room: list[int],
) -> dict[str, Any]:
    """A condition as the template shows it: its three lists, with pictures while there is room for them."""
    of_pairs = [
        {
            "title": f"{name(given)}, taken for {name(predicted)} ({int(rows['pair_count'].iloc[0])} times)",
            "images": [
                _one(row, f"{100 * row['score']:.0f} % sure", images, room)
                for row in _first(rows, SHOWN // PAIRS)
            ],
        }
        for (given, predicted), rows in pairs(own.confused, PAIRS)
    ]
    doubted = [
        _one(
            row,
            f"given {name(row['given'])}; {row['votes']} of {row['seeds']}: {name(row['predicted'])}",
            images,
            room,
        )
        for row in _first(own.suspects)
    ]
    unknown = [
        _one(row, f"{row['votes']} of {row['seeds']}: {name(row['predicted'])}", images, room)
        for row in _first(own.label_next)
    ]
    return {
        "condition": group.condition,
        "seeds": len(group.pools),
        "pairs": of_pairs,
        "suspects": doubted,
        "suspected": f"{len(own.suspects):,}{' or more' if len(own.suspects) == MOST else ''}",
        "right": f"{100 * group.accuracy:.0f} %",
        "label_next": unknown,
        "left_out": max((pool.left_out for pool in group.pools), default=0),
    }


def _first(table: pd.DataFrame, most: int = SHOWN) -> Iterable[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.head(most).to_dict("records")  # type: ignore[assignment]
    return rows


def _one(row: Mapping[str, Any], words: str, images: Images | None, room: list[int]) -> Shown:
    part, number = str(row["part"]), int(row["row"])
    name = f"{part}, image {number}"
    if images is None:
        return Shown(name, words)
    name = images.names(part, [number])[0] or name
    picture = images.picture(part, number) if room[0] > 0 else None
    if picture is None:
        return Shown(name, words)
    png, width = picture
    room[0] -= len(png)
    return Shown(name, words, png, width) if room[0] >= 0 else Shown(name, words)
