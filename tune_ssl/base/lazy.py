"""Modules that load on first use, so that checking a study's YAML never waits for torch."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """Stands for a module and imports it when an attribute is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if self.__name__ not in sys.modules:
            with no_garbage():
                importlib.import_module(self.__name__)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Garbage is not looked for in the block. An import makes none, and the search is a fifth of its time."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()
