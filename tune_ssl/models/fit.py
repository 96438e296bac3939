"""Whether an encoder takes a task's images, has what is asked of it, and fits its weights: before any training."""

from __future__ import annotations

from functools import lru_cache

import torch

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.models import stem
from tune_ssl.models.encoders import build_encoder, freeze
from tune_ssl.models.weights import load_weights, statistics

SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 384, 512)  # tried, to name some that do


def check_fit(model: ModelSpec, task: Task) -> None:
    """UserError where the encoder cannot be built for the images, frozen as asked, or given its weights."""
    _check(model.model_dump_json(), task)
    statistics(model, task.channels)


@lru_cache(maxsize=64)
def _check(model_json: str, task: Task) -> None:
    model = ModelSpec.model_validate_json(model_json)
    size = task.size
    if why := _why_not(model, task.channels, size):
        sides = [side for side in SIDES if not _why_not(model, task.channels, (side, side))]
        some = (
            f"; it takes images of {', '.join(map(str, sides))} px (data.image_size)"
            if sides
            else ""
        )
        text = f"is {model.encoder}, which does not take images of {size[0]} x {size[1]} px: {why}{some}"
        raise UserError(Problem(text, "model.encoder"))
    on = "cpu" if model.weights != "none" else "meta"
    with torch.device(on):
        encoder = build_encoder(model.encoder, task.channels, stem(model.stem, size[0]), size)
        freeze(encoder, model.freeze, model.encoder)
    load_weights(encoder, model, task.channels)


def _why_not(model: ModelSpec, channels: int, size: tuple[int, int]) -> str:
    """Why the encoder does not take two such images; empty if it does. Nothing is computed: shapes alone."""
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = build_encoder(model.encoder, channels, stem(model.stem, size[0]), size)
            out = encoder.train()(torch.zeros(2, channels, *size))
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's network raises
        return f"{type(error).__name__}: {first_line(error)[:160]}"
    return "" if out.shape == (2, encoder.out_dim) else f"it gives {tuple(out.shape)}"
