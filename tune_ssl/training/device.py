"""The device and the precision that a spec means on this machine."""

from __future__ import annotations

import torch

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.spec import ComputeSpec


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. UserError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
