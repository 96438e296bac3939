"""A run folder of which one file or two were damaged: every command answers, or says so in plain lines.

TUNE_SSL_FUZZ_EXAMPLES multiplies the examples; `python -m benchmarks.fuzz --runs N --reports N` counts them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from tests import damage

FACTOR = int(os.environ.get("TUNE_SSL_FUZZ_EXAMPLES", "1"))
SEEDS = st.integers(0, 2**64).map(Random)


def examples(count: int) -> settings:
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to be in."""
    place, before = tmp_path_factory.mktemp("fuzz-runs"), Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@examples(40)
@given(random=SEEDS, command=st.sampled_from(damage.READING))
def test_a_damaged_run_is_read_or_refused(folder, confirmed, random, command):
    fuzz.check_run(random, confirmed, folder, [command])


@examples(4)
@given(random=SEEDS)
def test_a_damaged_run_is_reported_or_refused(folder, confirmed, random):
    fuzz.check_run(random, confirmed, folder, [("report", "one", "-o", "report")])
