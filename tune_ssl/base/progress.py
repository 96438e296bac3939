"""How far a step is that takes longer than a moment: a bar with the time left, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
AFTER = 1.0  # seconds, before which nothing is shown
EVERY = 30.0  # seconds between lines where stderr is no terminal


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items as they come; after a second stderr shows how many of `total` are done, and how long the rest takes."""
    began = shown = time.monotonic()
    bar, said = None, False
    try:
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - began < AFTER:
                continue
            if StepBar.shown is not None:  # which has the terminal
                StepBar.shown.say(f"{what}: {done} of {total}")
                said = True
            elif sys.stderr.isatty():
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
        if said and StepBar.shown is not None:
            StepBar.shown.say("")


class StepBar:
    """The steps of a training on a terminal: its stage, how many are done, the time left, and what it said last.

    Where `console` is no terminal it shows nothing.
    """

    shown: StepBar | None = None  # the one that has the terminal

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self.bar: Any = None

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
            StepBar.shown = None

    def step(self, stage: str, step: int) -> None:
        if not self.console.is_terminal:
            return
        if self.bar is None:
            self.bar = _bar("", self.total, self.console)
            StepBar.shown = self
        self.bar.update(self.bar.task_ids[0], completed=step, description=stage)

    def say(self, text: str) -> None:
        """What stands behind the bar, until something else does."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], said=text)


def _bar(what: str, total: int, console: Console | None = None) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("{task.fields[said]}", markup=False),
    )
    bar = Progress(*columns, console=console or Console(stderr=True), transient=True)
    bar.add_task(what, total=total, said="")
    bar.start()
    return bar
