"""Damaged and odd input, and what the command line makes of it: an answer, or lines on stderr; no traceback.

    python -m tests.mutations --files 20000 --overrides 20000 --runs 2000 --reports 200 --seed 1

The same mutations are drawn by hypothesis in test_mutations.py, with few examples; here with many.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.runs import CONFIRMED, run_here
from tune_ssl.base.errors import Stopped, UserError
from tune_ssl.cli import main as cli

STUDIES = sorted((Path(__file__).parent.parent / "search_spaces").rglob("*.yaml"))
# What a person, a program or a bad disk may put where something else belongs.
ODD = (
    *("null", "''", "[]", "{}", "-1", "0", "1e999", "-1e999", ".nan", ".inf", "true", "no"),
    *("0x10", "1_000", "[[[[]]]]", "{a: {b: {c: 1}}}", "*x", "2026-01-01", "1e-3", "1e400000"),
    *("'\\u0000'", '"\\ud800"', "\u202e", "é", "../../etc/passwd", "/dev/null", "~", "|", ">", "%"),
    *("@", "`", "#", "\x07", "\t", "!!python/object:os.system {}", "!!binary aGk=", "&x [*x]"),
    *("<<: 1", "a b", "a: b: c", "- 1", "? x", str(2**70), "9" * 400, "x" * 300),
)
SOUND = ("0.5", "3", "weak", "[1, 2]", "{uniform: [0, 1]}", "{choice: []}", "{int: [5, 1]}")
SECTIONS = (
    "",
    ".",
    "conditions",
    "search",
    "ablate",
    "fixed",
    "study",
    "a.b.c",
    "search.optim.lr",
    "é",
)
WRONG: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**70,
        -(2**70),
        0.5,
        -0.0,
        1e300,
        1e39,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "nan", "../../x", "/etc/passwd", "<b>", "\u202e", "x" * 500),
    *([], [[]], [None], {}, {"a": {}}, [1, "x"], {"x": [1]}),
)
RECORDS = ("[" * 5000, "{}", "[]", "null", "1", '"x"', '{"event": "finished"}', "\ufeff{}", "{" * 9)
LINES = (
    "trials.jsonl",
    "history.jsonl",
    "splits.jsonl",
    "galleries.jsonl",
    "predictions.jsonl",
)
READERS = tuple(
    line.split()
    for line in ("list", "list --json", "best one", "tensorboard one -o logs", "neighbors one")
)


def damaged_text(draw: random.Random, text: str) -> str:
    """A text with one to four small changes to its lines, values and characters."""
    for _ in range(draw.randint(1, 4)):
        lines = text.split("\n")
        at = draw.randrange(len(lines))
        how = draw.randrange(9)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        elif how == 2:
            lines[at] = " " * draw.randrange(9) + lines[at].strip()
        elif how == 3:
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {draw.choice(ODD)}"
        elif how == 4:
            words = lines[at].replace(",", " , ").split(" ")
            words[draw.randrange(len(words))] = draw.choice(ODD)
            lines[at] = " ".join(words)
        elif how == 5:
            lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]
        elif how == 6:
            cut = draw.randrange(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:cut]
                + chr(draw.choice((0, 7, 9, 27, 58, 91, 123, 233, 0x202E)))
                + lines[at][cut:]
            )
        elif how == 7:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = lines[at].replace(
                draw.choice("aeiou:_.,[]{}"), draw.choice(["", "x", ":", "}", " "]), 1
            )
        text = "\n".join(lines) or "\n"
    return text


def damaged_bytes(draw: random.Random, content: bytes) -> bytes:
    """Cut off, flipped, blanked or doubled at a random place."""
    if not content:
        return b"\x00"
    at = draw.randrange(len(content))
    how = draw.randrange(5)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    if how == 2:
        return content[:at] + b"\x00" * min(64, len(content) - at) + content[at + 64 :]
    if how == 3:
        return content[:at] + content[: len(content) - at]
    return content[:at] + draw.randbytes(32) + content[at:]


def damaged_value(draw: random.Random, value: Any) -> Any:
    """Plain nested values with one of them changed, renamed or taken out."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value, key=str))
        changed = dict(value)
        how = draw.randrange(6)
        if how == 0:
            del changed[key]
        elif how == 1:
            changed[draw.choice(["", "x", "event", "trial", "value", "<b>"])] = changed.pop(key)
        else:
            changed[key] = damaged_value(draw, value[key])
        return changed
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], damaged_value(draw, value[at]), *value[at + 1 :]]
    return draw.choice(WRONG)


