"""The optimizers of a stage, by its spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tune_ssl.base.spec import OptimSpec
from tune_ssl.methods.base import Stage


def build_optimizers(
    optim: OptimSpec, stage: Stage[Any], network: nn.Module
) -> dict[str, tuple[OptimSpec, torch.optim.Optimizer]]:
    """part -> its settings and optimizer; "" is all of the network that is in no part.

    What does not require a gradient (a frozen encoder) is in none.
    """
    modules, taken = stage.parts(network), set[int]()
    built: dict[str, tuple[OptimSpec, torch.optim.Optimizer]] = {}
    for part in (*modules, ""):
        within = modules.get(part, network)
        parameters = [p for p in within.parameters() if p.requires_grad and id(p) not in taken]
        taken.update(map(id, parameters))
        if parameters:
            settings = optim.of(stage.name, part)
            built[part] = settings, build_optimizer(settings, parameters)
    return built


def build_optimizer(spec: OptimSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the spec; biases and normalisation weights are not decayed."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if spec.name == "sgd":
        nesterov = spec.nesterov and spec.momentum > 0
        return torch.optim.SGD(
            groups, lr=spec.lr, momentum=spec.momentum, nesterov=nesterov, fused=True
        )
    kind: Callable[..., torch.optim.Optimizer] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }[spec.name]
    return kind(groups, lr=spec.lr, fused=True)
