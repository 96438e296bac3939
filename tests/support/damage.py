"""Damage for the fuzz tests: run folders and study files that are torn, changed or made to do harm.

Every function takes a `random.Random`, so that hypothesis can draw it and a campaign can seed it.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

from tune_ssl.cli import main as cli
from tune_ssl.records import log

DEEP = 20_000  # brackets, more than any parser's recursion takes
LINES = (log.TRIALS, log.HISTORY, log.SPLITS, log.GALLERIES)
JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63),
        10**40,
        0.5,
        -0.5,
        1e-300,
        1e308,
        -1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "nan",
        "0.9",
        "x" * 5000,
        "a\nb",
        "\x1b[31m",
    ),
    *(
        "é\u202e\U0001f600",
        "\ud800",
        "\x00",
        "../../../etc/passwd",
        "/etc/passwd",
        "<b>&\"'",
        "{{7*7}}",
    ),
    *([], [1], [None], [[]], [[1, "x"], [2]], {}, {"a": 1}, {"": None}, {"name": "x"}, ["x"] * 50),
)
EVENTS = (
    *log.BEGINNINGS,
    *log.ENDINGS,
    log.LOCKED,
    log.PLANNED,
    "exploded",
    "",
    7,
    None,
)


# ---- trees -------------------------------------------------------------------------------------


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in nested dicts and lists."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys if isinstance(one[key], (dict, list))]
    return found


def change_tree(random: Random, tree: Any) -> str:
    """Change one place of nested dicts and lists; says what was done."""
    known = places(tree)
    if not known:
        return "nothing"
    inner, key = random.choice(known)
    what = random.choice(("delete", "junk", "junk", "junk", "rename", "other", "scale"))
    if what == "delete" or (what == "rename" and isinstance(inner, list)):
        del inner[key]
    elif what == "rename":
        inner[random.choice((f"{key}x", "", "x.y", str(key).upper()))] = inner.pop(key)
    elif what == "other":  # a value from elsewhere
        other, at = random.choice(known)
        with contextlib.suppress(LookupError):
            inner[key] = json.loads(json.dumps(other[at]))
    elif what == "scale" and isinstance(inner[key], (int, float)):
        inner[key] = inner[key] * random.choice((-1, 1e9, 1e-9, 1e200, 10**30))
    else:
        inner[key] = random.choice(JUNK)
    return f"{what} {key!r} -> {str(inner[key])[:60] if key in _keys(inner) else 'gone'}"


def _keys(inner: Any) -> Any:
    return inner if isinstance(inner, dict) else range(len(inner))


# ---- files -------------------------------------------------------------------------------------


def change_lines(random: Random, path: Path) -> str:
    """Change the lines of one of the run's .jsonl files."""
    lines = path.read_text(errors="surrogateescape").splitlines()
    at = random.randrange(len(lines))
    what = random.choice(
        ("field", "field", "field", "field", "delete", "double", "swap", "event", "odd")
    )
    if what in ("field", "event"):
        record = json.loads(lines[at])
        if what == "event":
            record["event"] = random.choice(EVENTS)
            said = repr(record["event"])
        else:
            said = change_tree(random, record)
        lines[at] = json.dumps(record)
        what = f"{what} {said}"
    elif what == "delete":
        del lines[at]
    elif what == "double":
        lines.insert(random.randrange(len(lines)), lines[at])
    elif what == "swap":
        other = random.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        odd = random.choice(
            (
                *("null", "[]", "7", '"x"', "{}", "{", "\x00", '{"schema": 1}', '{"schema": 2}'),
                *(
                    "[" * DEEP,
                    '{"a":' * DEEP,
                    '{"schema": 1, "x": ' + "9" * 6000 + "}",
                    "x" * 10_000_000,
                ),
                '{"schema": 1, "event": "finished", "trial": "c0-t0000"}',
                '{"schema": 1, "trial": "\\ud800", "event": "started", "phase": "search", "condition": "x"}',
            )
        )
        lines.insert(at, odd)
        what = f"odd {odd[:60]!r}"
    path.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    return f"line {at + 1}: {what}"


def change_json(random: Random, path: Path) -> str:
    tree = json.loads(path.read_text())
    said = change_tree(random, tree)
    path.write_text(json.dumps(tree))
    return said


