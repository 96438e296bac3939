"""Methods: one file each, found by its name. `find_method("soft_kmeans")` reads soft_kmeans.py."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from tune_ssl.errors import Problem, UserError, unknown
from tune_ssl.methods.base import Method

NOT_METHODS = ("base", "transfer")


def method_names() -> list[str]:
    """Every file of this folder that holds a method."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_METHODS)


@cache
def find_method(name: str) -> type[Method[Any]]:
    """The Method class of tune_ssl/methods/<name>.py. UserError with the nearest name if absent."""
    if name not in method_names():
        raise UserError(Problem(unknown("method", name, method_names()), "method.name"))
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and vars(value).get("name") == name
    ]
    assert len(found) == 1, f"{module.__file__} must define one Method named {name!r}"
    return found[0]
