"""A run folder that somebody changed is refused with a line that says what is wrong."""

from __future__ import annotations

import re

import pytest

from tune_ssl.base.errors import UserError
from tune_ssl.records import log
from tune_ssl.runs.folder import refuse_changed

ENDED = {"value": 1, "step": 1, "metrics": {}, "time": 1}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"event": "finished"}, "has a record of c0-t0000 (finished) without 'value'"),
        ({"event": "started", "number": 0}, "has a record of c0-t0000 (started) without 'config'"),
        (
            {"event": "finished", "condition": "d", **ENDED},
            "has a record of condition 'd', which the run's study lacks",
        ),
    ],
)
def test_records_that_lack_what_a_study_needs_are_refused(tmp_path, change, expected):
    about = {"phase": "search", "condition": "c", "trial": "c0-t0000", **change}
    log.append(tmp_path / log.TRIALS, about)
    with pytest.raises(UserError, match=re.escape(f"{log.TRIALS} {expected}")):
        refuse_changed(tmp_path, {"c"})
