"""Networks of stages that see no label, kept by the digest of everything that shaped them.

Pretraining does not depend on the label budget, so every trial of a study may start from the same
one. A shelf holds the (averaged) weights of each evaluation. A trial that takes them reports the
same numbers as one that trains them. It lies in $TUNE_SSL_CACHE, else in ~/.cache/tune-ssl.

    <digest>/000050.safetensors     the weights at step 50, and its mean losses, as one file
    <digest>.lock                   held by the one process that trains them

A file appears under its name only when it is complete; a lock goes with its process. Where nothing
can be written, trials train for themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from tune_ssl.base.code_digest import source_digest
from tune_ssl.base.errors import first_line
from tune_ssl.base.files import make_room, write_atomically
from tune_ssl.base.spec import digest
from tune_ssl.data.loading import Data
from tune_ssl.data.store import cache_folder
from tune_ssl.methods.base import Stage
from tune_ssl.study.shared_pretraining import shaping
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.device import pick_precision

MOST_BYTES = 20 << 30  # of all shelves; the one that was used longest ago goes first


class Shelf:
    """The weights of one label-free stage: a file for each of its evaluations, at `steps`."""

    def __init__(self, key: str, steps: list[int]) -> None:
        self.folder, self.steps = cache_folder() / "pretrained" / key, steps
        self.writable = True
        self.waited = 0.0  # seconds for which another process had the lock

    def open(self) -> dict[int, Any] | None:
        """Step -> its file; None unless all are there and whole. What is open outlives its deletion."""
        try:
            files = {step: safe_open(self._file(step), "pt") for step in self.steps}
        except (OSError, SafetensorError):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.folder)
        return files

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """What one process at a time can enter: the one that trains this network. Sets `waited`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder.with_name(f"{self.folder.name}.lock")
            lock = FileLock(path, thread_local=False)
            try:
                held = lock.acquire(timeout=0)
            except Timeout:
                began = time.perf_counter()
                held = lock.acquire()
                self.waited = time.perf_counter() - began
            for left in self.folder.glob(".*"):  # by a process that was killed
                left.unlink()
        except OSError as error:
            self._give_up(error)
            return contextlib.nullcontext()
        return held

    def put(self, step: int, network: nn.Module, means: dict[str, float]) -> None:
        """Keep the network's weights, and the mean losses and diagnostics of this evaluation."""
        if not self.writable:
            return
        weights = {
            key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for key, value in network.state_dict().items()
        }
        content = save(weights, {"means": json.dumps(means)})
        try:
            write_atomically(self._file(step), lambda file: file.write(content))
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._give_up(error)
        else:
            if step == self.steps[-1]:
                make_room(self.folder.parent, self.folder, MOST_BYTES)

    def _give_up(self, error: Exception) -> None:
        self.writable = False
        place = self.folder.parent
        warnings.warn(
            f"'{place}' does not keep this pretrained network: {first_line(error)}", stacklevel=3
        )

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"


def load_weights(file: Any, network: nn.Module) -> dict[str, float]:
    """Load the weights of one of `Shelf.open`'s files into `network`; returns the means."""
    network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    means: dict[str, float] = json.loads(file.metadata()["means"])
    return means


def shelf_key(spec: TrialSpec, stage: Stage[Any], data: Data, before: str) -> str:
    """The digest of everything that shapes what `stage` trains.

    `before` is the key of the stage before it. The code counts too, so that weights of another version
    are never taken.
    """
    unlabeled = data.split.unlabeled.astype("<i8").tobytes()
    on_cpu = data.device.type == "cpu"
    return digest(
        {
            **shaping(spec, stage),
            "before": before,
            "data": [data.store.digest, data.task.size, hashlib.sha256(unlabeled).hexdigest()],
            "views": [repr(data.view(name)) for name in stage.unlabeled_views],
            "device": [data.device.type, str(pick_precision(spec.compute, data.device))],
            "threads": torch.get_num_threads() if on_cpu else None,
            "code": _source_digest(type(stage)),  # type: ignore[arg-type]
            "versions": [version(package) for package in ("torch", "torchvision", "timm")],
        }
    )


@cache  # by class: a plugin that is loaded again makes new ones
def _source_digest(stage: type[Stage[Any]]) -> str:
    """Of this package's source, and of each other file or package that the class comes from."""
    names = {kind.__module__.split(".")[0] for kind in stage.__mro__}
    others = sorted(names - {"builtins", "typing", "tune_ssl"})
    return digest({"source": [SOURCE, *map(source_digest, others)]})


SOURCE = source_digest()  # as it was loaded: a later edit does not change what runs here
