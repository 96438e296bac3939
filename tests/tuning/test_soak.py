"""Minutes of small studies under random kills: nothing finished is lost, nothing counts twice."""

from __future__ import annotations

import os

import pytest

from tests.soak import soak

MINUTES = float(os.environ.get("TUNE_SSL_SOAK_MINUTES", "2"))


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES + 900)
def test_random_kills_lose_nothing_and_double_nothing(tmp_path):
    counted = soak(tmp_path, minutes=MINUTES, seed=int(os.environ.get("TUNE_SSL_SOAK_SEED", "1")))
    kills = sum(count for what, count in counted.items() if what.startswith("killed"))
    assert kills >= MINUTES and counted["studies"] >= 1
