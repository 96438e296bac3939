"""Whatever a file, an override or a run folder has become: an answer, or lines on stderr and exit code 2.

The fast cases are a sample; `make slow` draws more, `python -m tests.mutations` as many as are asked for.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests import mutations
from tests.support.runs import CONFIRMED
from tune_ssl.study.study import load_study


@pytest.fixture
def here(tmp_path):
    with mutations.inside(tmp_path):
        yield tmp_path


def seeds(few: int, many: int):
    """A test for each of two parts of the seeds 0 to `many`: the first `few`, and the slow rest."""
    parts = [range(few), pytest.param(range(few, many), marks=pytest.mark.slow)]
    return pytest.mark.parametrize("seeds", parts, ids=["few", "many"])


@seeds(30, 200)
def test_a_changed_study_file_is_checked_or_refused_in_plain_lines(here, seeds):
    for seed in seeds:
        mutations.fuzz_file(random.Random(seed), here, Counter())


@seeds(30, 200)
def test_an_odd_override_is_taken_or_refused_in_plain_lines(here, seeds):
    (here / "s.yaml").write_text(CONFIRMED)
    keys = mutations.known_keys(load_study(here / "s.yaml"))
    for seed in seeds:
        mutations.fuzz_overrides(random.Random(seed), here, keys, Counter())


@seeds(12, 60)
@pytest.mark.filterwarnings("ignore:.*torn line.*dropped")
def test_a_damaged_run_folder_is_read_and_taken_up_or_refused_in_plain_lines(
    here, confirmed, seeds
):
    for seed in seeds:
        mutations.fuzz_run(random.Random(seed), here, confirmed, Counter(), report=False)


@seeds(1, 6)
@pytest.mark.filterwarnings("ignore:.*torn line.*dropped")
def test_a_damaged_run_folder_is_reported_or_refused_in_plain_lines(here, confirmed, seeds):
    for seed in seeds:
        mutations.fuzz_run(random.Random(seed), here, confirmed, Counter(), report=True)


def test_the_detector_sees_a_traceback(here, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("tune_ssl.viewers.listing.read_all", broken)
    with pytest.raises(mutations.Broken, match="boom"):
        mutations.expect_an_answer(["list"], Counter(), "x", "nothing")
