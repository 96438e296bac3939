"""Counts the copies from the CPU to another device, on any machine: the `meta` device will do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedTransfers(TorchDispatchMode):
    """Within `with CountedTransfers() as counted:`, `counted.transfers` calls took CPU tensors elsewhere."""

    transfers = 0

    def __torch_dispatch__(
        self, call: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = call(*args, **(kwargs or {}))
        self.transfers += _on_cpu((args, kwargs)) > 0 and _elsewhere(out) > 0
        return out


def _on_cpu(values: Any) -> int:
    return sum(t.device.type == "cpu" for t in tree_leaves(values) if isinstance(t, Tensor))


def _elsewhere(values: Any) -> int:
    return sum(t.device.type != "cpu" for t in tree_leaves(values) if isinstance(t, Tensor))
