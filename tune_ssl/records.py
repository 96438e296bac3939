"""The on-disk schema of a run folder: what is written, how it is read back, what is repaired.

It needs only the standard library, so that a report renders where neither torch nor ray is installed.

    trials.jsonl    one line per event: a beginning or an ending of a trial, a lock, a plan
    history.jsonl   one line per report of a trial in training
    splits.jsonl    one line per (condition, seed): which images were labeled, validation, test
    galleries.jsonl one line per gallery of a condition's first confirmed seed
    models/<index of the condition>/   that seed's weights, model.safetensors, and model.json

Lines are append-only and self-describing. A torn last line is dropped with a warning; one that is whole
but not what a run writes (a value that is a text, an unknown event) is an error that names file and line:
no crash makes such lines, and what was changed must not become a result. After a resume
the same report may stand twice: `latest_reports` keeps the last one of each (trial, stage, step),
and `latest_galleries` that of each (trial, name).
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

from tune_ssl import shapes
from tune_ssl.errors import Problem, UserError

SCHEMA = 1
TRIALS, HISTORY, SPLITS, STUDY = "trials.jsonl", "history.jsonl", "splits.jsonl", "study.yaml"
GALLERIES, MODELS = "galleries.jsonl", "models"
WEIGHTS, MODEL = "model.safetensors", "model.json"
JOURNAL = "optuna.log"  # the Optuna studies; written and read by Optuna alone

STARTED, RESUMED = "started", "resumed"
FINISHED, STOPPED = "finished", "stopped_early"
DIVERGED, COLLAPSED, FAILED = "diverged", "collapsed", "failed"
LOCKED, PLANNED = "locked", "planned"
BEGINNINGS = (STARTED, RESUMED)
BAD_ENDINGS = (DIVERGED, COLLAPSED, FAILED)
ENDINGS = (FINISHED, STOPPED, *BAD_ENDINGS)
SEARCH, FINALIST, CONFIRM = "search", "finalist", "confirm"
RETUNE, ABLATE = "retune", "ablate"
REFERENCE = "reference"  # the variant of an ablation that changes nothing

Record = dict[str, Any]

_TRIAL = {
    "phase": shapes.one_of((SEARCH, FINALIST, CONFIRM, RETUNE, ABLATE)),
    "trial": shapes.FILE_NAME,
    "condition": shapes.TEXT,
}
_EVENT = {
    "time": shapes.AMOUNT,
    "config": shapes.CONFIG,
    "changes": shapes.CONFIG,
    "digest": shapes.TEXT,
    "rule": shapes.TEXT,
    "variant": shapes.TEXT.or_null(),
    "repeats": shapes.FILE_NAME.or_null(),
    "reason": shapes.TEXT.or_null(),
    "seed": shapes.WHOLE,
    "number": shapes.WHOLE,
    "ties": shapes.WHOLE,
    "accumulate": shapes.WHOLE,
    "value": shapes.NUMBER.or_null(),
    "metrics": shapes.METRICS.or_null(),
    "step": shapes.AMOUNT.or_null(),
    "seconds": shapes.AMOUNT.or_null(),
    "images_seen": shapes.AMOUNT.or_null(),
    "half_width": shapes.AMOUNT.or_null(),
    "retune": shapes.TEXTS,
    "switches": shapes.TEXTS.or_null(),
}
_EVENTS = (*BEGINNINGS, *BAD_ENDINGS, FINISHED, STOPPED, LOCKED, PLANNED)
_LINES = {
    event: shapes.Shape(
        {"event": shapes.one_of(_EVENTS)}
        | _TRIAL
        | ({"trial": shapes.FILE_NAME.or_null()} if event == PLANNED else {}),
        _EVENT,
    )
    for event in _EVENTS
}
_REPORT = shapes.Shape(
    {
        "trial": shapes.FILE_NAME,
        "stage": shapes.TEXT,
        "step": shapes.AMOUNT,
        "metrics": shapes.METRICS,
        "time": shapes.AMOUNT,
    },
    {"seconds": shapes.AMOUNT.or_null()},
)
_SPLIT = shapes.Shape(
    {"condition": shapes.TEXT, "seed": shapes.WHOLE, "digest": shapes.TEXT}, {"time": shapes.AMOUNT}
)


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


def sync(path: Path) -> None:
    """What was written to a file, or into a folder, is on the disk when the call returns."""
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_links(run: Path) -> None:
    """UserError where something in a run folder lies elsewhere: whoever sent it would have us write there."""
    home = run.resolve()
    below = [path for name in (MODELS, "report") for path in (run / name).rglob("*")]
    for path in (*run.iterdir(), *below):
        if path.name == f"{JOURNAL}.lock":  # a link by Optuna, which a resume looks after
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


def latest_reports(reports: Iterable[Record]) -> list[Record]:
    """One report per (trial, stage, step): the last one written, in the order of first writing."""
    kept: dict[tuple[Any, Any, Any], Record] = {}
    for report in reports:
        kept[report["trial"], report["stage"], report["step"]] = report
    return list(kept.values())


def latest_galleries(galleries: Iterable[Record]) -> list[Record]:
    """One gallery per (trial, name): the last one written, in the order of first writing."""
    kept: dict[tuple[Any, Any], Record] = {}
    for gallery in galleries:
        kept[gallery["trial"], gallery["name"]] = gallery
    return list(kept.values())


def expect(path: Path, record: Record, *keys: str) -> None:
    """UserError for a record of the file `path` that lacks what every run writes: somebody changed it."""
    for key in keys:
        if key not in record:
            about = f"{record.get('trial')} ({record.get('event', 'a report')})"
            raise UserError(Problem(f"has a record of {about} without {key!r}", str(path)))


def endings(events: Iterable[Record]) -> dict[str, Record]:
    """trial -> the event that ended it (the first one: an ending is final)."""
    ended: dict[str, Record] = {}
    for event in events:
        if event["event"] in ENDINGS:
            ended.setdefault(event["trial"], event)
    return ended


def tuned(starts: Mapping[str, Record], ended: Mapping[str, Record]) -> dict[str, float]:
    """`scores` of trials given as trial -> the event that began it, and trial -> the one that ended it."""
    return scores(
        {
            "trial": trial,
            "phase": start["phase"],
            "repeats": start.get("repeats"),
            "status": ended.get(trial, {}).get("event"),
            "value": ended.get(trial, {}).get("value"),
        }
        for trial, start in starts.items()
    )


def scores(trials: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """search trial -> what a condition's config is chosen by, for each trial that may be chosen.

    `trials` are one condition's, as mappings with phase, trial, status, value and (of finalists)
    repeats. A candidate has finished with a finite value. Where the best ones were run again on
    further tuning seeds, only those count whose repeats all finished, by their mean over all seeds.
    """
    own: dict[str, float] = {}
    repeats: dict[str, list[float | None]] = {}
    for trial in trials:
        value = trial["value"] if trial["status"] == FINISHED else None
        value = value if value is not None and math.isfinite(value) else None
        if trial["phase"] == SEARCH and value is not None:
            own[trial["trial"]] = value
        elif trial["phase"] == FINALIST:
            repeats.setdefault(trial["repeats"], []).append(value)
    means = {
        trial: sum([own[trial], *values]) / (1 + len(values))  # type: ignore[list-item]
        for trial, values in repeats.items()
        if trial in own and None not in values
    }
    return means or own
