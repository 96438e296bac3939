"""`tune-ssl tensorboard`: a run's history as TensorBoard event files, one TensorBoard run per trial.

Scalars have the metrics' keys, the steps and the times of the history; a value that was not finite is
NaN. Each trial's config, condition, seed and phase are its hyperparameters, and `final/<metric>` is the
value that counts, which only finished trials have.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.files import refuse_filled
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports
from tune_ssl.records.log import Record

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FLUSH_SECONDS = 5  # after which a file that is still written has what was added


def write_logs(run: Path, out: Path, *, replace: bool) -> int:
    """Write the logs to the folder `out`, all or none, and return the number of trials.

    With `replace` what is in `out` gives way; else it must be new or empty.

    Raises:
        UserError: nothing is recorded yet, a folder that is not empty, or that cannot be written.
    """
    if not replace:
        refuse_filled(out)
    metric = str(read_yaml(run / log.STUDY).data.get("metric"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torn lines
        ledger = Ledger.read(run)
        reports = latest_reports(log.read(run / log.HISTORY))
    if not reports:
        raise UserError(Problem("has no history yet", str(run)))
    history: dict[str, list[Record]] = {}
    for report in reports:
        history.setdefault(report["trial"], []).append(report)
    if strangers := sorted(set(history) - set(ledger.begun)):
        text = f"has reports of {strangers[0]}, which never began in {log.TRIALS}"
        raise UserError(Problem(text, str(run / log.HISTORY)))
    for start in ledger.begun.values():
        log.expect(run / log.TRIALS, start, "config")
    for ending in ledger.ended.values():
        log.expect(run / log.TRIALS, ending, "value", "step", "time")
    for report in reports:
        log.expect(run / log.HISTORY, report, "metrics", "step", "time")
    target = out.absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for trial, lines in history.items():
            written = TrialLog(temporary / trial, ledger.begun[trial], metric)
            for line in lines:
                written.report(line)
            written.close(ledger.ended.get(trial))
        if replace:
            shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except OSError as error:
        raise UserError(Problem(f"cannot be written: {error.strerror}", str(out))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(history)


class TrialLog:
    """The event file of one trial, in a folder of its own; whoever opens it closes it."""

    def __init__(self, folder: Path, start: Record, metric: str) -> None:
        from tensorboardX import SummaryWriter

        self.start, self.metric = start, metric
        self.writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)

    def report(self, report: Record) -> None:
        for key, value in scalars(report["metrics"]).items():
            self.writer.add_scalar(key, value, report["step"], walltime=report["time"])

    def close(self, ending: Record | None) -> None:
        """With the final value of a finished trial, and the hyperparameters."""
        with self.writer:
            final = final_value(ending, self.metric)
            for key, value in final.items():
                assert ending is not None
                self.writer.add_scalar(key, value, ending["step"], walltime=ending["time"])
            _write_hparams(self.writer, self.start, final)


def scalars(metrics: Record) -> dict[str, float]:
    """The metrics that are numbers; what was not finite is NaN."""
    return {
        key: nan if value is None else value
        for key, value in metrics.items()
        if value is None or isinstance(value, (int, float))
    }


def final_value(ending: Record | None, metric: str) -> dict[str, float]:
    """`final/<metric>` of a trial that finished, and of no other."""
    if ending and ending["event"] == log.FINISHED and ending["value"] is not None:
        return {f"final/{metric}": ending["value"]}
    return {}


def hyperparameters(start: Record) -> Record:
    """What a trial was given: its flat config, and its phase, condition, seed and variant."""
    named = {k: start[k] for k in ("phase", "condition", "seed", "variant") if k in start}
    return {key: _plain(value) for key, value in (start["config"] | named).items()}


def _write_hparams(writer: SummaryWriter, start: Record, final: dict[str, float]) -> None:
    """Into the trial's own run: SummaryWriter.add_hparams would open a further one."""
    from tensorboardX.summary import hparams

    experiment, begin, end = hparams(hyperparameters(start), final)
    for summary in (experiment, begin, *([end] if final else [])):
        writer.file_writer.add_summary(summary)


def _plain(value: Any) -> bool | float | str:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
