"""Plugins: a Python file of the user's with one or more methods, known by their names once it is loaded.

Its code is one file, which may import tune_ssl and installed packages, but not what lies beside it:
workers, a resume and the cache of pretrained networks know it by its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tune_ssl import methods
from tune_ssl.base.errors import Problem, UserError, first_line, nearest, shown
from tune_ssl.methods.base import Method
from tune_ssl.methods.contract import breaches, line_of, raised

LISTED = 8  # files in one message


class Plugin(NamedTuple):
    """A plugin's file (absolute), and the digest of the content that was loaded."""

    path: str
    digest: str


class LoadedFile(NamedTuple):
    digest: str
    methods: list[type[Method[Any]]]


_loaded: dict[str, LoadedFile] = {}  # by path


def load_plugins(files: Iterable[str | Path]) -> tuple[Plugin, ...]:
    """Make the methods of these files known: of all, or of none and a UserError with every problem."""
    return _load(files, replace=False)


def restore_plugins(recorded: Iterable[Plugin], run: str = "the run") -> tuple[Plugin, ...]:
    """Load what a run began with. UserError for each file that is gone, or is another one now.

    A file that has moved is found if it is loaded already from where it is now: `--plugin` names it.
    Methods of the same names that this process knows of another file give way.
    """
    plugins = tuple(_moved(Plugin(*plugin)) for plugin in recorded)
    problems = []
    for path, began in plugins:
        try:
            now = digest_of(Path(path).read_bytes())
        except OSError as error:
            problem = f"it cannot be read now: {first_line(error)}"
        else:
            problem = "" if now == began else f"its digest is {now} now"
        if problem:
            text = f"began with the plugin {path} of digest {began}, but {problem}"
            remedy = "put it back, name it with --plugin, or start a new run"
            problems.append(Problem(f"{text}; {remedy}", run))
    if problems:
        raise UserError(problems)
    return _load((path for path, _ in plugins), replace=True)


def _moved(plugin: Plugin) -> Plugin:
    """The plugin where it was recorded, or else where a loaded file has that content."""
    with contextlib.suppress(OSError):
        if digest_of(Path(plugin.path).read_bytes()) == plugin.digest:
            return plugin
    found = [path for path, loaded in _loaded.items() if loaded.digest == plugin.digest]
    return plugin._replace(path=found[-1]) if found else plugin


def _load(files: Iterable[str | Path], *, replace: bool) -> tuple[Plugin, ...]:
    found: dict[str, LoadedFile] = {}
    problems: list[Problem] = []
    cause: BaseException | None = None
    for file in files:
        path = os.path.abspath(file)
        if path in found:  # the same file twice
            continue
        try:
            source = _read(Path(file))
            found[path] = LoadedFile(digest_of(source), _methods(str(file), path, source))
            problems += _clashes(str(file), path, found, replace)
        except UserError as error:
            problems += error.problems
            cause = cause or error.__cause__
    if problems:
        raise UserError(problems) from cause
    for path, loaded in found.items():
        _loaded[path] = loaded
        methods.register(path, loaded.methods)
    return tuple(Plugin(path, loaded.digest) for path, loaded in found.items())


def digest_of(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]


def module_name(path: str) -> str:
    """One for each path, so that two files of the same name are two modules."""
    stem = re.sub(r"\W", "_", Path(path).stem)
    return f"tune_ssl_plugin_{stem}_{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _methods(file: str, path: str, source: bytes) -> list[type[Method[Any]]]:
    """The methods of a file, all sound; those it gave already where its content is the same."""
    known = _loaded.get(path)
    if known and known.digest == digest_of(source):
        return known.methods
    name = module_name(path)
    before = sys.modules.get(name)
    try:
        found = methods.methods_in(_import(file, path, source))
        if not found:
            text = "holds no method: no class in it derives from tune_ssl.Method"
            raise UserError(Problem(text, file))
        problems = [problem for method in found for problem in breaches(method, file)]
        if problems:
            raise UserError(problems)
    except UserError:
        del sys.modules[name]
        if before:
            sys.modules[name] = before
        raise
    return found


def _import(file: str, path: str, source: bytes) -> ModuleType:
    """The module made of `source` itself: what runs is what the digest says, without a cache on disk."""
    module = ModuleType(module_name(path))
    module.__file__ = path
    sys.modules[module.__name__] = module  # pydantic and inspect look for it there
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        text = f"is not valid Python: {getattr(error, 'msg', error)}"
        raise UserError(Problem(text, "the file", f"{file}:{line}")) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # ours may be a schema
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        says, _, line = raised(error, within=path)
        text = f"{says}, when it is imported{_beside(error, path)}"
        raise UserError(Problem(text, "the file", f"{file}:{line}")) from error
    return module


def _beside(error: BaseException, path: str) -> str:
    """What to know where the file tried to import another one of its folder."""
    wanted = (getattr(error, "name", None) or "").split(".")[0]
    near = Path(path).parent / wanted
    relative = isinstance(error, ImportError) and "relative import" in str(error)
    if relative or (wanted and (near.is_dir() or near.with_suffix(".py").is_file())):
        return "; a plugin is one file and cannot import what lies beside it"
    return ""


def _clashes(
    file: str, path: str, found: dict[str, LoadedFile], replace: bool
) -> Iterator[Problem]:
    """Names that another method has: one of ours, of a package, of another file, of this file."""
    names = [method.name for method in found[path].methods]
    others = {m.name: at for at, loaded in found.items() if at != path for m in loaded.methods}
    for i, method in enumerate(found[path].methods):
        by = others.get(method.name) or methods.owner(method.name, plugins=not replace)
        if method.name in names[:i]:
            by = "another class of this file"
        if by and by != path:
            text = f"is {shown(method.name)}, but a method of {by} has that name already"
            yield Problem(text, f"{method.__name__}.name", f"{file}:{line_of(method)}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        listed = ", ".join(near[:LISTED]) + (", ..." if len(near) > LISTED else "")
        hint = f" (in {path.parent} there are: {listed})" if near else ""
        text = f"does not exist{nearest(path.name, near)}{hint}"
    except IsADirectoryError:
        text = "is a folder, but must be a Python file"
    except OSError as error:
        text = f"cannot be read: {first_line(error)}"
    raise UserError(Problem(text, str(path)))
