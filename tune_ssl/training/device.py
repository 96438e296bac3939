"""The device and the precision that a spec means on this machine, and torch's settings for a trial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.spec import ComputeSpec


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. UserError for a device this machine lacks, or of another kind."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        text = f"is {name!r}, but must be auto, cpu, cuda or cuda:0"
        raise UserError(Problem(text, "compute.device"))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        text = (
            f"is {name!r}, but must be auto, cpu or a device of this machine ({first_line(error)})"
        )
        raise UserError(Problem(text, "compute.device")) from None
    return device


def pick_precision(compute: ComputeSpec, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere; a CPU always computes in fp32."""
    if device.type != "cuda":
        return torch.float32
    if compute.precision == "auto":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute.precision]


@contextlib.contextmanager
def settings_of(compute: ComputeSpec) -> Iterator[None]:
    """torch's settings for a trial, as they were before in the end."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = compute.tf32
    cudnn.benchmark = compute.cudnn_benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
