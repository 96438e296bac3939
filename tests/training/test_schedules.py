"""Loss ramps, learning-rate schedules and the averaging decay: exact at their ends."""

from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_ssl.training.schedules import ema_decay, learning_rate, ramp_up

fractions = st.floats(0, 1)


def test_a_ramp_starts_at_zero_and_is_exactly_one_from_its_length_on():
    assert ramp_up(0.0, 0.4) == 0.0
    assert ramp_up(0.2, 0.4) == pytest.approx(0.5)
    assert ramp_up(0.4, 0.4) == 1.0
    assert ramp_up(1.0, 0.4) == 1.0


def test_without_a_ramp_the_weight_is_whole_from_the_first_step():
    assert ramp_up(0.0, 0.0) == 1.0


@given(fractions, fractions, fractions)
def test_a_ramp_never_falls_and_stays_within_zero_and_one(one, other, length):
    low, high = sorted((one, other))
    assert 0 <= ramp_up(low, length) <= ramp_up(high, length) <= 1


@pytest.mark.parametrize(
    "schedule, end", [("cosine", 0.0), ("cosine_7_16", cos(7 * pi / 16)), ("constant", 1.0)]
)
def test_a_schedule_starts_at_the_base_rate_and_ends_where_its_paper_says(schedule, end):
    assert learning_rate(0.0, schedule) == 1.0
    assert learning_rate(1.0, schedule) == pytest.approx(end, abs=1e-15)


def test_the_cosine_is_half_way_down_in_the_middle():
    assert learning_rate(0.5, "cosine") == pytest.approx(0.5)
    assert learning_rate(0.5, "cosine_7_16") == pytest.approx(cos(7 * pi / 32))


def test_a_warmup_rises_linearly_from_zero_and_then_leaves_the_schedule_alone():
    assert learning_rate(0.0, "constant", warmup=0.2) == 0.0
    assert learning_rate(0.05, "constant", warmup=0.2) == pytest.approx(0.25)
    assert learning_rate(0.2, "constant", warmup=0.2) == 1.0
    assert learning_rate(0.7, "cosine", warmup=0.2) == learning_rate(0.7, "cosine")


@given(fractions, st.sampled_from(["cosine", "cosine_7_16", "constant"]), st.floats(0, 0.99))
def test_a_factor_is_always_within_zero_and_one(progress, schedule, warmup):
    assert 0 <= learning_rate(progress, schedule, warmup) <= 1


def test_an_unknown_schedule_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'step', but must be cosine, cosine_7_16 or constant"):
        learning_rate(0.5, "step")


def test_the_averaging_decay_warms_up_and_is_shorter_in_a_short_run_and_never_negative():
    assert ema_decay(0.999, 100_000, 50_000) == 0.999
    assert ema_decay(0.999, 100, 99) == 0.9
    assert ema_decay(0.999, 5, 4) == 0.0
    assert ema_decay(0.0, 1000, 500) == 0.0
    early = [ema_decay(0.999, 100_000, step) for step in (0, 1, 50, 890, 8_990)]
    assert early == [0.1, 2 / 11, 51 / 60, 891 / 900, 0.999]


def test_an_average_follows_the_weights_from_the_first_step_on():
    """Without a warm-up the average of 600 steps would still be half its random start at step 40."""
    share_of_start = 1.0
    for step in range(1, 41):
        share_of_start *= ema_decay(0.999, 600, step)
    assert share_of_start < 1e-4 < (1 - 10 / 600) ** 40
