"""YAML 1.2 with positions: every key of a file knows its line, so that an error can name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from tune_ssl.errors import Problem, UserError

Path_ = tuple[str, ...]


class YamlFile:
    """A parsed file: its plain `data`, and `where(path)`: "file:line" of that key.

    A key that an override wrote into `data` is at that override's own text, noted in `overrides`.
    """

    def __init__(self, path: Path, data: Any, lines: dict[Path_, int]) -> None:
        self.path, self.data, self.lines = path, data, lines
        self.overrides: dict[Path_, str] = {}

    def where(self, path: Path_) -> str:
        """The place of the key itself, or of the nearest parent that was written."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return self.overrides[path[:end]]
            if path[:end] in self.lines:
                return f"{self.path}:{self.lines[path[:end]]}"
        return f"{self.path}:1" if self.lines else str(self.path)


def read_yaml(path: Path) -> YamlFile:
    """Parse a mapping; UserError with file:line when it cannot be read, parsed, or is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" (in {path.parent} there are: {', '.join(near)})" if near else ""
        raise UserError(Problem(f"does not exist{hint}", str(path))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(f"cannot be read as text: {error}", str(path))) from None
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = (error.problem or error.context or "unreadable").split("\n")[0]
        raise UserError(Problem(f"is not valid YAML: {problem}", "the file", where)) from None
    except (YAMLError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise UserError(Problem(f"is not valid YAML: {first}", "the file", str(path))) from None
    if not isinstance(data, dict):
        what = "empty" if data is None else f"a {type(data).__name__}"
        problem = f"is {what}, but must be a mapping with keys such as fixed, search and study"
        raise UserError(Problem(problem, "the file", f"{path}:1"))
    lines: dict[Path_, int] = {}
    _walk(node, (), lines)
    return YamlFile(path, data, lines)


def parse_value(text: str) -> Any:
    """One value as YAML 1.2 reads it: `1e-3` is a number, `off` a string."""
    return YAML(typ="safe", pure=True).load(text)


def _walk(node: Node, path: Path_, lines: dict[Path_, int]) -> None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            lines[inner] = key.start_mark.line + 1
            _walk(value, inner, lines)
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            inner = (*path, str(i))
            lines[inner] = value.start_mark.line + 1
            _walk(value, inner, lines)
