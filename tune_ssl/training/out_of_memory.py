"""When a device runs out of memory: what counts as that, and the one retry with batches in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

from tune_ssl.base.errors import first_line
from tune_ssl.study.trial import TrialSpec, override

# What allocators say where they raise a bare RuntimeError: CUDA, HIP, cuBLAS and cuDNN, the CPU's.
TEXTS = ("out of memory", "_alloc_failed", "can't allocate memory", "cannot allocate memory")
REMEDY = "halve data.batch_size or data.mu, or give it a device with more memory"

T = TypeVar("T")


class TooLarge(Exception):
    """A trial needs more memory than its device has, whatever was tried: another attempt would not help."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in TEXTS)


def smaller(spec: TrialSpec) -> TrialSpec | str:
    """The spec with batches in twice as many parts, or the sentence that says why there is none."""
    whole = [stage.name for stage in spec.stages() if not stage.splits_batches]
    if whole:
        return f"stage {whole[0]!r} of {spec.method.name} needs all images of a batch at once"
    parts, size = 2 * spec.compute.accumulate, spec.data.batch_size
    if size % parts:
        return f"a batch of {size} cannot be cut into {parts} equal parts"
    return override(spec, {"compute.accumulate": parts})


def in_halves(call: Callable[[Any], T], images: Any) -> list[T]:
    """[call(images)]; where memory runs out, the results of both halves, and so on down to one image."""
    try:
        return [call(images)]
    except Exception as error:
        if len(images) == 1 or not out_of_memory(error):
            raise
    free()  # here the error is gone, and with it every frame that it kept
    half = len(images) // 2
    return [*in_halves(call, images[:half]), *in_halves(call, images[half:])]


def with_retry(attempt: Callable[[TrialSpec], T], spec: TrialSpec, *, ran_out: bool = False) -> T:
    """`attempt(spec)`; where memory runs out, everything is freed, and it is tried once with a smaller spec.

    The second attempt begins the trial again. What the attempt holds in local variables is gone by then;
    the caller must hold nothing of it. `ran_out`: the first one was made before, and ran out.

    Raises:
        TooLarge: the second attempt ran out of memory, too, or there is no smaller spec.
    """
    said = ""
    try:
        if not ran_out:
            return attempt(spec)
    except Exception as error:
        if not out_of_memory(error):
            raise
        said = first_line(error).rstrip(".")
    free()  # here the error is gone, and with it every frame that it kept
    less = smaller(spec)
    if isinstance(less, str):
        raise TooLarge(f"out of memory: {said}; {less}; {REMEDY}")
    try:
        return attempt(less)
    except Exception as error:
        if not out_of_memory(error):
            raise
        said = first_line(error).rstrip(".")
    free()
    tried = f"also with each batch in {less.compute.accumulate} parts"
    raise TooLarge(f"out of memory: {said}; {tried}; {REMEDY}")


def free() -> None:
    """Give what nothing refers to back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
