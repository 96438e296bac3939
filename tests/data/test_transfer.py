"""Tensors of any types that go to a device in one copy."""

from __future__ import annotations

import torch

from tune_ssl.data.transfer import pack, unpack


def test_packed_tensors_come_out_with_their_types_shapes_and_values() -> None:
    parts = [
        torch.tensor([True, False, True]),
        torch.arange(2**40, 2**40 + 3),
        torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8),
        torch.empty(0, dtype=torch.int64),
        torch.rand(4, 3).T,
        torch.tensor(7.5),
    ]
    found = unpack(pack(parts), parts)
    for given, got in zip(parts, found, strict=True):
        assert got.dtype == given.dtype and got.shape == given.shape
        assert torch.equal(got, given)
