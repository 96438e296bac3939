"""What a person sees while trials run: a table on a terminal, a line per ended trial anywhere else."""

from __future__ import annotations

import time
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tune_ssl.records import log
from tune_ssl.tuning.job import Job, NotPickled
from tune_ssl.tuning.stream import At, ConditionLine, JobStream

REFRESH_SECONDS = 0.5
MOST = 4  # running trials of a condition that are shown one by one


class LiveTable(NotPickled, tune.Callback):
    """Per condition: its phase, what runs, is done, stopped, failed, and the best so far.

    While something runs also how far it is, and how long the condition takes.
    """

    def __init__(self, stream: JobStream, title: str, console: Console) -> None:
        self.stream, self.title, self.console = stream, title, console
        self.metric = stream.context.study.settings.metric
        self.began, self.drawn = time.monotonic(), 0.0
        self.working: float | None = None  # when the first trial began: workers take a while
        self.live = Live(console=console, auto_refresh=False, transient=False)
        stream.on_end = self._line if not console.is_terminal else None

    def __enter__(self) -> LiveTable:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.update(self.table(), refresh=True)
            self.live.stop()
        else:
            self.console.print(self.table())

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.console.is_terminal and time.monotonic() - self.drawn > REFRESH_SECONDS:
            self.live.update(self.table(), refresh=True)
            self.drawn = time.monotonic()

    def table(self) -> Table:
        done, expected = self._done(), sum(line.expected for line in self.stream.lines)
        now = time.monotonic()
        if self.working is None and self.stream.worked > 0:
            longest = max((at.seconds for at in self.stream.at.values()), default=0.0)
            self.working = now - min(longest, self.stream.worked)
        left = {} if self.working is None else time_left(self.stream, now - self.working)
        caption = f"{done} of {expected} trials, {_span(now - self.began)}"
        if left and not self.stream.context.deadline.passed():
            caption += f", about {_span(max(left.values()))} left"
        caption += f"; best {self.metric}"
        table = Table(title=escape(self.title), caption=caption)
        table.add_column("condition", overflow="fold")
        table.add_column("phase", no_wrap=True)
        for column in ("running", "done", "stopped", "failed", "best"):
            table.add_column(column, justify="right", no_wrap=True)
        runs = bool(self.stream.running)
        for column in ("steps", "left") if runs else ():
            table.add_column(column, justify="right", no_wrap=True)
        for line in self.stream.lines:
            p = line.progress
            seconds = left.get(p.condition)
            more = (self._steps(line), "-" if seconds is None else _span(seconds))
            table.add_row(
                escape(p.condition),
                p.title,
                str(p.running),
                f"{p.ended[log.FINISHED]}/{p.planned}",
                str(p.ended[log.STOPPED]),
                str(sum(p.ended[status] for status in log.BAD_ENDINGS)),
                "-" if p.best is None else f"{p.best:.4f}",
                *(more if runs else ()),
            )
        return table

    def _steps(self, line: ConditionLine) -> str:
        """How far its running trials are: `120, 40 of 500`."""
        far = sorted((at.step for at in running_at(self.stream, line)), reverse=True)
        if not far:
            return "-"
        shown = ", ".join(map(str, far)) if len(far) <= MOST else f"{far[-1]} to {far[0]}"
        return f"{shown} of {steps_of(line)}"

    def _done(self) -> int:
        return sum(p.done_before + p.ended.total() for p in (x.progress for x in self.stream.lines))

    def _line(self, job: Job, status: str, value: float | None) -> None:
        progress = self.stream.of[job.condition].progress
        shown = "" if value is None else f" {self.metric} {value:.4f}"
        count = f"{progress.title} {progress.ended.total()}/{progress.planned}"
        self.console.print(
            f"{self.title}: {job.trial} ({job.condition}, {count}) {status.replace('_', ' ')}{shown}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def steps_of(line: ConditionLine) -> int:
    """Steps of a whole trial; those that share a condition have equally many."""
    return sum(line.spec.stage_steps().values())


def running_at(stream: JobStream, line: ConditionLine) -> list[At]:
    """How far each running trial of a condition is."""
    own = [trial for trial, job in stream.running.items() if job.condition == line.condition]
    return [stream.at.get(trial, At(0, 0.0)) for trial in own]


def time_left(stream: JobStream, spent: float) -> dict[str, float]:
    """condition -> seconds until it is done, of those that are not; empty while that cannot be said.

    What is left is counted in seconds of training: a trial still to come takes as long as those of its condition did,
    those that were stopped early included while it is searched, and one that runs has done a part. In `spent` seconds
    this command trained `stream.worked` seconds of trials; conditions share the places.
    """
    if stream.worked <= 0 or spent <= 0:
        return {}
    took: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for trial, end in stream.context.ledger.ended.items():
        if trial not in stream.running and end.get("seconds") and end["event"] != log.FAILED:
            took.setdefault(end["condition"], []).append(end["seconds"])
            if end["event"] == log.FINISHED:
                whole.setdefault(end["condition"], []).append(end["seconds"])
    work: dict[str, float] = {}
    each: dict[str, tuple[float, float]] = {}  # of a trial that is searched, and of a whole one
    for line in stream.lines:
        found = whole.get(line.condition) or [
            at.seconds / at.step * steps_of(line) for at in running_at(stream, line) if at.step
        ]
        if found:
            mean = sum(found) / len(found)
            all_of = took.get(line.condition) or found
            each[line.condition] = (sum(all_of) / len(all_of), mean)
    if not each:
        return {}
    others = [sum(values) / len(each) for values in zip(*each.values(), strict=True)]
    for line in stream.lines:
        searched, one = each.get(line.condition, others)
        p = line.progress
        steps = max(1, steps_of(line))
        begun = sum(max(0.0, 1 - at.step / steps) for at in running_at(stream, line))
        here = max(0, p.planned - p.ended.total() - p.running) + begun
        later = line.expected - p.done_before - p.planned
        stops = line.phase is not None and line.phase.name in (log.SEARCH, log.RETUNE)
        left = here * (searched if stops else one) + later * one
        if left > 0:
            work[line.condition] = left * spent / stream.worked
    total = sum(work.values())
    return {condition: min(total, len(work) * own) for condition, own in work.items()}


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
