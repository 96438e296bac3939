"""The rule that picks one configuration per condition, as an object that can say what it does."""

from __future__ import annotations

from tune_ssl.records.ledger import Ledger


class BestFinalValue:
    """The finished search trial with the best value; the finalists' values are means over seeds."""

    name = "best final value"
    sentence = (
        "Among the finished search trials of a condition, the one with the best validation value "
        "at its end is chosen; where the best ones (the finalists) were run again on further "
        "tuning seeds, the one with the best mean over all tuning seeds. Trials that were stopped "
        "early, diverged, collapsed or failed are never candidates. Test data plays no part. Configurations "
        "within the 95 % half-width sqrt(ln(40) / 2n) of the best, n being the number of "
        "validation images, count as ties, by their values on the search's own seed."
    )

    def scores(self, ledger: Ledger, condition: str, mode: str) -> dict[str, float]:
        """Each trial of a condition that may be chosen -> what it is chosen by; the first one is."""
        return ledger.scores(condition, mode)


DEFAULT_RULE = BestFinalValue()
