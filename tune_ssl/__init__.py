"""tune-ssl: search, ablate and report semi-supervised image classification on Ray Tune.

The public names load what they need on first use: importing tune_ssl loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_study", "run_study", "train"]

_HOMES = {"load_study": "study", "run_study": "tuning", "train": "training"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
