"""When two configs count as equally good."""

import math

import pytest

from tune_ssl.records.ties import at_chance, half_width


def test_half_width_is_hoeffdings():
    assert half_width(200) == pytest.approx(0.09603, abs=1e-5)
    assert 2 * math.exp(-2 * 5000 * half_width(5000) ** 2) == pytest.approx(0.05)
    assert math.isnan(half_width(0)) and math.isnan(half_width(math.nan))


def test_what_guessing_gives_is_at_chance_level_and_what_is_clearly_above_is_not():
    assert at_chance(0.10, 0.10, 10, 1000)  # as one class for all images gives
    assert at_chance(0.115, float("nan"), 10, 1000), "within two standard errors of guessing"
    assert at_chance(0.60, 0.45, 2, 10_000), "the interval reaches down to guessing"
    assert not at_chance(0.15, 0.13, 10, 1000)
    assert not at_chance(0.60, 0.57, 2, 1000)
