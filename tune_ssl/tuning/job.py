"""A job: what a worker is asked to do."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tune_ssl.methods.plugins import Plugin

BROKEN = "broken"  # status of a report: an exception ended this attempt, not yet the trial


class NotPickled:
    """For what Ray pickles with its Tuner and we never read back: it leaves all its state behind."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Job:
    """One training run for a worker. `spec` is the whole TrialSpec as plain values.

    `repeats` is the search trial whose config a finalist runs again, `variant` the row of an ablation.
    `keep` asks for galleries and the model with the last report.
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
    variant: str | None = None
    keep: bool = False
    unfit: str = ""  # why its config makes no spec: one value too many for another
    resume_from: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()

    def to_config(self) -> dict[str, str]:
        """As one JSON text: Ray neither flattens nor interprets it."""
        return {"job": json.dumps(asdict(self))}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Job:
        return cls(**json.loads(config["job"]))


@dataclass
class Progress:
    """What the live table shows of one condition."""

    condition: str
    planned: int
    running: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    best: float | None = None
