"""The on-disk schema of a run folder: what is written, how it is read back, what is repaired.

It needs only the standard library, so that a report renders where neither torch nor ray is installed.

    trials.jsonl    one line per event: a beginning or an ending of a trial, a lock, a plan
    history.jsonl   one line per report of a trial in training
    splits.jsonl    one line per (condition, seed): which images were labeled, validation, test
    galleries.jsonl one line per gallery of a condition's first confirmed seed
    predictions.jsonl  one line per confirmed trial: what its network says of single images (`records.predictions`)
    models/<index of the condition>/   that seed's weights, model.safetensors, and model.json

Lines are append-only and self-describing. A torn last line is dropped with a warning; one that is whole
but not what a run writes (a value that is a text, an unknown event) is an error that names file and line:
no crash makes such lines, and what was changed must not become a result. After a resume
the same report may stand twice: `latest_reports` keeps the last one of each (trial, stage, step),
`latest_galleries` that of each (trial, name). Of predictions the last sound line of a trial counts.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.files import sync
from tune_ssl.records import fields

SCHEMA = 1
TRIALS, HISTORY, SPLITS, STUDY = "trials.jsonl", "history.jsonl", "splits.jsonl", "study.yaml"
GALLERIES, MODELS = "galleries.jsonl", "models"
PREDICTIONS = "predictions.jsonl"
WEIGHTS, MODEL = "model.safetensors", "model.json"

STARTED, RESUMED = "started", "resumed"
FINISHED, STOPPED = "finished", "stopped_early"
DIVERGED, COLLAPSED, FAILED = "diverged", "collapsed", "failed"
LOCKED, PLANNED = "locked", "planned"
TOO_LONG = "longer than budget.max_minutes"  # how the reason of a trial that was cut begins
REOPENED = "reopened"  # a condition's choice is taken back, though its test data was opened
CUT = "cut"  # a condition's work that a time budget left undone
BEGINNINGS = (STARTED, RESUMED)
BAD_ENDINGS = (DIVERGED, COLLAPSED, FAILED)
ENDINGS = (FINISHED, STOPPED, *BAD_ENDINGS)
SEARCH, FINALIST, CONFIRM = "search", "finalist", "confirm"
RETUNE, ABLATE = "retune", "ablate"
PHASES = (SEARCH, FINALIST, CONFIRM, RETUNE, ABLATE)
REFERENCE = "reference"  # the variant of an ablation that changes nothing

Record = dict[str, Any]

_TRIAL = {
    "phase": fields.one_of(PHASES),
    "trial": fields.FILE_NAME,
    "condition": fields.TEXT,
}
_EVENT = {
    "time": fields.AMOUNT,
    "config": fields.CONFIG,
    "changes": fields.CONFIG,
    "digest": fields.TEXT,
    "rule": fields.TEXT,
    "variant": fields.TEXT.or_null(),
    "repeats": fields.FILE_NAME.or_null(),
    "given": fields.TEXT,
    "redrawn": fields.WHOLE,
    "reason": fields.TEXT.or_null(),
    "seed": fields.WHOLE,
    "number": fields.WHOLE,
    "ties": fields.WHOLE,
    "accumulate": fields.WHOLE,
    "value": fields.NUMBER.or_null(),
    "metrics": fields.METRICS.or_null(),
    "step": fields.AMOUNT.or_null(),
    "seconds": fields.AMOUNT.or_null(),
    "waited": fields.AMOUNT,
    "reused": fields.AMOUNT,
    "images_seen": fields.AMOUNT.or_null(),
    "half_width": fields.AMOUNT.or_null(),
    "retune": fields.TEXTS,
    "switches": fields.TEXTS.or_null(),
}
EXHAUSTED = "exhausted"  # a search that found no further config before its trials were all begun
OF_A_CONDITION = (PLANNED, REOPENED, CUT, EXHAUSTED)  # events that are of no trial
_EVENTS = (*BEGINNINGS, *BAD_ENDINGS, FINISHED, STOPPED, LOCKED, *OF_A_CONDITION)
_LINES = {
    event: fields.Shape(
        {"event": fields.one_of(_EVENTS)}
        | _TRIAL
        | ({"trial": fields.FILE_NAME.or_null()} if event in OF_A_CONDITION else {}),
        _EVENT,
    )
    for event in _EVENTS
}
_REPORT = fields.Shape(
    {
        "trial": fields.FILE_NAME,
        "stage": fields.TEXT,
        "step": fields.AMOUNT,
        "metrics": fields.METRICS,
        "time": fields.AMOUNT,
    },
    {"seconds": fields.AMOUNT.or_null()},
)
_SPLIT = fields.Shape(
    {"condition": fields.TEXT, "seed": fields.WHOLE, "digest": fields.TEXT}, {"time": fields.AMOUNT}
)


def changes_in_words(changes: Mapping[str, Iterable[Any]]) -> str:
    """`study.seeds=[0, 1, 2] (before: [0, 1])`, of what a run went on with: key -> (before, after)."""

    def said(value: Any) -> str:
        return "none" if value is None else str(value)

    return ", ".join(
        f"study.{key}={said(new)} (before: {said(old)})" for key, (old, new) in changes.items()
    )


def was_cut(ending: Record) -> bool:
    """Whether an ending is that of a trial which took too long."""
    return ending["event"] == STOPPED and (ending.get("reason") or "").startswith(TOO_LONG)


def plain(value: Any) -> Any:
    """`value` as strict JSON takes it: a number that is not finite becomes None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def append(path: Path, record: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append one record as one line, in one write. A torn line left by a crash is closed first.

    A `durable` record is on the disk when the call returns, so that a power cut cannot undo it.
    """
    append_all(path, [record], durable=durable)


def append_all(path: Path, records: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
    """`append` of several records in one write: all of them or none, when the process is killed."""
    text = "".join(
        json.dumps({"schema": SCHEMA, "time": time.time(), **plain(record)}, allow_nan=False) + "\n"
        for record in records
    )
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + text.encode())
        file.flush()
        if durable:
            os.fsync(file.fileno())
    if durable and not size:
        sync(path.parent)


def refuse_links(run: Path) -> None:
    """UserError where something in a run folder lies elsewhere: whoever sent it would have us write there."""
    home = run.resolve()
    below = [path for name in (MODELS, "report") for path in (run / name).rglob("*")]
    for path in (*run.iterdir(), *below):
        if path.name == "optuna.log.lock":  # Optuna's own link in a run of an older version
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            text = f"is a link to {os.readlink(path)}, outside of the run folder"
            raise UserError(Problem(text, where=str(path)))


def read(path: Path) -> list[Record]:
    """Every whole record of a file, in order; torn lines are dropped with one warning."""
    return list(scan(path))


def scan(path: Path) -> Iterator[Record]:
    """`read`, one record at a time, for files that are larger than memory.

    Raises:
        UserError: the file cannot be read, or has a whole line of another schema, or one that is
            not what a run writes, of trials.jsonl, history.jsonl and splits.jsonl.
    """
    torn = 0
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = _parsed(line)
                if record is None:
                    torn += 1
                    continue
                if problem := problem_of(path.name, record):
                    raise UserError(Problem(problem, where=f"{path}:{number}"))
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(Problem(f"cannot be read: {error.strerror}", str(path))) from None
    if torn:
        warnings.warn(f"{path}: {torn} torn line(s) dropped", stacklevel=2)


def _parsed(line: str) -> Record | None:
    """The record of a line; None where a crash or a disk made it none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # of a number with thousands of digits too
        return None
    if not isinstance(record, dict):
        return None
    if "\\u" in line:  # half of a pair of surrogates can be parsed, and written nowhere
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            return None
    return record


def problem_of(name: str, record: Record) -> str:
    """What is wrong with a record of the file `name`, as a sentence; empty if nothing is."""
    if name not in (TRIALS, HISTORY, SPLITS):
        return ""
    schema = record.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        return f"schema is {str(schema)[:80]}, but this version of tune-ssl reads only {SCHEMA}"
    if name == TRIALS:
        event = record.get("event")
        return _LINES[event if event in _EVENTS else FINISHED].problem(record)
    return (_REPORT if name == HISTORY else _SPLIT).problem(record)


def expect(path: Path, record: Record, *keys: str) -> None:
    """UserError for a record of the file `path` that lacks what every run writes: somebody changed it."""
    for key in keys:
        if key not in record:
            about = f"{record.get('trial')} ({record.get('event', 'a report')})"
            raise UserError(Problem(f"has a record of {about} without {key!r}", str(path)))