def damaged_lines(draw: random.Random, content: bytes) -> bytes:
    """A file of JSON lines with a record changed, moved, doubled, dropped or nested deeply."""
    lines = content.decode(errors="replace").splitlines()
    if not lines:
        return b"{}\n"
    at = draw.randrange(len(lines))
    how = draw.randrange(8)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif how == 2:
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 3:
        lines[at] = draw.choice(RECORDS)
    else:
        with contextlib.suppress(ValueError, RecursionError):  # damaged before
            lines[at] = json.dumps(damaged_value(draw, json.loads(lines[at])))
    return "".join(f"{line}\n" for line in lines).encode()


def damage_run(draw: random.Random, run: Path) -> str:
    """Damage one file of a run folder; returns its name."""
    files = sorted(
        p for p in run.rglob("*") if p.is_file() and "report" not in p.relative_to(run).parts
    )
    weights = [
        8 if p.name in ("trials.jsonl", "study.yaml") else 3 if p.name in LINES else 1
        for p in files
    ]
    path = draw.choices(files, weights)[0]
    how = draw.randrange(10)
    if how == 0:
        path.write_bytes(damaged_bytes(draw, path.read_bytes()))
    elif how == 1:
        path.unlink()
        if draw.random() < 0.3:
            path.mkdir()
        elif draw.random() < 0.3:
            path.symlink_to("/etc/passwd")
    elif path.name in LINES:
        path.write_bytes(damaged_lines(draw, path.read_bytes()))
    elif path.suffix == ".json":
        with contextlib.suppress(ValueError):  # damaged before
            path.write_text(json.dumps(damaged_value(draw, json.loads(path.read_text()))))
    elif path.suffix == ".yaml":
        text = damaged_text(draw, path.read_text(errors="replace"))
        path.write_text(text, errors="replace")
    else:
        path.write_bytes(damaged_bytes(draw, path.read_bytes()))
    return path.name


