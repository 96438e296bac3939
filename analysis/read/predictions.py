"""What confirmed networks say of single images: run -> trial -> `records.predictions.Predictions`.

A torn or malformed line is left out and noted.
"""

from __future__ import annotations

import warnings

from analysis.read.study import Study
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.records.predictions import Predictions, from_record


def read_predictions(study: Study, events: Ledger, notes: list[str]) -> dict[str, Predictions]:
    """Of each finished confirm trial that counts, the last sound line; `notes` gets what is left out."""
    own = f"{study.path.name}: {log.PREDICTIONS}: "
    found: dict[str, Predictions] = {}
    strange = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for line in log.scan(study.path / log.PREDICTIONS):
            mine = study.own(line)
            if mine is None:  # another method's
                continue
            try:
                one = from_record(mine)
            except ValueError:
                strange += 1
                continue
            start = events.begun.get(one.trial, {})
            about = (start.get("phase"), start.get("condition"), start.get("seed"))
            if about != (log.CONFIRM, one.condition, one.seed):
                strange += 1
            elif events.status(one.trial) == log.FINISHED and not events.superseded(one.trial):
                found[one.trial] = one
    notes += [own + str(w.message).split(": ", 1)[-1] + "." for w in caught]
    for one in found.values():
        if one.pool is None:
            notes.append(f"{own}single images of {one.trial} were not looked at: {one.error}.")
    if strange:
        notes.append(f"{own}{strange} strange line(s) left out.")
    return found
