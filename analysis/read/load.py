"""Run folders -> tidy tables.

Runs.trials       one row per trial:
    run, label, method, dataset, condition, labels, phase, trial, number, status, seed, digest,
    value, last, step, seconds, images_seen, reason, started, ended, resumed, split,
    repeats (of a finalist), variant (of an ablation),
    waited (seconds, of those, for another trial's pretraining), reused (steps that another one trained),
    given (where the config of a search trial was known from beforehand, if it was), redrawn (how
    many drawn configs were left out before it),
    full_config (a dict; a value of null is in it alone),
    config.<key> for each config key, and each metric at the trial's end (val/..., test/...)
    status is `running` where no ending was written. `value` is the study's metric at the trial's
    end, `last` the last one it reported, also when it did not finish. An ending without step or
    seconds (a crash) takes those of the last report. `label` names the run in tables: its method,
    or the run's name where several runs have the same method. `phase` is `superseded` of a confirm
    trial whose config was chosen before a reopening and is not the chosen one now: no number but a
    trial's own is made of it.
Runs.history      one row per report: run, label, condition, phase, trial, seed, stage, step,
                  seconds, and each metric
Runs.conditions   one row per (run, condition): run, label, method, condition, labels, validation
Runs.locks        one row per locked event: run, label, condition, trial, time, digest, value, rule,
                  half_width, config (a dict), taken_back (by a reopening after it)
Runs.variants     one row per planned row of an ablation: run, label, condition, variant, changes,
                  retune, switches, config; the variant `reference` changes nothing
Runs.ledgers      run -> its events as `tune_ssl.records.ledger` reads them
Runs.galleries    what the model sees (analysis.read.galleries)
Runs.predictions  run -> confirmed trial -> what its network says of single images (records.predictions)
Runs.notes        sentences on what is incomplete or odd, for the reader of the report
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.read.galleries import Gallery, read_galleries
from analysis.read.history import HISTORY_COLUMNS, History
from analysis.read.predictions import read_predictions
from analysis.read.study import Study, check_schema, read_studies
from tune_ssl.base.errors import Problem, UserError
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.records.predictions import Predictions

RUNNING = "running"
SUPERSEDED = "superseded"  # the phase of confirm trials that count no more
STATUSES = (*log.ENDINGS, RUNNING)
TEST_METRIC = "test/mean_class_accuracy"
MATRICES = ("test/confusion", "test/reliability")  # of a trial, as nested lists

TRIAL_COLUMNS = str.split(
    "run label method dataset condition labels phase trial number status seed digest value last "
    "step seconds images_seen reason started ended resumed split repeats variant given redrawn "
    "waited reused full_config"
)
CONDITION_COLUMNS = str.split("run label method condition labels validation")
LOCK_COLUMNS = str.split(
    "run label condition trial time digest value rule half_width config taken_back"
)
VARIANT_COLUMNS = str.split("run label condition variant changes retune switches config")
NUMBERS = str.split(
    "labels number seed value last step seconds images_seen started ended resumed redrawn waited reused"
)


@dataclass
class Runs:
    """Everything that was read. See the module's docstring for the columns."""

    studies: list[Study]
    trials: pd.DataFrame
    history: pd.DataFrame
    conditions: pd.DataFrame
    locks: pd.DataFrame
    variants: pd.DataFrame
    ledgers: dict[str, Ledger]
    notes: list[str] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    predictions: dict[str, dict[str, Predictions]] = field(default_factory=dict)

    def study(self, run: str) -> Study:
        return next(study for study in self.studies if study.run == run)

    @property
    def choices(self) -> pd.DataFrame:
        """The locks that no reopening took back."""
        return self.locks[~self.locks["taken_back"].astype(bool)]

    @property
    def labels(self) -> list[str]:
        return [study.label for study in self.studies]


def load_runs(paths: Iterable[str | Path], home: str = "") -> Runs:
    """Read run folders into one set of tables. `home` is the URL that a single folder is a copy of.

    Raises:
        UserError: no folder, not a run folder, an unknown schema, or runs on different datasets.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise UserError("no run folder was given")
    folders = list({folder.resolve(): folder for folder in folders}.values())
    studies = read_studies(folders, home)
    notes: list[str] = []
    trials: list[dict[str, Any]] = []
    history: list[pd.DataFrame] = []
    conditions: list[dict[str, Any]] = []
    locks: list[dict[str, Any]] = []
    variants: list[dict[str, Any]] = []
    ledgers: dict[str, Ledger] = {}
    galleries: list[Gallery] = []
    predictions: dict[str, dict[str, Predictions]] = {}
    for study in studies:
        events = _own(study, log.TRIALS, ("event", "trial", "condition", "phase"), notes)
        splits = _own(study, log.SPLITS, ("condition", "seed", "digest"), notes)
        ledgers[study.run] = ledger = Ledger(events)
        rows = _trial_rows(study, ledger, splits, notes)
        reports = History(study.metric)
        for report in _read(study, log.HISTORY, ("trial", "stage", "step", "metrics"), notes):
            if study.renamed is None or str(report["trial"]) in ledger.begun:
                reports.add(report)
        _add_last_reports(rows, reports)
        trials += rows
        history.append(reports.frame(rows))
        conditions += _condition_rows(study)
        planned = [event for rows in ledger.planned.values() for event in rows.values()]
        locks += _event_rows(study, _locks(events), LOCK_COLUMNS)
        variants += _event_rows(study, planned, VARIANT_COLUMNS)
        gone = {trial for trial in ledger.begun if ledger.superseded(trial)}
        galleries += [one for one in read_galleries(study, notes) if one.trial not in gone]
        predictions[study.run] = read_predictions(study, ledger, notes)
    table = _frame(trials, TRIAL_COLUMNS)
    for column in NUMBERS:
        try:
            table[column] = pd.to_numeric(table[column])
        except (TypeError, ValueError):
            raise UserError(f"{log.TRIALS}: `{column}` of a trial is not a number") from None
    return Runs(
        studies,
        table,
        _joined(history),
        _frame(conditions, CONDITION_COLUMNS),
        _frame(locks, LOCK_COLUMNS),
        _frame(variants, VARIANT_COLUMNS),
        ledgers,
        list(dict.fromkeys(notes)),
        galleries,
        predictions,
    )


def _own(study: Study, name: str, keys: Sequence[str], notes: list[str]) -> list[log.Record]:
    """The records of a file that are of this study's method."""
    found = (study.own(record) for record in _read(study, name, keys, notes))
    return [record for record in found if record is not None]


