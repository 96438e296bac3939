"""What a run does not say, and the last line of what it does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

SHARES = ("accuracy", "/knn@", "mask_rate", "_share")  # a metric with one of them is a fraction
NONE = "\u2013"  # an en dash


def missing(value: Any) -> bool:
    """None, nan or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def last_line(value: Any) -> str:
    """The last line of a reason, which for a crash is the error and not its traceback."""
    return value.strip().splitlines()[-1] if isinstance(value, str) and value.strip() else ""


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent: accuracies (kNN's among them), rates and shares."""
    return any(part in metric for part in SHARES)


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each row by the names of the columns."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


BUDGET_KEYS = ("data.num_labels", "data.labeled_ratio")


def only_budgets(conditions: Iterable[str]) -> bool:
    """Whether conditions, by their names, differ in nothing but how many images are labeled."""
    varied = {
        part.partition("=")[0] for name in conditions for part in name.split(",") if "=" in part
    }
    return varied <= {*BUDGET_KEYS}
