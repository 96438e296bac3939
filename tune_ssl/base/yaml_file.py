"""YAML 1.2 with positions: every key of a file knows its line, so that an error can name it.

Only plain values are read: no tag makes an object. A file may be 4 MiB large and, with its aliases
expanded, have 200,000 values, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import warnings
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tune_ssl.base.errors import Problem, UserError, nearest

LISTED = 8  # files in one message
MOST_BYTES = 4 << 20
MOST_VALUES = 200_000  # with every alias written out
KIND = 40  # characters of a tag in a message
KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}

Keys = tuple[str, ...]


class YamlFile:
    """A parsed file: its plain `data`, and `where(keys)`: "file:line" of that key.

    A key that an override wrote is at that override's own text. `twice` are the file's duplicate
    keys. Without a `path` there are only overrides.
    """

    def __init__(self, path: Path | None, data: dict[str, Any]) -> None:
        self.path, self.data = path, data
        self.lines: dict[Keys, int] = {}
        self.overrides: dict[Keys, str] = {}
        self.twice: list[Problem] = []

    def override(self, keys: Keys, value: Any, text: str, *, remove: bool = False) -> None:
        """Write `value` at `keys` (or take the key out); `text` is where it now comes from."""
        inner = self.data
        for key in keys[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        for places in (self.lines, self.overrides):
            for known in [k for k in places if k[: len(keys)] == keys]:
                del places[known]  # type: ignore[attr-defined]
        if remove:
            inner.pop(keys[-1], None)
        else:
            inner[keys[-1]] = value
            self.overrides[keys] = text

    def where(self, keys: Keys) -> str:
        """The place of the key itself, of an override inside it, or of the nearest parent."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.overrides:
                return self.overrides[keys[:end]]
            if end == len(keys):
                inside = [text for k, text in self.overrides.items() if k[:end] == keys]
                if inside:
                    return inside[-1]
            if keys[:end] in self.lines:
                return f"{self.path}:{self.lines[keys[:end]]}"
        if self.path is None:
            return ""
        return f"{self.path}:1" if self.lines else str(self.path)


def read_yaml(path: Path, expected: str = "the keys fixed, search and study") -> YamlFile:
    """Parse a mapping; UserError with file:line when it cannot be read or is no mapping."""
    text = _text(path)
    try:
        file = YamlFile(path, {})
        data, node = _parsed(text, f"{path}:")
        if node is not None:
            _walk(node, (), file)
    except UserError:
        raise
    except Exception as error:  # ruamel raises many kinds
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        at = getattr(error, "position", None)  # of a character that YAML does not allow
        line = mark.line + 1 if mark else text.count("\n", 0, at) + 1 if at is not None else None
        where = f"{path}:{line}" if line else str(path)
        raise UserError(
            Problem(f"is not valid YAML: {_reason(error)}", "the file", where)
        ) from None
    if not isinstance(data, dict):
        kinds = {type(None): "empty", list: "a list", str: "a text"}
        what = kinds.get(type(data), "a single value")
        problem = f"is {what}, but must be a mapping with {expected}"
        raise UserError(Problem(problem, "the file", f"{path}:1"))
    file.data = data
    return file


def parse_value(text: str) -> Any:
    """One value as YAML 1.2 reads it: `1e-3` is a number, `off` a text. ValueError if none."""
    try:
        return _parsed(text, "")[0]
    except UserError as error:
        raise ValueError(f"it {error.problems[0].text}") from None
    except Exception as error:  # ruamel raises many kinds
        raise ValueError(_reason(error)) from None


def _refuse_odd(node: Node, path: str) -> None:
    """UserError for what is no plain value, holds itself, or grows beyond bounds once expanded."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def refuse(text: str, node: Node) -> UserError:
        return UserError(Problem(text, "the file", path and f"{path}{node.start_mark.line + 1}"))

    def expanded(node: Node) -> int:
        """How many values `node` stands for; each node of the graph is visited once."""
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in above:
            raise refuse("is not valid YAML: an alias stands for what contains it", node)
        if str(node.tag) not in PLAIN:
            kind = str(node.tag).rpartition(":")[2][:KIND]
            raise refuse(f"has a value of the kind {kind!r}; a text needs quotes", node)
        above.add(id(node))
        size = 1
        if isinstance(node, MappingNode):
            for key, value in node.value:
                if not isinstance(key, ScalarNode):
                    raise refuse("has a key that is a list or a mapping", key)
                size += expanded(key) + expanded(value)
        elif isinstance(node, SequenceNode):
            size += sum(map(expanded, node.value))
        elif any("\ud800" <= character <= "\udfff" for character in node.value):
            raise refuse("has half a surrogate pair, which is no character", node)
        above.discard(id(node))
        sizes[id(node)] = size
        return size

    if expanded(node) > MOST_VALUES:
        raise refuse(f"has more than {MOST_VALUES:,} values, its aliases written out", node)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) <= MOST_BYTES:
            return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        problem = f"is larger than {MOST_BYTES >> 20} MiB, the most that a study's file may be"
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        listed = ", ".join(p.name for p in near[:LISTED]) + (", ..." if len(near) > LISTED else "")
        hint = f" (in {path.parent} there are: {listed})" if near else ""
        problem = f"does not exist{nearest(path.stem, [p.stem for p in near])}{hint}"
    except IsADirectoryError:
        problem = "is a folder, but must be a YAML file"
    except UnicodeDecodeError as error:
        problem = f"is not a text in UTF-8 (byte {error.start})"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise UserError(Problem(problem, str(path)))


def _parsed(text: str, path: str) -> tuple[Any, Node | None]:
    """The values of a text and the nodes that they are made of; UserError for odd ones, at `path`."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ReusedAnchorWarning
        )  # YAML allows it, and it fills ten lines
        yaml = YAML(typ="safe", pure=True)
        yaml.allow_duplicate_keys = True  # `_walk` reports them all, with their lines
        node = yaml.compose(text)
        if node is None:
            return None, None
        _refuse_odd(node, path)
        return yaml.constructor.construct_document(node), node


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error)
    if isinstance(error, MarkedYAMLError):
        text = error.problem or error.context or text
        if text.startswith("but ") and error.context:
            text = f"{error.context}, {text}"
    if "'\\t'" in text:
        return "a tab stands where YAML wants spaces"
    return text.strip().split("\n")[0]


def _walk(node: Node, keys: Keys, file: YamlFile) -> None:
    """Note the line of every key and list entry below `node`, and the keys that are there twice."""
    seen: dict[str, int] = {}
    if isinstance(node, MappingNode):
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            inner = (*keys, name)
            if name in seen:
                text = f"is there twice, in line {seen[name]} already"
                file.twice.append(Problem(text, ".".join(inner), f"{file.path}:{line}"))
            seen.setdefault(name, line)
            file.lines.setdefault(inner, line)  # the first of two, whose value is in the data
            _walk(value, inner, file)
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            file.lines[*keys, str(i)] = value.start_mark.line + 1
            _walk(value, (*keys, str(i)), file)


def to_yaml(data: Any) -> str:
    """Plain nested values as the text of a YAML file, innermost lists and mappings on one line."""
    content = StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.dump(data, content)
    return content.getvalue()