def _read(study: Study, name: str, keys: Sequence[str], notes: list[str]) -> Iterator[log.Record]:
    """The records of a file, one at a time; torn lines go into the notes at its end."""
    path = study.path / name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for record in log.scan(path):
            if record.get("schema") != log.SCHEMA:
                check_schema(record.get("schema"), path)
            for key in keys:
                if key not in record:
                    raise UserError(Problem(f"has a record without {key!r}", where=str(path)))
            yield record
    notes += [
        f"{study.path.name}: {name}: " + str(w.message).split(": ", 1)[-1] + "." for w in caught
    ]


def _trial_rows(
    study: Study, ledger: Ledger, splits: Sequence[log.Record], notes: list[str]
) -> list[dict[str, Any]]:
    split = {(record["condition"], record["seed"]): record["digest"] for record in splits}
    labels = {c["id"]: c.get("labels") for c in study.raw["conditions"]}
    own = {"run": study.run, "label": study.label, "method": study.method}
    rows: list[dict[str, Any]] = []
    for trial in dict.fromkeys((*ledger.begun, *ledger.ended)):
        start, end = ledger.begun.get(trial, {}), ledger.ended.get(trial, {})
        condition = (start or end)["condition"]
        row: dict[str, Any] = {**own, "dataset": study.dataset.get("name"), "number": len(rows)}
        row.update(trial=trial, resumed=ledger.resumed[trial])
        phase = SUPERSEDED if start and ledger.superseded(trial) else (start or end)["phase"]
        row.update(phase=phase, condition=condition, labels=labels.get(condition))
        row.update(status=end.get("event", RUNNING))
        row.update(started=start.get("time"), ended=end.get("time"))
        if start:
            row["full_config"] = config = start.get("config") or {}
            row.update({f"config.{key}": value for key, value in config.items()})
        known = ("number", "seed", "digest", "repeats", "variant", "given", "redrawn")
        row.update({key: start[key] for key in known if key in start})
        row.update(end.get("metrics") or {})
        row.update(
            {
                k: end.get(k)
                for k in ("value", "step", "seconds", "images_seen", "reason", "waited", "reused")
            }
        )
        if (parts := end.get("accumulate", 1)) != 1:  # asked for, or tried where memory had run out
            halved = f"each batch in {parts} parts (compute.accumulate={parts})"
            row["reason"] = "; ".join(filter(None, [halved, row["reason"]]))
        row["split"] = split.get((condition, row.get("seed")))
        rows.append(row)
    strange = sorted({row["condition"] for row in rows} - set(labels))
    if strange:
        notes.append(f"{study.run}: {', '.join(strange)} is not a condition of {log.STUDY}.")
    return rows


def _add_last_reports(trials: Sequence[dict[str, Any]], reports: History) -> None:
    """Fill what an ending left open from the last report before it."""
    for row in trials:
        if row["trial"] not in reports.last:
            continue
        row["last"], step, seconds = reports.last[row["trial"]]
        if row["status"] != RUNNING:
            row["step"] = step if row["step"] is None else row["step"]
            row["seconds"] = seconds if row["seconds"] is None else row["seconds"]


def _condition_rows(study: Study) -> list[dict[str, Any]]:
    own = {"run": study.run, "label": study.label, "method": study.method}
    return [
        {**own, "condition": c["id"], "labels": c.get("labels"), "validation": c.get("validation")}
        for c in study.raw["conditions"]
    ]


def _locks(events: Sequence[log.Record]) -> list[log.Record]:
    """The locked events, each with whether its choice was taken back after it."""
    found: list[log.Record] = []
    for event in events:
        if event["event"] == log.LOCKED:
            found.append({**event, "taken_back": False})
        elif event["event"] == log.REOPENED:
            for lock in found:
                lock["taken_back"] |= lock["condition"] == event["condition"]
    return found


def _event_rows(
    study: Study, events: Sequence[log.Record], columns: Sequence[str]
) -> list[dict[str, Any]]:
    own = {"run": study.run, "label": study.label}
    return [{**{key: event.get(key) for key in columns}, **own} for event in events]


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of several runs' histories, the metrics' columns in alphabetic order."""
    table = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    extra = sorted(set(table.columns) - set(HISTORY_COLUMNS))
    return table[[*HISTORY_COLUMNS, *extra]].reset_index(drop=True)


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table with `columns` first, present even without rows, and null metrics as nan."""
    table = pd.DataFrame(list(rows))
    extra = sorted(set(table.columns) - set(columns))
    table = table.reindex(columns=[*columns, *extra])
    for column in extra:
        if not column.startswith("config.") and column not in MATRICES:
            table[column] = pd.to_numeric(table[column], errors="coerce")
    return table