def change_bytes(random: Random, path: Path) -> str:
    """Delete, truncate, flip, insert: what a disk or a bad copy does."""
    content = bytearray(path.read_bytes())
    what = random.choice(
        ("delete", "empty", "truncate", "flip", "flip", "insert", "folder", "zeros")
    )
    if what in ("delete", "folder"):
        path.unlink()
        if what == "folder":
            path.mkdir()
        return what
    if what == "empty":
        content = bytearray()
    elif what == "truncate":
        content = content[: random.randrange(len(content))]
    elif what == "flip":
        for _ in range(random.choice((1, 1, 3, 30))):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif what == "insert":
        at = random.randrange(len(content))
        content[at:at] = random.randbytes(random.choice((1, 4, 100)))
    else:
        at = random.randrange(len(content))
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    path.write_bytes(content)
    return what


def change_yaml(random: Random, path: Path) -> str:
    """Change the parsed study.yaml and write it again, or change its text."""
    if random.random() < 0.6:
        from ruamel.yaml import YAML

        yaml = YAML(typ="safe", pure=True)
        tree = yaml.load(path)
        said = change_tree(random, tree)
        content = io.StringIO()
        try:
            yaml.dump(tree, content)
        except Exception as error:  # junk that YAML cannot hold
            return f"nothing ({type(error).__name__})"
        path.write_text(content.getvalue(), errors="replace")
        return said
    text, said = change_yaml_text(random, path.read_text())
    path.write_bytes(text.encode(errors="surrogateescape"))
    return said


SCALARS = (
    *(
        "null",
        "~",
        "true",
        "off",
        "0",
        "-1",
        "1e400",
        "-1e400",
        ".nan",
        ".inf",
        "0x10",
        "0o17",
        "1_000",
    ),
    *("9" * 5000, "1" + "0" * 400 + ".5", "''", '"\\ud800"', '"\\x00"', '"\\e[31m"', "2026-01-01"),
    *("2026-01-01T00:00:00Z", "!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]", "!!float nope"),
    *(
        "!!int x",
        "!!python/object/apply:os.system ['touch PWNED']",
        "!!python/name:os.system",
        "!x y",
    ),
    *(
        "*nowhere",
        "&a [*a]",
        "&a {b: *a}",
        "[[[[[[]]]]]]",
        "{a: {b: {c: {}}}}",
        "[" * DEEP,
        "- - -",
    ),
    *("{a: 1, a: 2}", "{<<: {a: 1}}", "{<<: 7}", "{<<: [7]}", "? [x]\n: y", "{[1]: 2}", "{{}: 1}"),
    *(
        "|\n  block",
        ">-\n  folded",
        "é",
        "\u2028",
        "\u202e",
        "'../../x'",
        "<<",
        "=",
        "?",
        "%x",
        "@x",
        "`x",
    ),
    *(
        "[1, 2",
        "'open",
        '"open',
        "{",
        "}",
        "]",
        ": :",
        "- x",
        "\t",
        "#x",
        "---",
        "...",
        "--- 1\n--- 2",
    ),
)
LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
MERGES = "\n".join(
    ["m0: &m0 {x: 1}"]
    + [f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}], k{i}: 1}}" for i in range(1, 40)]
)


