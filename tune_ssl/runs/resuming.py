"""What a resume finds in a run folder, in two lines, before it goes on."""

from __future__ import annotations

from pathlib import Path

from tune_ssl.records import log
from tune_ssl.runs.status import book_of, endings
from tune_ssl.storage.checkpoints import Checkpoints


def found(run: Path, storage: str | None = None) -> list[str]:
    """How far each part is, how its trials ended, and how those go on that have not ended."""
    book = book_of(run)
    done = [f"{stage.done} {stage.ended} of {stage.planned}" for stage in book.stages()]
    ended = endings(book.counts())
    how = [line for line in ended if not line.endswith(" open")]
    lines = [f"{run.name}: {', '.join(done)}" + (f" ({', '.join(how)})" if how else "")]
    open_trials = [trial for trial in book.starts if trial not in book.ended]
    if open_trials:
        checkpoints = Checkpoints(run, storage)
        saved = sum(bool(checkpoints.before(trial)) for trial in open_trials)
        parts = [f"{saved} go on from a checkpoint"] if saved else []
        parts += [f"{len(open_trials) - saved} begin again"] if saved < len(open_trials) else []
        lines.append(f"{run.name}: {len(open_trials)} trials were running: {', '.join(parts)}")
    torn = sum(_torn(run / name) for name in (log.TRIALS, log.HISTORY))
    if torn:
        lines.append(f"{run.name}: {torn} torn lines of its records are dropped")
    return lines


def _torn(path: Path) -> bool:
    """Whether a crash cut the last line."""
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except OSError:
        return False
