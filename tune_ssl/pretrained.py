"""Networks of stages that see no label, kept by the digest of everything that shaped them.

Pretraining does not depend on the label budget, so every trial of a study may start from the same
one. A shelf holds the (averaged) weights of each evaluation: a trial that takes them reports the
very numbers of one that trained them. It lies in $TUNE_SSL_CACHE, else in ~/.cache/tune-ssl.

    <digest>/000050.safetensors     the weights at step 50, and its mean losses, as one file
    <digest>.lock                   held by the one process that trains them

A file appears under its name only when it is complete; a lock goes with its process.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tune_ssl.data.loading import Data
from tune_ssl.data.store import cache_folder
from tune_ssl.methods import find_method
from tune_ssl.methods.base import Stage
from tune_ssl.spec import digest
from tune_ssl.stepping import pick_precision
from tune_ssl.trial import TrialSpec

MOST_BYTES = 20 << 30  # of all shelves; the one that was used longest ago goes first


class Shelf:
    """The weights of one label-free stage: a file for each of its evaluations, at `steps`."""

    def __init__(self, key: str, steps: list[int]) -> None:
        self.folder, self.steps = cache_folder() / "pretrained" / key, steps

    def alone(self) -> FileLock:
        """A lock that one process at a time has: the one that trains this network."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"))

    def complete(self) -> bool:
        """Whether every evaluation's file is there and whole."""
        try:
            for step in self.steps:
                with safe_open(self._file(step), "pt"):
                    pass
        except (OSError, SafetensorError):
            return False
        return True

    def put(self, step: int, network: nn.Module, means: dict[str, float]) -> None:
        """Keep the network's weights, and the mean losses and diagnostics of this evaluation."""
        weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        temporary = self.folder / f".{step}-{os.getpid()}"
        save_file(weights, temporary, {"means": json.dumps(means)})
        temporary.rename(self._file(step))
        if step == self.steps[-1]:
            make_room(self.folder.parent, keep=self.folder)

    def take(self, step: int, network: nn.Module) -> dict[str, float]:
        """Load the weights of `step` into `network`; returns the means."""
        with safe_open(self._file(step), "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            means: dict[str, float] = json.loads(file.metadata()["means"])
        network.load_state_dict(weights)
        os.utime(self.folder)
        return means

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"


def reusable(stage: Stage[Any]) -> bool:
    """Whether what the stage trains can serve trials of other label budgets: it sees no label."""
    return not stage.labeled_views


def shelf_key(spec: TrialSpec, stage: Stage[Any], data: Data, before: str) -> str:
    """The digest of everything that shapes what `stage` trains.

    `before` is the key of the stage before it. Left out is what only later stages read. The code
    counts too, so that weights of another version are never taken.
    """
    later = {other.name for other in find_method(spec.method.name).stage_types} - {stage.name}
    unlabeled = data.split.unlabeled.astype("<i8").tobytes()
    return digest(
        {
            "stage": [type(stage).__qualname__, stage.name, before],
            "data": [data.store.digest, data.store.flip, hashlib.sha256(unlabeled).hexdigest()],
            "batch": [spec.data.batch_size, spec.data.mu],
            "model": spec.model.model_dump(),
            "method": spec.method.model_dump(exclude=set(stage.shaped_without)),
            "losses": {
                term: loss.model_dump()
                for term, loss in spec.losses.items()
                if term in stage.loss_terms
            },
            "optim": spec.optim.model_dump(exclude=later),
            "budget": [spec.stage_steps()[stage.name], spec.budget.eval_every],
            "compute": [data.device.type, str(pick_precision(spec.compute, data.device))],
            "channels_last": spec.compute.channels_last,
            "seed": spec.seed,
            "code": [_source_digest(type(stage)), torch.__version__],  # type: ignore[arg-type]
        }
    )


def make_room(shelves: Path, keep: Path) -> None:
    """Delete the shelves that were used longest ago, until all take at most MOST_BYTES."""
    folders = [folder for folder in shelves.iterdir() if folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime)
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in folders}
    surplus = sum(sizes.values()) - MOST_BYTES
    for folder in folders:
        if surplus > 0 and folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            surplus -= sizes[folder]


@cache  # by class: a plugin that is loaded again makes new ones
def _source_digest(stage: type[Stage[Any]]) -> str:
    """SHA-256 of this package's source, and of each other file or package that the class comes from."""
    names = {"tune_ssl", *(kind.__module__.split(".")[0] for kind in stage.__mro__)}
    hasher = hashlib.sha256()
    for name in sorted(names - {"builtins", "typing"}):
        module = sys.modules[name]
        folders = getattr(module, "__path__", ())
        files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
        for path in files or [Path(inspect.getfile(module))]:
            hasher.update(path.read_bytes())
    return hasher.hexdigest()