def change_yaml_text(random: Random, text: str) -> tuple[str, str]:
    """One to three changes of a YAML file's text: (text, what was done)."""
    said = []
    for _ in range(random.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        at = random.randrange(len(lines))
        what = random.choice(
            (
                "value",
                "value",
                "value",
                "delete",
                "double",
                "indent",
                "swap",
                "key",
                "bomb",
                "chars",
                "byte",
            )
        )
        key, colon, _ = lines[at].partition(":")
        if what == "value":
            scalar = random.choice(SCALARS)
            if "[" in lines[at] and random.random() < 0.5:
                lines[at] = lines[at].replace("[", f"[{scalar}, ", 1)
            else:
                lines[at] = f"{key}: {scalar}" if colon else f"{lines[at]} {scalar}"
        elif what == "delete":
            del lines[at]
        elif what == "double":
            lines.insert(random.randrange(len(lines)), lines[at])
        elif what == "indent":
            lines[at] = random.choice(("  ", "\t", " ")) + lines[at]
        elif what == "swap":
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif what == "key":
            lines[at] = random.choice(SCALARS[:40]) + colon + lines[at][len(key) + 1 :]
        elif what == "bomb":
            lines.insert(at, random.choice((LAUGHS, MERGES)))
            if random.random() < 0.5:
                other = random.randrange(len(lines))
                key, colon, _ = lines[other].partition(":")
                lines[other] = f"{key}: *{random.choice(('a11', 'm39', 'a3'))}"
        elif what == "chars":
            cut = random.randrange(len(lines[at]) + 1)
            odd = random.choice("{}[]:,&*!|>'\"%@`#-? \t\x00\x07\u2028\ufeff\udc80é")
            lines[at] = lines[at][:cut] + odd + lines[at][cut:]
        else:
            cut = random.randrange(len(text) + 1)
            lines = (text[:cut] + text[cut + random.randrange(30) :]).split("\n")
        said.append(f"{what} at {at + 1}")
        text = "\n".join(lines)
    return text, "; ".join(said)


def change_run(random: Random, run: Path) -> str:
    """Damage one file of a run folder, or two; says what was done."""
    said = []
    for _ in range(random.choice((1, 1, 1, 2))):
        name = random.choice(
            (
                *("study.yaml", "study.yaml", "trials.jsonl", "trials.jsonl", "trials.jsonl"),
                *(
                    "history.jsonl",
                    "history.jsonl",
                    "splits.jsonl",
                    "galleries.jsonl",
                    "optuna.log",
                ),
                *("models/0/model.json", "models/0/model.json", "models/0/model.safetensors"),
            )
        )
        path = run / name
        if not path.is_file() or not path.stat().st_size:
            continue
        how: Callable[[Random, Path], str] = change_bytes
        with contextlib.suppress(ValueError, UnicodeDecodeError):
            if random.random() < 0.75:
                if name in LINES:
                    how = change_lines
                elif name == log.STUDY:
                    how = change_yaml
                elif name.endswith("json"):
                    how = change_json
        try:
            did = how(random, path)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
            did = change_bytes(random, path) if path.stat().st_size else "nothing"
        except Exception as error:  # a first change made it no YAML
            did = f"nothing ({type(error).__name__})"
        said.append(f"{name}: {did}")
    return " | ".join(said)


# ---- commands ----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a command did. `code` is a text where it raised what no user should see."""

    code: Any
    out: str
    err: str


class AtRay(BaseException):
    """A search has come so far that it would start Ray."""


def call(*arguments: object) -> Outcome:
    """The command line, in this process, without Ray."""
    out, err = io.StringIO(), io.StringIO()

    @contextlib.contextmanager
    def no_ray(*_: Any) -> Iterator[None]:
        raise AtRay
        yield

    patches = [mock.patch.object(sys, "argv", ["tune-ssl", *map(str, arguments)])]
    if arguments[0] in ("search", "ablate"):
        patches.append(mock.patch("tune_ssl.tuning.run.cluster", no_ray))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(contextlib.redirect_stdout(_Text(out)))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
        except AtRay:
            code = 0
        except Exception as error:
            import traceback

            code = f"{type(error).__name__}: {error}"
            err.write(traceback.format_exc())
    return Outcome(code, out.getvalue(), err.getvalue())


class _Text(io.TextIOWrapper):
    """A stdout as strict as a real one: what UTF-8 cannot hold is an error."""

    def __init__(self, kept: io.StringIO) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.kept = kept

    def write(self, text: str) -> int:
        text.encode(self.encoding, self.errors or "strict")
        return self.kept.write(text)


READING: tuple[tuple[str, ...], ...] = (
    ("list",),
    ("list", "--json"),
    ("best", "one", "--condition", "data.num_labels=20"),
    ("best", "one", "-o", "best"),
    ("export", "one", "--condition", "data.num_labels=20", "-o", "exported"),
    ("predict", "runs/one/models/0", "image.png", "--device", "cpu"),
    ("tensorboard", "one", "-o", "logs"),
    ("search", "--resume", "one"),
    ("ablate", "one"),
)
SLOW: tuple[tuple[str, ...], ...] = (("neighbors", "one"), ("report", "one", "-o", "report"))


def fresh(base: Path, folder: Path) -> Path:
    """`folder`/runs/one as a copy of `base`, what commands wrote gone."""
    for name in ("runs", "best", "exported", "logs", "report"):
        path = folder / name
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            path.unlink()
    return Path(shutil.copytree(base, folder / "runs" / "one"))


def sound(outcome: Outcome) -> bool:
    """Whether a command ended as it may: well, or with one clear line per problem."""
    if outcome.code == 0:
        return True
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    return outcome.code in (1, 2) and bool(lines) and "Traceback" not in outcome.err
