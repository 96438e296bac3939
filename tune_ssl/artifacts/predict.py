"""`tune-ssl predict`: a saved network's class probabilities for image files, a batch at a time."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from tune_ssl.artifacts.model_files import Card, Model, load_model, read_card
from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.files import write_atomically
from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import ImageFile, as_text, find_images, first_names
from tune_ssl.data.image_files import Decoding, Uint8s
from tune_ssl.data.image_reader import ImageReader
from tune_ssl.methods import method_names
from tune_ssl.methods.plugins import load_plugins
from tune_ssl.records import log

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

Tell = Callable[[str], None]


def image_files(paths: Iterable[Path], tell: Tell) -> list[ImageFile]:
    """The files that are named, and all image files below the folders that are, each one once.

    In folders a file counts by its content: `tell` gets a line of what is left out, and why.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    found: dict[str, ImageFile] = {}
    problems: list[Problem] = []
    for path in paths:
        if path.is_dir():
            left_out: dict[str, list[str]] = {}
            reader = ImageReader(path, DataSpec(max_pixels=sys.maxsize))
            listed = find_images(path, path, left_out)
            reader.look(listed)
            for name, why in reader.no_images.items():
                left_out.setdefault(why, []).append(name)
            files = [
                file._replace(path=str(path / file.path))
                for file in listed
                if file.path not in reader.no_images
            ]
            if not files:
                problems.append(Problem("is a folder without images", str(path)))
            for reason, names in left_out.items():
                tell(f"{path}: left out: {len(names)} files, {reason} ({first_names(names)})")
        else:
            try:
                status = path.stat()
            except OSError as error:
                problems.append(Problem(f"cannot be read: {first_line(error)}", str(path)))
                continue
            files = [ImageFile(str(path), status.st_size, status.st_mtime_ns)]
        found |= {file.path: file for file in files}
    if problems:
        raise UserError(problems)
    return list(found.values())


def load(folder: Path, device: str, plugins: Sequence[Path] = ()) -> Model:
    """The network of a model's folder. Of a run's own model the plugins are the run's, unless given.

    Raises:
        UserError: no model, a torn one, a method that is not known here, or an unknown device.
    """
    if (folder / log.STUDY).exists():
        raise UserError(Problem(f"is a run folder, {_models(folder)}", str(folder)))
    card = read_card(folder)
    run = folder.absolute().parent.parent
    if plugins:
        load_plugins(plugins)
    elif folder.absolute().parent.name == log.MODELS and (run / log.STUDY).exists():
        from tune_ssl.runs.folder import run_plugins

        run_plugins(run)
    method = card.spec.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    if isinstance(name, str) and name not in method_names():
        text = f"is of method {name!r}, which is none of tune-ssl's own: --plugin FILE brings it"
        raise UserError(Problem(text, str(folder)))
    from tune_ssl.training.device import pick_device

    try:
        place = pick_device(device)
    except UserError as error:
        raise UserError(replace(problem, key="--device") for problem in error.problems) from None
    return load_model(folder, str(place))


def probabilities(
    model: Model, files: Sequence[ImageFile], batch_size: int, tell: Tell
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(path, probabilities (K,)) of each file that can be read, in order; `tell` gets a line of the others.

    Raises:
        UserError: the network has no classes, or its probabilities are not finite.
    """
    how = decoding_of(model.card)
    side = how.side
    shape = (how.channels, model.card.image_size, model.card.image_width or model.card.image_size)
    shape = shape if side is None else (how.channels, side, side)
    reader = ImageReader(Path(), DataSpec())
    batch: list[tuple[str, Uint8s]] = []
    for file, image in zip(files, reader.read(files, how, shape), strict=True):
        if image is None:
            tell(f"{first_names([file.path])} cannot be read: {reader.bad[file.path]}")
        else:
            batch.append((file.path, image.pixels))
        if len(batch) == batch_size:
            yield from _classified(model, batch)
            batch = []
    if batch:
        yield from _classified(model, batch)


def decoding_of(card: Card) -> Decoding:
    """How image files become what the network was trained on; of older models what was the rule then."""
    if card.decoding is not None:
        return Decoding.from_record(card.decoding)
    # Where images were used as they are, and are not square, there is no rule to fit others by.
    square = card.image_width in (None, card.image_size)
    return Decoding(card.channels, card.image_size if square else None)


def write_csv(
    model: Model, files: Sequence[ImageFile], out: Path | None, batch_size: int, tell: Tell
) -> int:
    r"""Write path, class, confidence, and a column `p_<class>` per class to `out`, or to stdout, as UTF-8.

    Bytes of a path that are no UTF-8 stand there as \xff. A file
    is written whole or not at all. Returns how many images could not be read.

    Raises:
        UserError: as `probabilities`, or the file cannot be written.
    """
    classes, rows = model.card.classes, 0

    def write(file: TextIO) -> None:
        nonlocal rows
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", "confidence", *(f"p_{name}" for name in classes)])
        for path, shares_K in probabilities(model, files, batch_size, tell):
            best = int(shares_K.argmax())
            shown = [f"{share:.6f}" for share in shares_K]
            writer.writerow([as_text(path), classes[best], shown[best], *shown])
            rows += 1

    def fill(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        write(text)
        text.flush()
        text.detach()  # the file is closed by who opened it

    if out is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        write(sys.stdout)
        sys.stdout.flush()
    elif out.is_dir():
        raise UserError(Problem("is a folder, but must be a file's name", str(out)))
    else:
        try:
            write_atomically(out, fill)
        except OSError as error:
            raise UserError(Problem(f"cannot be written: {first_line(error)}", str(out))) from None
    return len(files) - rows


def _classified(
    model: Model, batch: list[tuple[str, Uint8s]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    from tune_ssl.data.loading import Normalizer
    from tune_ssl.data.pixels import resize

    card, device = model.card, model.device
    images = torch.from_numpy(np.stack([pixels for _, pixels in batch])).to(device)
    with torch.no_grad():
        size = (card.image_size, card.image_width or card.image_size)
        inputs = Normalizer(card.mean, card.std, device).normalize(resize(images, size))
        logits_NK = model.stage.predict(model.network, inputs).logits_NK
    if logits_NK is None:
        text = f"has no classes: its last stage, {card.stage}, gives features only"
        raise UserError(Problem(text, card.trial))
    shares_NK = logits_NK.float().softmax(dim=1).cpu().numpy()
    for (path, _), shares_K in zip(batch, shares_NK, strict=True):
        if not np.isfinite(shares_K).all():
            text = f"gives probabilities that are not finite, first for {first_names([path])}"
            raise UserError(Problem(text, card.trial))
        yield path, shares_K


def _models(run: Path) -> str:
    """What to give instead of a run folder."""
    found = sorted((run / log.MODELS).glob(f"*/{log.MODEL}"))
    if not found:
        return "but must be a model's, and the run has none"
    cards: list[tuple[Path, Card]] = [(path.parent, read_card(path.parent)) for path in found]
    listed = ", ".join(f"{path} ({card.condition})" for path, card in cards)
    return f"but must be a model's: {listed}"
