"""Whatever a file, an override or a run folder has become: an answer, or lines on stderr and exit code 2."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import mutations
from tests.support.runs import CONFIRMED
from tune_ssl.study.study import load_study

SEEDS = st.integers(0, 2**64).map(random.Random)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def few(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=QUIET,
    )


@pytest.fixture
def here(tmp_path):
    with mutations.inside(tmp_path):
        yield tmp_path


@few(120)
@given(draw=SEEDS)
def test_a_changed_study_file_is_checked_or_refused_in_plain_lines(here, draw):
    mutations.fuzz_file(draw, here, Counter())


@few(120)
@given(draw=SEEDS)
def test_an_odd_override_is_taken_or_refused_in_plain_lines(here, draw):
    (here / "s.yaml").write_text(CONFIRMED)
    keys = mutations.known_keys(load_study(here / "s.yaml"))
    mutations.fuzz_overrides(draw, here, keys, Counter())


@few(60)
@given(draw=SEEDS)
def test_a_damaged_run_folder_is_read_and_taken_up_or_refused_in_plain_lines(here, confirmed, draw):
    mutations.fuzz_run(draw, here, confirmed, Counter(), report=False)


@few(4)
@given(draw=SEEDS)
def test_a_damaged_run_folder_is_reported_or_refused_in_plain_lines(here, confirmed, draw):
    mutations.fuzz_run(draw, here, confirmed, Counter(), report=True)


def test_the_detector_sees_a_traceback(here, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("tune_ssl.viewers.listing.read_all", broken)
    with pytest.raises(mutations.Broken, match="boom"):
        mutations.expect_an_answer(["list"], Counter(), "x", "nothing")
