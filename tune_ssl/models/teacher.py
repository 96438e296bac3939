"""A copy of a network whose weights follow it: Mean Teacher's teacher, BYOL's target, MoCo's key encoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of `network` as it is now. Its weights are buffers: no optimizer sees them, checkpoints and averages do.

    Its BatchNorm layers have statistics of their own, of what goes through it. `updates` counts the calls of `follow`.
    """

    updates: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        kept: dict[Tensor, Tensor] = {}  # of weights that two modules share there is one buffer
        for module in self.network.modules():
            for name, weights in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
                delattr(module, name)
                module.register_buffer(name, kept.setdefault(weights, weights.detach().clone()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What the copy gives, without gradients."""
        return self.network(images)

    @torch.no_grad()
    def follow(self, network: nn.Module, decay: float, *, warm_up: bool = False) -> None:
        """weights = decay * weights + (1 - decay) * the network's.

        With `warm_up` the decay of update number t, from 0, is at most 1 - 1 / (t + 1), so that the first ones count
        alike (Tarvainen & Valpola 2017, section 3: the authors' code).
        """
        share = torch.full_like(self.updates, 1 - decay, dtype=torch.float32)
        if warm_up:
            share = torch.maximum(share, 1 / (self.updates + 1))
        self.updates += 1
        kept = self.network.state_dict(keep_vars=True)
        for name, weights in network.named_parameters():
            kept[name].lerp_(weights.detach(), share.to(weights.dtype))