def known_keys(study: Any) -> list[str]:
    """The dotted keys of a resolved study's fixed part and settings."""

    def below(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from below(inner, f"{name}.{key}" if name else str(key))
        else:
            yield name

    return sorted(below(study.fixed.model_dump(mode="json"), "")) + sorted(
        f"study.{key}" for key in study.settings.model_dump()
    )


def odd_override(draw: random.Random, keys: list[str]) -> str:
    """key=value with a key, a value or both that are not what is expected."""
    key = draw.choice(keys)
    how = draw.randrange(5)
    if how == 0:
        key = key.replace(draw.choice("aeiou._"), draw.choice(["", "x", ".", " "]), 1)
    elif how == 1:
        key = draw.choice(SECTIONS)
    value = draw.choice((*ODD, *SOUND))
    form = draw.choice(
        ("{key}={value}", "{key}={value}", "{key}={value}", "{key}", "={value}", "{key}==")
    )
    return form.replace("{key}", key).replace("{value}", value)


class Broken(AssertionError):
    """A traceback, a wrong exit code, or a message of more than the lines that it should have."""


def called(*arguments: object) -> tuple[int, str, str]:
    """The command line in this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["tune-ssl", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:  # what main() does not catch would be a user's traceback
            traceback.print_exc()
            code = 1
    return int(code or 0), out.getvalue(), err.getvalue()


def expect_an_answer(arguments: list[str], tally: Counter[str], kind: str, about: object) -> None:
    """Broken unless `tune-ssl ARGUMENTS` answers, or refuses in plain lines with exit code 2."""
    code, _, err = called(*arguments)
    tally[f"{kind}: tried"] += 1
    tally[f"{kind}: refused"] += code == 2
    plain = all(line.isprintable() for line in err.splitlines())
    if "Traceback" in err or code not in (0, 2) or (code == 2 and not (err.strip() and plain)):
        tally[f"{kind}: broken"] += 1
        raise Broken(f"{arguments} exits with {code} on {about!r}: {err[-3000:]}")


def fuzz_file(draw: random.Random, folder: Path, tally: Counter[str]) -> None:
    text = draw.choice([CONFIRMED, *(path.read_text() for path in STUDIES)])
    content = damaged_text(draw, text).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        content = damaged_bytes(draw, content)
    (folder / "s.yaml").write_bytes(content)
    expect_an_answer(["check", "s.yaml"], tally, "YAML files", content)
    expect_nothing_but(folder, {"s.yaml"})


def fuzz_overrides(draw: random.Random, folder: Path, keys: list[str], tally: Counter[str]) -> None:
    (folder / "s.yaml").write_text(CONFIRMED)
    given = [odd_override(draw, keys) for _ in range(draw.randint(1, 3))]
    given = [text for text in given if not text.startswith("-") and "\x00" not in text]
    expect_an_answer(["check", "s.yaml", "--", *given], tally, "overrides", given)
    expect_nothing_but(folder, {"s.yaml"})


def expect_nothing_but(folder: Path, names: set[str]) -> None:
    left = {path.name for path in folder.iterdir()} - names
    if left:
        raise Broken(f"{sorted(left)} were written")


def fuzz_run(
    draw: random.Random, folder: Path, sound: Path, tally: Counter[str], report: bool
) -> None:
    """Damage a copy of the run `sound`, and ask everything that reads one."""
    run = folder / "runs" / "one"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    shutil.copytree(sound, run)
    names = {damage_run(draw, run) for _ in range(draw.choice((1, 1, 2)))}
    kind = "run folders, reported" if report else "run folders, read"
    if report:
        expect_an_answer(["report", "one"], tally, kind, names)
        return
    for command in draw.sample(READERS, 2):
        expect_an_answer(command, tally, kind, names)
    take_up(run, tally)


def take_up(run: Path, tally: Counter[str]) -> None:
    """What a resume does before Ray is started."""
    from tune_ssl.records.ledger import Ledger
    from tune_ssl.runs.folder import reopen, stores_of
    from tune_ssl.runs.splits import check_data
    from tune_ssl.runs.status import what_was_found
    from tune_ssl.tuning.run import open_run, searching
    from tune_ssl.tuning.stream import JobStream

    tally["run folders, taken up: tried"] += 1
    told: list[str] = []
    try:
        _, study = reopen(run.parent, run.name)
        ledger = Ledger.glance(run)
        told += what_was_found(run, ledger, None)
        stores = check_data(study, stores_of(run))
        context = open_run(run, study, stores, ledger, told.append)
        told.append(f"over: {JobStream(context, searching(context)).over}")
    except (UserError, Stopped):
        tally["run folders, taken up: refused"] += 1
    except Exception as error:
        tally["run folders, taken up: broken"] += 1
        raise Broken(f"{type(error).__name__} where {run} is taken up") from error


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def main() -> None:
    from tune_ssl.study.study import load_study

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name in ("files", "overrides", "runs", "reports"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tally: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tune-ssl-fuzz-") as temporary:
        made = Path(temporary)
        sound = run_here(made / "sound", CONFIRMED) if asked.runs or asked.reports else made
        keys = (
            known_keys(load_study(made / "s.yaml"))
            if (made / "s.yaml").write_text(CONFIRMED)
            else []
        )
        plans: list[tuple[int, Callable[[random.Random, Path], None]]] = [
            (asked.files, lambda draw, at: fuzz_file(draw, at, tally)),
            (asked.overrides, lambda draw, at: fuzz_overrides(draw, at, keys, tally)),
            (asked.runs, lambda draw, at: fuzz_run(draw, at, sound, tally, report=False)),
            (asked.reports, lambda draw, at: fuzz_run(draw, at, sound, tally, report=True)),
        ]
        for index, (times, attempt) in enumerate(plans):
            began = time.monotonic()
            for number in range(times):
                seed = f"{asked.seed} {index} {number}"
                folder = made / "here"
                folder.mkdir()
                try:
                    with inside(folder):
                        attempt(random.Random(seed), folder)
                except Broken as broken:
                    failures.append(f"seed {seed}: {broken}\n{traceback.format_exc()}")
                    print(failures[-1], flush=True)
                shutil.rmtree(folder)
            print(f"{times} in {time.monotonic() - began:.0f} s", flush=True)
    for key, count in sorted(tally.items()):
        print(f"{key}: {count}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
