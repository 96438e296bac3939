"""The optimizers of a stage, by its spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from tune_ssl.base.spec import OptimPart, OptimSpec
from tune_ssl.methods.base import Stage
from tune_ssl.models.encoders import layer_groups


def build_optimizers(
    optim: OptimSpec, stage: Stage[Any], network: nn.Module
) -> dict[str, tuple[OptimSpec, torch.optim.Optimizer]]:
    """part -> its settings and optimizer; "" is all of the network that is in no part.

    `encoder` and `head` are parts of any network with an encoder, where they have settings of their own. What does
    not require a gradient (a frozen encoder) is in none.
    """
    encoder = getattr(network, "encoder", None)
    if not hasattr(encoder, "out_dim"):  # an encoder of something else
        encoder = None
    modules, taken = stage.parts(network), set[int]()
    own = any(getattr(optim, part) != OptimPart() for part in ("encoder", "head"))
    rest = ""
    if encoder is not None and own:
        modules, rest = {**modules, "encoder": encoder}, "head"
    scales = _scales(encoder) if encoder is not None else {}
    plain = _without_decay(encoder)
    built: dict[str, tuple[OptimSpec, torch.optim.Optimizer]] = {}
    for part in (*modules, rest):
        within = modules.get(part, network)
        parameters = [p for p in within.parameters() if p.requires_grad and id(p) not in taken]
        taken.update(map(id, parameters))
        if parameters:
            settings = optim.of(stage.name, part)
            built[part] = settings, build_optimizer(settings, parameters, scales, plain)
    return built


def build_optimizer(
    spec: OptimSpec,
    parameters: list[nn.Parameter],
    scales: Mapping[int, int] | None = None,
    plain: Collection[int] = (),
) -> torch.optim.Optimizer:
    """The optimizer of the spec; biases, normalisation weights and what is in `plain` (by id) are not decayed.

    `scales` has the layers between a parameter and the head: each is a factor `layer_decay` (`lr_scale` of a group).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        depth = (scales or {}).get(id(parameter), 0) if spec.layer_decay < 1 else 0
        decayed = parameter.ndim > 1 and id(parameter) not in plain
        groups.setdefault((depth, decayed), []).append(parameter)
    chosen = [
        {
            "params": own,
            "weight_decay": spec.weight_decay if decayed else 0.0,
            "lr_scale": spec.layer_decay**depth,
        }
        for (depth, decayed), own in sorted(
            groups.items(), key=lambda item: (item[0][0], not item[0][1])
        )
    ]
    if spec.name == "sgd":
        nesterov = spec.nesterov and spec.momentum > 0
        return _without_compiler(torch.optim.SGD)(
            chosen, lr=spec.lr, momentum=spec.momentum, nesterov=nesterov, fused=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return _without_compiler(kind)(chosen, lr=spec.lr, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """`rate` for what is next to the head, and less for each group of layers before it (`layer_decay`)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def _scales(encoder: nn.Module) -> dict[int, int]:
    """id of each of the encoder's parameters -> how many groups of layers it is below the head, from 1."""
    groups, parameters = layer_groups(encoder), dict(encoder.named_parameters())
    return {
        id(parameters[name]): len(groups) - index
        for index, group in enumerate(groups)
        for name in group
    }


def _without_decay(encoder: Any) -> set[int]:
    """ids of the parameters that the model itself says are not decayed: a transformer's embeddings."""
    if not hasattr(encoder, "no_weight_decay"):
        return set()
    names = encoder.no_weight_decay()
    return {id(p) for name, p in encoder.named_parameters() if name in names}


@cache
def _without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer, whose methods do not load torch's compiler, which never compiles an optimizer here.

    torch wraps them so that the compiler leaves them alone, and the first call of any imports it: 1.5 seconds.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)
