import pytest

from analysis.read.selection import DEFAULT_RULE
from tune_ssl.records.ledger import Ledger


def scores(*rows, mode="max"):
    """What the rule says of (trial, phase, status, value, repeats) under one condition."""
    events = []
    for trial, phase, status, value, *repeats in rows:
        own = {"trial": trial, "phase": phase, "condition": "all"}
        events.append({**own, "event": "started", "repeats": repeats[0] if repeats else None})
        events += [{**own, "event": status, "value": value}] if status else []
    return DEFAULT_RULE.scores(Ledger(events), "all", mode)


SEARCH = (
    ("a", "search", "finished", 0.70),
    ("b", "search", "stopped_early", 0.99),
    ("c", "confirm", "finished", 0.98),
    ("d", "search", "finished", None),
    ("e", "search", "finished", 0.80),
    ("f", "search", "finished", 0.80),
    ("g", "search", None, None),
)


def test_only_finished_search_trials_are_candidates_and_the_earlier_of_equals_is_chosen():
    assert list(scores(*SEARCH)) == ["e", "f", "a"]
    assert list(scores(*SEARCH, mode="min")) == ["a", "e", "f"]
    assert scores(*SEARCH[1:4]) == {}


def test_finalists_are_compared_by_their_mean_over_all_tuning_seeds():
    searched = (
        ("lucky", "search", "finished", 0.90),
        ("steady", "search", "finished", 0.86),
        ("shaky", "search", "finished", 0.89),
        ("fourth", "search", "finished", 0.85),
    )
    found = scores(
        *searched,
        ("l1", "finalist", "finished", 0.60, "lucky"),
        ("l2", "finalist", "finished", 0.75, "lucky"),
        ("s1", "finalist", "finished", 0.85, "steady"),
        ("s2", "finalist", "finished", 0.87, "steady"),
        ("d1", "finalist", "finished", 0.99, "shaky"),
        ("d2", "finalist", "diverged", None, "shaky"),
    )
    assert list(found) == ["steady", "lucky"] and found["steady"] == pytest.approx(0.86)
    assert next(iter(scores(*searched))) == "lucky"


def test_says_what_it_does():
    assert DEFAULT_RULE.name == "best final value"
    assert "stopped early" in DEFAULT_RULE.sentence and "ties" in DEFAULT_RULE.sentence
