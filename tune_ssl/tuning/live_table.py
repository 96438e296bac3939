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
from tune_ssl.tuning.phase import JobSource

REFRESH_SECONDS = 0.5
BAD = log.BAD_ENDINGS


class LiveTable(NotPickled, tune.Callback):
    """Per condition: running, done, stopped, failed, the best so far, and when it will be over."""

    def __init__(self, source: JobSource, title: str, console: Console) -> None:
        self.source, self.title, self.console = source, title, console
        self.began, self.drawn = time.monotonic(), 0.0
        self.ended_before = sum(p.ended.total() for p in source.progress.values())
        self.live = Live(console=console, auto_refresh=False, transient=False)
        source.on_end = self._line if not console.is_terminal else None

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
        progress = list(self.source.progress.values())
        done, planned = sum(p.ended.total() for p in progress), sum(p.planned for p in progress)
        caption = f"{done} of {planned} trials, {_span(time.monotonic() - self.began)}{self._eta()}"
        table = Table(title=escape(self.title), caption=f"{caption}; best {self.source.metric}")
        table.add_column("condition", no_wrap=True)
        for column in ("running", "done", "stopped", "failed", "best"):
            table.add_column(column, justify="right")
        for p in progress:
            table.add_row(
                escape(p.condition),
                str(p.running),
                f"{p.ended[log.FINISHED]}/{p.planned}",
                str(p.ended[log.STOPPED]),
                str(sum(p.ended[status] for status in BAD)),
                "-" if p.best is None else f"{p.best:.4f}",
            )
        return table

    def _eta(self) -> str:
        progress = self.source.progress.values()
        done, planned = sum(p.ended.total() for p in progress), sum(p.planned for p in progress)
        fresh = done - self.ended_before
        if not fresh or done >= planned:
            return ""
        return f", about {_span((time.monotonic() - self.began) / fresh * (planned - done))} left"

    def _line(self, job: Job, status: str, value: float | None) -> None:
        progress = self.source.progress[job.condition]
        shown = "" if value is None else f" {self.source.metric} {value:.4f}"
        count = f"{progress.ended.total()}/{progress.planned}"
        self.console.print(
            f"{self.title}: {job.trial} ({job.condition}, {count}) {status.replace('_', ' ')}{shown}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
