"""The rule that picks one configuration per condition, as an object that can say what it does."""

from __future__ import annotations

import math

import pandas as pd

from tune_ssl.records import ledger


def half_width(validation: float) -> float:
    """Hoeffding's 95 % half-width of an accuracy measured on `validation` images (nan if none)."""
    if not validation or math.isnan(validation):
        return math.nan
    return math.sqrt(math.log(40) / (2 * validation))


class BestFinalValue:
    """The finished search trial with the best value; the finalists' values are means over seeds."""

    name = "best final value"
    sentence = (
        "Among the finished search trials of a condition, the one with the best validation value "
        "at its end is chosen; where the best ones (the finalists) were run again on further "
        "tuning seeds, the one with the best mean over all tuning seeds. Trials that were stopped "
        "early, diverged, collapsed or failed are never candidates. Test data plays no part. Configurations "
        "within the 95 % half-width sqrt(ln(40) / 2n) of the best, n being the number of "
        "validation images, count as ties."
    )

    def candidates(self, trials: pd.DataFrame) -> pd.DataFrame:
        """One condition's trials that may be chosen, with what they are chosen by as `value`."""
        columns = trials[["phase", "trial", "status", "value", "repeats"]]
        plain = columns.astype(object).where(columns.notna(), None)
        scores = ledger.scores(dict(row) for _, row in plain.iterrows())
        found = trials[trials["trial"].isin(list(scores))].copy()
        found["value"] = found["trial"].map(scores)
        return found

    def choose(self, trials: pd.DataFrame, mode: str = "max") -> pd.Series | None:
        """The chosen row of one condition's trials, or None when there is no candidate."""
        found = self.candidates(trials)
        if found.empty:
            return None
        ranked = found.sort_values(
            ["value", "number", "trial"], ascending=[mode == "min", True, True], kind="stable"
        )
        return ranked.iloc[0]

    def ties(self, trials: pd.DataFrame, mode: str, validation: float) -> int:
        """How many other candidates lie within the half-width of the best."""
        best = self.choose(trials, mode)
        width = half_width(validation)
        if best is None or math.isnan(width):
            return 0
        distance = (self.candidates(trials)["value"] - best["value"]).abs()
        return int((distance <= width).sum()) - 1


DEFAULT_RULE = BestFinalValue()
