"""`tune-ssl list`: every run folder in one table, read from study.yaml, the trials and the driver's lock."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tune_ssl.base.errors import Problem, UserError, printable
from tune_ssl.records import log
from tune_ssl.records.ledger import Best
from tune_ssl.runs.lock import LOCK, in_use
from tune_ssl.runs.status import RunStatus, endings

TRACES = (log.STUDY, f".{log.STUDY}", log.TRIALS, LOCK)


@dataclass(frozen=True)
class Summary:
    """One run folder. With a `problem` only `name` and `path` say anything.

    `running` is whether a process of this machine drives it, None where its lock cannot be asked.
    `trials` counts by phase and ending; `best` is None for a condition without a finished trial.
    """

    name: str
    path: str
    problem: str | None = None
    method: str = ""
    dataset: str = ""
    created: str = ""
    metric: str = ""
    running: bool | None = None
    status: str = ""
    trials: dict[str, dict[str, int]] = field(default_factory=dict)
    best: dict[str, Best | None] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["best"] = {key: best and best._asdict() for key, best in self.best.items()}
        return plain


def read_all(runs: Path) -> list[Summary]:
    """The run folders in `runs`, oldest first, those with a problem last. UserError if there is no such folder."""
    try:
        folders = sorted(
            path for path in runs.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        raise UserError(Problem(f"cannot be listed: {error.strerror}", str(runs))) from None
    found = [read_run(path) for path in folders if any((path / name).exists() for name in TRACES)]
    return sorted(found, key=lambda item: (item.problem is not None, item.created, item.name))


def read_run(run: Path) -> Summary:
    """What one folder says; everything that is wrong with it becomes its `problem`."""
    try:
        found = RunStatus.read(run)
        about, trials, best = found.about, found.ledger.counts(), found.best()
        words = {running: found.in_words(running) for running in (True, False, None)}
    except UserError as error:
        return Summary(run.name, str(run), str(error.problems[0]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a record of another shape
        what = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"{run / log.TRIALS} does not fit {log.STUDY}: {what}"
        return Summary(run.name, str(run), text)
    try:
        running: bool | None = in_use(run)
    except OSError:
        running = None
    return Summary(
        name=run.name,
        path=str(run),
        method=about.method,
        dataset=about.dataset.name,
        created=about.created,
        metric=about.metric,
        running=running,
        status=words[running],
        trials=trials,
        best=best,
    )


# ---- what is in the folder ---------------------------------------------------------------------


# ---- what is shown -----------------------------------------------------------------------------


def table(found: list[Summary]) -> Table:
    """One row per run, made for 80 columns. The values are tuning scores: best of many, on validation data."""
    shown = Table(
        show_lines=True, caption="best: the study's metric on validation images; * is locked"
    )
    shown.add_column("run", overflow="fold")
    shown.add_column("status")
    shown.add_column("condition", overflow="fold")
    shown.add_column("best", justify="right", no_wrap=True)
    for item in found:
        what = f"{item.method} on {item.dataset}"
        created = item.created[:16].replace("T", " ")
        values = [
            "-" if best is None else f"{best.value:.4f}{'*' if best.locked else ' '}"
            for best in item.best.values()
        ]
        cells = [
            [item.name, what, created],
            [item.status, *endings(item.trials)],
            [*item.best],
            values,
        ]
        shown.add_row(*(Text("\n".join(map(printable, lines))) for lines in cells))
    return shown
