"""A job: what a worker is asked to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tune_ssl.methods.plugins import Plugin

BROKEN = "broken"  # status of a report: an exception ended this attempt, not yet the trial
REPORT = "report"  # the key of what a worker sends


class NotPickled:
    """For what Ray pickles with its Tuner and we never read back: it leaves all its state behind."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Job:
    """One training run for a worker. `spec` is the whole TrialSpec as plain values.

    `repeats` is the search trial whose config a finalist runs again, `variant` the row of an ablation.
    `given` says where its config was known from beforehand, `redrawn` how many drawn ones were left out before it.
    `keep` asks for galleries and the model with the last report. At the evaluations `whole_at` trials are compared, and
    the whole validation set is looked at. `data` is the digest of the images that the run began with, `store` where
    they lie on the driver's machine. `pretraining` names the label-free first
    stage that others may share; it is over at step `pretraining_steps`.
    """

    trial: str
    phase: str
    condition: str
    number: int
    config: dict[str, Any]
    seed: int
    spec: dict[str, Any]
    digest: str
    split: str
    metric: str
    mode: str
    cpus: float
    checkpoint_seconds: float
    repeats: str | None = None
    given: str | None = None
    redrawn: int = 0
    variant: str | None = None
    keep: bool = False
    whole_at: tuple[int, ...] = ()
    data: str = ""
    store: str = ""
    unfit: str = ""  # why its config makes no spec: one value too many for another
    pretraining: str | None = None
    pretraining_steps: int = 0
    resume_from: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()

    def to_config(self) -> dict[str, str]:
        """Its name, and all of it as one JSON text, which Ray neither flattens nor interprets."""
        return {"trial": self.trial, "job": json.dumps(asdict(self))}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Job:
        return cls(**json.loads(config["job"]))
