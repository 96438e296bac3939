"""When two configs count as equally good."""

import math

import pytest

from tune_ssl.records.ties import half_width


def test_half_width_is_hoeffdings():
    assert half_width(200) == pytest.approx(0.09603, abs=1e-5)
    assert 2 * math.exp(-2 * 5000 * half_width(5000) ** 2) == pytest.approx(0.05)
    assert math.isnan(half_width(0)) and math.isnan(half_width(math.nan))
