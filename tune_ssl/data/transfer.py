"""From the CPU to the images' device: any number of tensors in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Transfer:
    """Groups of CPU tensors, of any types, on their way to a device: all in one copy.

    To a GPU they go from pinned memory, on a stream of their own: neither the host nor the network's kernels wait.
    """

    def __init__(self, groups: Sequence[Tensors], device: torch.device) -> None:
        self.groups, self.device = groups, device
        self.sent: Tensor | None = None
        self.copied: torch.cuda.Event | None = None
        if device.type == "cpu" or not any(groups):
            return
        packed = pack(_flat(groups), pinned=device.type == "cuda")
        if device.type != "cuda":
            self.sent = packed.to(device)
            return
        with torch.cuda.stream(_copies(device)):
            self.sent = packed.to(device, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def arrived(self) -> list[Tensors]:
        """The groups on the device; what is computed with them from now on waits there for the copy."""
        if self.sent is None:
            return list(self.groups)
        if self.copied is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(self.copied)
            self.sent.record_stream(now)
        there = iter(unpack(self.sent, _flat(self.groups)))
        return [tuple(next(there) for _ in group) for group in self.groups]


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device."""
    [(there,)] = Transfer([(part,)], device).arrived()
    return there


def pack(parts: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """The bytes of CPU tensors, one after another: those of wide types first, so that each is aligned."""
    in_bytes = [parts[i].contiguous().view(-1).view(torch.uint8) for i in _by_width(parts)]
    size = sum(map(len, in_bytes))
    return torch.cat(in_bytes, out=torch.empty(size, dtype=torch.uint8, pin_memory=pinned))


def unpack(packed: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in `packed`, wherever it is, with the types and shapes of those it was made of; no copy."""
    order, found = _by_width(parts), list(parts)
    pieces = packed.split([parts[i].nbytes for i in order])
    for i, piece in zip(order, pieces, strict=True):
        found[i] = piece.view(parts[i].dtype).view(parts[i].shape)
    return found


def _flat(groups: Sequence[Tensors]) -> list[Tensor]:
    return [part for group in groups for part in group]


def _by_width(parts: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(parts)), key=lambda i: -parts[i].itemsize)


@lru_cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream on which everything is copied to this GPU."""
    return torch.cuda.Stream(device)
