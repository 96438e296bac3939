import math

import pandas as pd
import pytest

from analysis.read.selection import DEFAULT_RULE, half_width


def trials(*rows):
    columns = ["trial", "number", "phase", "status", "value", "repeats"]
    return pd.DataFrame([(*row, None)[:6] for row in rows], columns=columns)


def test_only_finished_search_trials_are_candidates():
    table = trials(
        ("a", 0, "search", "finished", 0.70),
        ("b", 1, "search", "stopped_early", 0.99),
        ("c", 2, "confirm", "finished", 0.98),
        ("d", 3, "search", "finished", None),
        ("e", 4, "search", "finished", 0.80),
        ("f", 5, "search", "finished", 0.80),
        ("g", 6, "search", "running", 0.97),
    )
    assert DEFAULT_RULE.choose(table)["trial"] == "e"
    assert DEFAULT_RULE.choose(table, "min")["trial"] == "a"
    assert DEFAULT_RULE.ties(table, "max", 200) == 1  # f; a is 0.10 away, the width is 0.096
    assert DEFAULT_RULE.ties(table, "max", 100) == 2
    assert DEFAULT_RULE.choose(table.iloc[1:4]) is None
    assert DEFAULT_RULE.ties(table.iloc[1:4], "max", 100) == 0


def test_finalists_are_compared_by_their_mean_over_all_tuning_seeds():
    table = trials(
        ("lucky", 0, "search", "finished", 0.90),
        ("steady", 1, "search", "finished", 0.86),
        ("shaky", 2, "search", "finished", 0.89),
        ("fourth", 3, "search", "finished", 0.85),
        ("l1", 0, "finalist", "finished", 0.60, "lucky"),
        ("l2", 1, "finalist", "finished", 0.75, "lucky"),
        ("s1", 2, "finalist", "finished", 0.85, "steady"),
        ("s2", 3, "finalist", "finished", 0.87, "steady"),
        ("d1", 4, "finalist", "finished", 0.99, "shaky"),
        ("d2", 5, "finalist", "diverged", None, "shaky"),
    )
    chosen = DEFAULT_RULE.choose(table)
    assert chosen["trial"] == "steady" and chosen["value"] == pytest.approx(0.86)
    assert set(DEFAULT_RULE.candidates(table)["trial"]) == {"lucky", "steady"}
    assert DEFAULT_RULE.choose(table.iloc[:4])["trial"] == "lucky"


def test_half_width():
    assert half_width(200) == pytest.approx(math.sqrt(math.log(40) / 400))
    assert math.isnan(half_width(0)) and math.isnan(half_width(math.nan))


def test_says_what_it_does():
    assert DEFAULT_RULE.name == "best final value"
    assert "stopped early" in DEFAULT_RULE.sentence and "ties" in DEFAULT_RULE.sentence
