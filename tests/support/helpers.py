"""A small spec that trains in a fraction of a second, and a disk that is full."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

from tune_ssl.study.trial import TrialSpec, build_trial, set_dotted

NARROW = {"method.projector_hidden": 16, "method.projector_dim": 16}
HEADS: dict[str, dict[str, int]] = {
    "simclr": NARROW,
    "simclr_joint": NARROW,
    "simsiam": {**NARROW, "method.predictor_hidden": 8},
    "byol": {**NARROW, "method.predictor_hidden": 8},
    "moco": {**NARROW, "method.queue": 32},
    "barlow_twins": NARROW,
    "vicreg": NARROW,
    "fixmatch_cvae": {"method.width": 4, "method.latent_dim": 4},
}


def small_spec(method: str = "soft_kmeans", **values: Any) -> TrialSpec:
    """Digits, 40 labels, 12 steps in batches of 8, narrow heads; dotted keys override; nothing is reused."""
    raw = {
        "data": {"num_labels": 40, "batch_size": 8, "mu": 1},
        "model": {"feature_dim": 16, "hidden_dim": 16},
        "method": {"name": method},
        "budget": {"steps": 12, "eval_every": 4},
        "compute": {"cache": False},
    }
    return build_trial(set_dotted(raw, {**HEADS.get(method, {}), **values}))


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """In the block no file of this process can grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
