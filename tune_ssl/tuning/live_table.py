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
from tune_ssl.tuning.stream import JobStream

REFRESH_SECONDS = 0.5


class LiveTable(NotPickled, tune.Callback):
    """Per condition: its phase, what runs, is done, stopped, failed, and the best so far."""

    def __init__(self, stream: JobStream, title: str, console: Console) -> None:
        self.stream, self.title, self.console = stream, title, console
        self.metric = stream.context.study.settings.metric
        self.began, self.drawn = time.monotonic(), 0.0
        self.done_before = self._done()
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
        progress = [line.progress for line in self.stream.lines]
        done, expected = self._done(), sum(line.expected for line in self.stream.lines)
        spent = time.monotonic() - self.began
        caption = f"{done} of {expected} trials, {_span(spent)}"
        if (
            done > self.done_before
            and done < expected
            and not self.stream.context.deadline.passed()
        ):
            left = spent / (done - self.done_before) * (expected - done)
            caption += f", about {_span(left)} left"
        caption += f"; best {self.metric}"
        table = Table(title=escape(self.title), caption=caption)
        table.add_column("condition", overflow="fold")
        table.add_column("phase", no_wrap=True)
        for column in ("running", "done", "stopped", "failed", "best"):
            table.add_column(column, justify="right", no_wrap=True)
        for p in progress:
            table.add_row(
                escape(p.condition),
                p.title,
                str(p.running),
                f"{p.ended[log.FINISHED]}/{p.planned}",
                str(p.ended[log.STOPPED]),
                str(sum(p.ended[status] for status in log.BAD_ENDINGS)),
                "-" if p.best is None else f"{p.best:.4f}",
            )
        return table

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


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
