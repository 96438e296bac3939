"""`tune-ssl neighbors`: what a confirmed run's saved network finds alike among validation images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tune_ssl.artifacts.model_files import Card, load_model, model_folder, read_card
from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.files import write_atomically
from tune_ssl.runs.folder import run_plugins, stores_of

if TYPE_CHECKING:
    from PIL import Image

    from tune_ssl.artifacts.galleries import Neighbours

MOST = 100  # query images, and neighbours of each
PIXELS = 40_000_000  # of the written grid: its images become smaller, but stay legible
TEXT = 14  # pixels below an image
OTHER = (213, 94, 0)  # behind the name of a class that is not the query's


@dataclass(frozen=True)
class NamedNeighbours:
    """What the command shows, with the names of the classes."""

    condition: str
    trial: str
    neighbours: Neighbours
    classes: tuple[str, ...]

    def names(self) -> list[list[str]]:
        """Per query: its class, then its neighbours' classes."""
        labels = self.neighbours.on.labels
        return [[self.classes[label] for label in labels[row]] for row in self.neighbours.rows()]


def check_counts(queries: int, k: int) -> None:
    """UserError unless both are from 1 to MOST."""
    problems = [
        Problem(f"is {value}, but must be from 1 to {MOST}", option)
        for option, value in (("--query", queries), ("--k", k))
        if not 1 <= value <= MOST
    ]
    if problems:
        raise UserError(problems)


def find(run: Path, condition: str | None, queries: int, k: int) -> NamedNeighbours:
    """The nearest validation images under the model of a condition; the first one unless given.

    Raises:
        UserError: a number out of range, an unknown condition, no saved model, or other data.
    """
    check_counts(queries, k)
    folder = model_folder(run, condition)
    card = read_card(folder)
    run_plugins(run)
    from tune_ssl.artifacts.galleries import find_neighbours
    from tune_ssl.training.device import pick_device
    from tune_ssl.training.loop import Trained

    device = pick_device("auto")
    model = load_model(folder, str(device))
    data = same_data(model.spec, card, device, stores_of(run).get(card.condition))
    if len(data.sets.validation) < 2:
        raise UserError(Problem("has one validation image, which has no neighbour", card.condition))
    trained = Trained(model.stage, model.network, data)
    try:
        found = find_neighbours(trained, queries, k)
    except ValueError as error:
        raise UserError(Problem(f"cannot be used: {error}", str(folder))) from None
    return NamedNeighbours(card.condition, card.trial, found, tuple(card.classes))


def same_data(spec: Any, card: Card, device: Any, began: tuple[str, str] | None) -> Any:
    """The data that the model was trained on: where the run `began` with them, else where the spec says.

    UserError if they are not there or not the same.
    """
    from tune_ssl.data.loading import load_data
    from tune_ssl.data.store import pinned_store

    what = f"the data of {card.trial}"
    try:
        store = pinned_store(spec.data, began[1], began[0]) if began else None
        data = load_data(
            spec.data,
            spec.split_seed,
            device,
            lambda channels: (card.mean, card.std),
            spec.views,
            store,
        )
    except UserError as error:
        raise UserError(Problem(f"{what}: {problem}") for problem in error.problems) from None
    if data.store.digest != card.data:
        text = f"has digest {data.store.digest} now, but the model was trained on {card.data}"
        raise UserError(Problem(text, what))
    if data.split.digest != card.split:
        text = f"is split as {data.split.digest} now, but the model was trained on {card.split}"
        raise UserError(Problem(text, what))
    return data


# ---- what is shown -----------------------------------------------------------------------------


def table(found: NamedNeighbours) -> Table:
    """One line per query; the share of its neighbours that have its class at the end."""
    shown = Table()
    shown.add_column("query", no_wrap=True)
    shown.add_column(f"its {found.neighbours.k} nearest")
    shown.add_column("agree", justify="right", no_wrap=True)
    for names, share in zip(found.names(), found.neighbours.agreements(), strict=True):
        shown.add_row(
            Text(names[0]),
            Text(", ").join(
                Text(name, style="" if name == names[0] else "bold") for name in names[1:]
            ),
            f"{100 * share:.0f} %",
        )
    return shown


def sentence(found: NamedNeighbours) -> str:
    """The class agreement over all validation images, in words."""
    near = found.neighbours
    share = f"{100 * near.agreement:.1f} %"
    return (
        f"over all {len(near.on)} validation images: of the {near.k} nearest validation images, "
        f"{share} have the query's class"
    )


def grid(found: NamedNeighbours) -> Image.Image:
    """A row per query: itself, then its neighbours, each with its class below it."""
    from PIL import ImageDraw, ImageFont

    from tune_ssl.artifacts.thumbnails import GAP, SMALLEST, sheet, shown_side

    near = found.neighbours
    rows = [near.on.images.gather(row) for row in near.rows()]
    images = len(rows) * (1 + near.k)
    side = shown_side(near.on.images.shape[-1])
    side = min(side, max(SMALLEST, math.isqrt(PIXELS // images)))
    drawn = sheet(rows, side, below=TEXT).convert("RGB")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default()
    cell = side + GAP
    for y, names in enumerate(found.names()):
        top = y * (cell + TEXT) + cell
        for x, name in enumerate(names):
            behind = (255, 255, 255) if name == names[0] else OTHER
            pen.rectangle((x * cell, top, (x + 1) * cell - GAP, top + TEXT - 1), fill=behind)
            pen.text(
                (x * cell + 2, top + 1), fitted(name, font, cell - 4), fill=(0, 0, 0), font=font
            )
    return drawn


def fitted(name: str, font: Any, width: int) -> str:
    """As much of the name as the font can draw within so many pixels."""
    plain = name.encode("latin-1", "replace").decode("latin-1")
    while plain and font.getlength(plain) > width:
        plain = plain[:-1]
    return plain


def write_grid(found: NamedNeighbours, out: Path) -> None:
    """Write the grid as a PNG, whole or not at all. UserError if it cannot be written."""
    from tune_ssl.artifacts.thumbnails import png

    if out.is_dir():
        raise UserError(Problem("is a folder, but must be a file's name", str(out)))
    content = png(grid(found))
    try:
        write_atomically(out, lambda file: file.write(content))
    except OSError as error:
        raise UserError(Problem(f"cannot be written: {first_line(error)}", str(out))) from None
