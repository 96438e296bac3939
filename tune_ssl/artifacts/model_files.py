"""A trained network on disk: `model.safetensors` and beside it `model.json`, which says how to build it.

Neither file can hold code. `model.json` has the whole TrialSpec, the class names, the channels' mean
and deviation, and the digests of the data and of the split that the network was trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from tune_ssl import __version__
from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Size, Spec
from tune_ssl.data.batch import Task
from tune_ssl.methods.base import Stage
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import choose_condition, condition_ids
from tune_ssl.study.trial import TrialSpec, build_trial, renewed, set_dotted

if TYPE_CHECKING:
    import safetensors
    import safetensors.torch as safe
    import torch
    from torch import nn

    from tune_ssl.training.loop import Trained
else:
    safetensors = LazyModule("safetensors")
    safe = LazyModule("safetensors.torch")
    torch = LazyModule("torch")


class Card(Spec):
    """All of model.json. `spec` is a TrialSpec as plain values; `data` and `split` are digests."""

    model_config = ConfigDict(extra="ignore")  # a later version may say more

    schema_version: int
    tune_ssl: str
    trial: str
    condition: str
    seed: int
    spec: dict[str, Any]
    stage: str
    classes: list[str]
    channels: Size
    image_size: Size  # the images' height
    image_width: Size | None = None  # absent: as wide as high
    decoding: dict[str, Any] | None = (
        None  # how files became images; absent: scaled, and cut at the centre
    )
    mean: list[float]
    std: list[float]
    data: str
    split: str


@dataclass(frozen=True)
class Model:
    """A saved network, in eval mode, with all that it takes to use it."""

    card: Card
    spec: TrialSpec
    stage: Stage[Any]
    network: nn.Module
    device: torch.device


def save_model(
    folder: Path, trained: Trained, *, trial: str, condition: str, spec: dict[str, Any]
) -> None:
    """Write both files into `folder`: the weights that were evaluated, and what is needed to use them."""
    store, task = trained.data.store, trained.data.task
    card = Card(
        schema_version=log.SCHEMA,
        tune_ssl=__version__,
        trial=trial,
        condition=condition,
        seed=spec["seed"],
        spec=spec,
        stage=trained.stage.name,
        classes=list(store.class_names),
        channels=task.channels,
        image_size=task.image_size,
        image_width=task.size[1],
        decoding=None if store.decoding is None else store.decoding.to_record(),
        mean=list(trained.data.mean),
        std=list(trained.data.std),
        data=store.digest,
        split=trained.data.split.digest,
    )
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in trained.network.state_dict().items()
    }
    safe.save_file(weights, folder / log.WEIGHTS)
    (folder / log.MODEL).write_text(card.model_dump_json(indent=1), encoding="utf-8")


def read_card(folder: Path) -> Card:
    """What model.json says. UserError if it cannot be read or was changed."""
    path = folder / log.MODEL
    try:
        card = Card.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {first_line(error)}", str(path))) from None
    except (ValueError, RecursionError) as error:  # pydantic's and json's own are ValueErrors
        text = f"is no description of a model: {' '.join(str(error).split())}"
        raise UserError(Problem(text[:200], str(path))) from None
    if card.schema_version != log.SCHEMA:
        text = f"is {card.schema_version}, but this version of tune-ssl reads only {log.SCHEMA}"
        raise UserError(Problem(text, "schema_version", str(path)))
    return card


def load_model(folder: Path, device: str = "cpu") -> Model:
    """The network of the method's last stage, built from model.json, with the saved weights.

    A stage may be built upon the network of the one before it; that one is built too, with random
    weights, and everything that the last network took from it is among the saved ones.

    Raises:
        UserError: a file is missing, torn or changed, or the weights are not this network's.
    """
    card = read_card(folder)
    try:
        # All that counts is in the saved weights: those that it began with may be gone
        bare = set_dotted(renewed(card.spec), {"model.weights": "none"})
        spec = build_trial(bare, saved=True)
    except UserError as error:
        where = str(folder / log.MODEL)
        raise UserError(Problem(str(problem), where=where) for problem in error.problems) from None
    network: Any = None
    for stage in spec.stages():
        task = Task(len(card.classes), card.channels, card.image_size, card.image_width)
        network = stage.build(task, spec.model, network)
    weights = folder / log.WEIGHTS
    try:
        network.load_state_dict(safe.load_file(weights))
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {first_line(error)}", str(weights))) from None
    except safetensors.SafetensorError:
        raise UserError(Problem("is torn or no safetensors file", str(weights))) from None
    except RuntimeError:
        text = f"does not fit the network that tune-ssl {__version__} builds from {log.MODEL}"
        raise UserError(Problem(f"{text} (saved by {card.tune_ssl})", str(weights))) from None
    network = network.to(device).eval().requires_grad_(False)
    return Model(card, spec, stage, network, torch.device(device))


def model_folder(run: Path, condition: str | None) -> Path:
    """Where the model of a condition lies: of the first one that has any, unless given."""
    known = condition_ids(run)
    wanted = known if condition is None else [choose_condition(run, condition)]
    folders = [run / log.MODELS / str(known.index(name)) for name in wanted]
    for folder in folders:
        if (folder / log.MODEL).exists():
            return folder
    of = "" if condition is None else f" of condition {condition}"
    raise UserError(Problem(f"has no saved model{of}: {why_none(run, wanted[0])}", str(run)))


def why_none(run: Path, condition: str) -> str:
    """Why the run has no saved model of the condition: its first confirm trial saves it."""
    ledger = Ledger.glance(run)
    confirmed = ledger.trials(condition, log.CONFIRM)
    ending = next((end for trial, _, end in confirmed if not ledger.superseded(trial)), None)
    if ledger.only_ablates:
        return "it has an ablation alone, and an ablation saves none"
    if ending is None and not ledger.scores(condition, "max"):
        return "no trial of its search finished"
    if ending is None:
        return f"it is not confirmed yet; `tune-ssl search --resume {run.name}` does that"
    if ending["event"] != log.FINISHED:
        how = ending["event"].replace("_", " ")
        return f"the run of its first fresh seed, {ending['trial']}, {how}"
    return "it was confirmed by a tune-ssl that saved none; a new run saves them"
