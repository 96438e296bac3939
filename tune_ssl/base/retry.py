"""Waiting for what is away for a while: a disk, a database, a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tune_ssl.base.errors import Stopped, first_line

LONGEST = 120.0  # seconds of waiting before a run is stopped
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds; the last one again and again
SHORT = 0.8  # seconds of waiting that nobody need hear of

T = TypeVar("T")


def until_it_works(
    do: Callable[[], T],
    on: type[Exception] | tuple[type[Exception], ...],
    what: str,
    tell: Callable[[str], None],
    longest: float | None = None,
) -> T:
    """What `do()` returns, tried again after each error of the kinds `on`; `tell` hears of it once.

    `what` opens the sentence: "runs/a cannot be written". Raises Stopped after `longest` seconds.
    """
    began = time.monotonic()
    end = began + (LONGEST if longest is None else longest)
    tries, told = 0, False
    while True:
        try:
            result = do()
        except on as error:
            reason = f"{what}: {first_line(error)}"
            if time.monotonic() >= end:
                raise Stopped(reason) from error
            if not told and time.monotonic() - began > SHORT:
                told = True
                tell(f"{reason}; waiting")
            time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1
        else:
            if told:
                tell("it answers again; going on")
            return result
