"""How long the rest of a run will take, by the trials that ended."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from tune_ssl.records import log

RECENT = 40  # ended trials by which it is measured how many run at once


class Span(NamedTuple):
    """One trial from its last beginning to its end."""

    condition: str
    phase: str
    event: str
    start: float
    end: float


class Pace:
    """How long trials take, and how many of them run at once: measured on those that ended."""

    def __init__(self) -> None:
        self.spans: deque[Span] = deque(maxlen=RECENT)
        self.sums: dict[tuple[str, ...], tuple[float, int]] = {}

    def add(self, span: Span) -> None:
        self.spans.append(span)
        keys: list[tuple[str, ...]] = [(span.condition, span.phase), (span.phase,), ()]
        if span.event == log.FINISHED:
            keys += [(span.condition, "whole"), ("whole",)]
        for key in keys:
            seconds, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = seconds + max(0.0, span.end - span.start), count + 1

    def seconds(self, condition: str, phase: str) -> float | None:
        """What a trial of that phase takes: by those of the phase, else by trials that were trained to their end."""
        ways: tuple[tuple[str, ...], ...] = ((condition, phase), (condition, "whole"))
        for key in (*ways, (phase,), ("whole",), ()):
            if key in self.sums:
                total, count = self.sums[key]
                return total / count
        return None

    def at_once(self, running: Iterable[Span] = ()) -> float:
        """Trials that ran at once on average, at times when any ran."""
        busy, covered, total = 0.0, -math.inf, 0.0
        for span in sorted([*self.spans, *running], key=lambda span: span.start):
            busy += max(0.0, span.end - max(span.start, covered))
            covered = max(covered, span.end)
            total += max(0.0, span.end - span.start)
        return max(1.0, total / busy) if busy else 1.0


def finishes(work: dict[str, float], at_once: float, least: dict[str, float]) -> dict[str, float]:
    """condition -> seconds until it is done, where those that have work left share the machine equally.

    `work` is in seconds of trials, `least` the longest one that is left: no machine is faster than that.

    >>> finishes({"a": 10.0, "b": 30.0}, 2.0, {"a": 5.0, "b": 5.0})
    {'a': 10.0, 'b': 20.0}
    """
    found, passed, done = {}, 0.0, 0.0
    left = sorted(work.items(), key=lambda item: item[1])
    for i, (condition, seconds) in enumerate(left):
        passed += (len(left) - i) * (seconds - done) / at_once
        done = seconds
        found[condition] = max(passed, least[condition])
    return found
