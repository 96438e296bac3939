"""The optimizers of a stage, by its spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
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
        return _without_compiler(torch.optim.SGD)(
            groups, lr=spec.lr, momentum=spec.momentum, nesterov=nesterov, fused=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return _without_compiler(kind)(groups, lr=spec.lr, fused=True)


@cache
def _without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer, whose methods do not load torch's compiler, which is never used here.

    torch wraps them so that the compiler leaves them alone, and the first call of any imports it: 1.5 seconds.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)
