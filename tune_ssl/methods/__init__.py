"""Methods by name: one file each in this folder, those of installed packages, and those of plugins.

`find_method("soft_kmeans")` reads soft_kmeans.py. A package brings its methods by the entry point
group `tune_ssl.methods` (name = method name, value = the class or its module); a single file is
loaded by `plugins.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.methods.base import Method
from tune_ssl.methods.contract import breaches, file_of, raised

GROUP = "tune_ssl.methods"
NOT_METHODS = ("base", "classical", "contract", "measures", "plugins", "transfer")

_plugins: dict[str, type[Method[Any]]] = {}  # by name; what register() was told


def method_names() -> list[str]:
    """Every name that `find_method` knows."""
    return sorted({*packaged(), *installed(), *_plugins})


def find_method(name: str) -> type[Method[Any]]:
    """The Method class of that name. UserError with the nearest name if absent, or if it is unsound."""
    if name in _plugins:
        return _plugins[name]
    if name in installed():
        return _from_package(name)
    if name in packaged():
        return _from_file(name)
    raise UserError(Problem(unknown("method", name, method_names()), "method.name"))


def register(file: str, methods: Iterable[type[Method[Any]]]) -> None:
    """The methods of a plugin's file take the place of those that it held before."""
    for name in [name for name, method in _plugins.items() if file_of(method) == file]:
        del _plugins[name]
    _plugins.update((method.name, method) for method in methods)


def owner(name: str, *, plugins: bool = True) -> str:
    """Who brings the method of that name: us, an installed package, or a plugin's file; "" for none."""
    if name in packaged():
        return "tune-ssl"
    if name in installed():
        return _package(installed()[name][0])
    return file_of(_plugins[name]) if plugins and name in _plugins else ""


def methods_in(module: ModuleType) -> list[type[Method[Any]]]:
    """The Method classes that a module defines; one without a name may be others' base."""
    own = [v for v in dict.fromkeys(_classes(module)) if v.__module__ == module.__name__]
    bases = {base for method in own for base in method.__mro__[1:]}
    return [method for method in own if "name" in vars(method) or method not in bases]


@cache
def packaged() -> tuple[str, ...]:
    """Every file of this folder that holds a method."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_METHODS)


@cache
def installed() -> dict[str, list[EntryPoint]]:
    """Method name -> its entry points; of a sound installation there is one."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


@cache
def _from_file(name: str) -> type[Method[Any]]:
    module = importlib.import_module(f"{__name__}.{name}")
    found = [method for method in methods_in(module) if method.name == name]
    assert len(found) == 1, f"{module.__file__} must define one Method named {name!r}"
    return found[0]


@cache
def _from_package(name: str) -> type[Method[Any]]:
    point, *others = installed()[name]
    key = f"the method {name!r} of {_package(point)}"
    clash = ["tune-ssl"] * (name in packaged()) + [_package(other) for other in others]
    if clash:
        raise UserError(Problem(f"has the name of a method of {clash[0]}", key))
    try:
        value = point.load()
    except (Exception, SystemExit) as error:
        says, file, line = raised(error)
        where = f"{file}:{line}" if file else ""
        raise UserError(Problem(f"{says}, when {point.value} is imported", key, where)) from error
    found = _classes(value) if isinstance(value, ModuleType) else [value]
    for method in found:
        named = getattr(method, "name", None) == name
        if named and isinstance(method, type) and issubclass(method, Method):
            problems = breaches(method, file_of(method))
            if problems:
                raise UserError(problems)
            return method
    text = f"is not there: {point.value} is no Method of that name, nor a module that has one"
    raise UserError(Problem(text, key))


def _classes(module: ModuleType) -> list[type[Method[Any]]]:
    values = vars(module).values()
    return [v for v in values if isinstance(v, type) and issubclass(v, Method) and v is not Method]


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name} {point.dist.version}" if point.dist else point.value
