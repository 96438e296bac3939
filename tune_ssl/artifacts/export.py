"""`tune-ssl export`: a confirmed network in a folder of its own, with a card for people in README.md."""

from __future__ import annotations

import html
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tune_ssl.artifacts import onnx_files
from tune_ssl.artifacts.model_files import Card, model_folder, read_card
from tune_ssl.artifacts.predict import load
from tune_ssl.base.errors import Problem, UserError, first_line, printable
from tune_ssl.base.files import refuse_filled
from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import digest
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import choose_condition

if TYPE_CHECKING:
    import safetensors
else:
    safetensors = LazyModule("safetensors")

README = "README.md"
LISTED = 30  # classes in the card


class Exported(NamedTuple):
    """What was exported; `difference` as of `onnx_files.write_onnx`, or None where no ONNX file was asked for."""

    card: Card
    difference: float | None


def export_model(run: Path, condition: str | None, out: Path, onnx: bool = False) -> Exported:
    """Copy the model of a condition to the folder `out`, whole or not at all, and write its card.

    With `onnx` the folder has the network as an ONNX file, too.

    Raises:
        UserError: none named of several conditions, no saved or a torn model, a folder that is not empty or
            cannot be written, or, with `onnx`, a missing package or plugin, or a network that cannot be exported.
    """
    if onnx:
        onnx_files.check_installed()
    chosen = choose_condition(run, condition)
    source = model_folder(run, chosen)
    card = read_card(source)
    check_weights(source)
    refuse_filled(out)
    lines = readme(run, card, out)
    difference = None
    model = load(source, "cpu") if onnx else None
    temporary = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for name in (log.WEIGHTS, log.MODEL):
            shutil.copyfile(source / name, temporary / name)
        if model is not None:
            difference = onnx_files.write_onnx(model, temporary / onnx_files.ONNX)
            lines += onnx_files.usage(card, difference)
        (temporary / README).write_text("\n".join(lines), encoding="utf-8")
        temporary.replace(out)  # an empty folder gives way
    except OSError as error:
        raise UserError(Problem(f"cannot be written: {first_line(error)}", str(out))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(card, difference)


def check_weights(folder: Path) -> None:
    """UserError unless the weights' file is whole; reads its header alone."""
    path = folder / log.WEIGHTS
    try:
        path.open("rb").close()  # its error has a reason of its own
        with safetensors.safe_open(path, "np"):
            pass
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {first_line(error)}", str(path))) from None
    except safetensors.SafetensorError:
        raise UserError(Problem("is torn or no safetensors file", str(path))) from None


def readme(run: Path, card: Card, out: Path) -> list[str]:
    """Lines of Markdown: what the network is, on what it was trained, how good it is, and how to use it."""
    about = read_yaml(run / log.STUDY).data
    conditions = {c.get("id"): c for c in about.get("conditions") or () if isinstance(c, dict)}
    try:
        data, labels = about["dataset"], conditions[card.condition]["labels"]
        origin, images, dataset = about["name"], data["counts"]["train"], data["name"]
    except (KeyError, TypeError):
        text = "was not written by `tune-ssl search`"
        raise UserError(Problem(text, str(run / log.STUDY))) from None
    ended = Ledger.glance(run).ended
    plugins = about.get("plugins") or []
    try:
        method, encoder = card.spec["method"]["name"], card.spec["model"]["encoder"]
        plugins = [{"path": str(p["path"]), "digest": str(p["digest"])} for p in plugins]
    except (KeyError, TypeError):
        raise UserError(Problem("was not written by `tune-ssl search`", str(run))) from None
    width = card.image_width or card.image_size
    classes = ", ".join(card.classes[:LISTED])
    more = f" and {len(card.classes) - LISTED} more" if len(card.classes) > LISTED else ""
    rows = {
        "data": f"{dataset} (digest {card.data}, split {card.split}), "
        f"{labels} labeled images, all images of the train part {images}",
        "condition": f"`{card.condition}`",
        "method": f"{method}, stage {card.stage}, encoder {encoder}",
        "classes": f"{len(card.classes)}: {classes}{more}",
        "input": f"{card.channels} x {card.image_size} x {width} pixels (channels, height, width)",
        "origin": f"trial {card.trial} of run {origin}, seed {card.seed}, "
        f"spec {digest(card.spec)}, tune-ssl {card.tune_ssl}",
    }
    need = "".join(f" --plugin {shlex.quote(Path(plugin['path']).name)}" for plugin in plugins)
    return [
        f"# {_cell(f'{method} on {dataset}, {labels} labels')}",
        "",
        "| what | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
        "",
        "## How good it is",
        "",
        *_measured(card, ended, data["counts"].get("test")),
        "",
        "## How to use it",
        "",
        f"    tune-ssl predict {shlex.quote(out.absolute().name)}{need} IMAGES... -o predictions.csv",
        "",
        *(
            f"The method is in the plugin {Path(plugin['path']).name}, digest {plugin['digest']}, which is "
            "not in this folder."
            for plugin in plugins
        ),
        f"Images are decoded, scaled and cut as in training; `{log.MODEL}` has the mean and deviation "
        "of the channels,",
        f"the class names and the whole spec, `{log.WEIGHTS}` the weights. Neither file can hold code.",
        "",
    ]


def _measured(card: Card, ended: dict[str, Any], images: int | None) -> list[str]:
    """The network's own test values, and those of the other fresh seeds of its config."""
    key = "test/mean_class_accuracy"
    own = ended.get(card.trial, {}).get("metrics") or {}
    if own.get(key) is None or own.get("test/accuracy") is None:
        return ["Its test accuracy is not recorded."]
    prefix = card.trial.rpartition("-s")[0]
    others = [
        event["metrics"][key]
        for trial, event in ended.items()
        if trial.rpartition("-s")[0] == prefix and (event.get("metrics") or {}).get(key) is not None
    ]
    on = f"{own.get('test/count') or images} test images"
    lines = [
        f"Test accuracy {own['test/accuracy']:.4f}, mean over classes {own[key]:.4f}, on {on}: this network "
        f"alone, seed {card.seed}.",
    ]
    if len(others) > 1:
        mean = sum(others) / len(others)
        lines.append(
            f"The same config on all {len(others)} fresh seeds: mean {mean:.4f}, from {min(others):.4f} to "
            f"{max(others):.4f}. This network was kept for its seed, the first one, not for its accuracy."
        )
    if own.get("test/calibration_error") is not None:
        error = own["test/calibration_error"]
        lines.append(
            f"Expected calibration error of its probabilities on the same images: {error:.4f}."
        )
    return lines


def _cell(text: str) -> str:
    return html.escape(printable(text.replace("\n", " ")), quote=False).replace("|", "\\|")
