"""How far a step is that takes longer than a moment: a bar with the time left, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
AFTER = 1.0  # seconds, before which nothing is shown
EVERY = 30.0  # seconds between lines where stderr is no terminal


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items as they come; after a second stderr shows how many of `total` are done, and how long the rest takes."""
    began = shown = time.monotonic()
    bar = None
    try:
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - began < AFTER:
                continue
            if sys.stderr.isatty():
                if bar is None:
                    bar = _bar(what, total)
                bar.update(bar.task_ids[0], completed=done)
            elif now - shown >= EVERY:
                shown = now
                left = (now - began) / done * max(0, total - done)
                print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr)
    finally:
        if bar is not None:
            bar.stop()


def _bar(what: str, total: int):  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(what, total=total)
    bar.start()
    return bar
