"""A plugin whose training goes wrong as it is told: `method.fault` says how, at step `method.at`.

$FAULTS is a folder in which it remembers what a trial has been through.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from tune_ssl.data.batch import Batch
from tune_ssl.methods.base import Network, StepOutput
from tune_ssl.methods.supervised import Supervised, SupervisedSpec, SupervisedStage


class FaultySpec(SupervisedSpec):
    name: Literal["faulty"] = "faulty"
    fault: str = "none"  # none, once, always, changing, bug, exit, late, nan, hungry, huge; a digit may follow
    at: int = 10


class FaultyStage(SupervisedStage):
    def build(self, *given):  # a new attempt counts its steps anew
        self.steps = 0
        return super().build(*given)

    def step(self, network: Network, batch: Batch) -> StepOutput:
        self.steps += 1
        fault = self.spec.fault.rstrip("0123456789")
        limit = {"hungry": 4, "huge": 0}.get(fault, 1 << 20)
        if len(batch.labels_N) > limit:
            torch.empty(1 << 50)  # no machine has it
        out = super().step(network, batch)
        if fault == "nan" and self.steps >= self.spec.at:
            return StepOutput({k: v * float("nan") for k, v in out.losses.items()}, out.diagnostics)
        if self.steps == self.spec.at:
            go_wrong(fault)
        return out


def go_wrong(fault: str) -> None:
    from ray import tune

    notes = Path(os.environ["FAULTS"]) / tune.get_context().get_trial_name()
    with notes.open("a") as file:
        file.write("x")
    attempt = notes.stat().st_size
    if fault == "once" and attempt == 1:
        raise OSError("the network file system is away")
    if fault == "always":
        raise RuntimeError("this device is broken")
    if fault == "changing":
        raise RuntimeError(f"trouble number {attempt}")
    if fault == "bug" or (fault == "late" and "-confirm-" in notes.name and attempt == 1):
        raise TypeError("a bug in the method")
    if fault == "exit":
        os._exit(1)


class Faulty(Supervised):
    name = "faulty"
    Spec = FaultySpec
    stage_types = (FaultyStage,)
