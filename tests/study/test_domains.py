"""Search domains: what is one, where it ends, and the grid over it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from tune_ssl.search.rebuild import distribution
from tune_ssl.study.domains import DomainSpec, domain, grid
from tune_ssl.study.messages import validation_problems

ranges = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).filter(lambda r: r[0] < r[1])


def message(leaf) -> str:
    with pytest.raises(ValidationError) as caught:
        domain(leaf)
    [problem] = validation_problems(caught.value, DomainSpec, leaf, "search.optim.lr.")
    return str(problem)


@pytest.mark.parametrize(
    "leaf, expected",
    [
        (0.1, "search.optim.lr is 0.1, but must be a domain: {uniform: [low, high]}, "),
        ({}, "search.optim.lr is {}, but must be a domain: "),
        ({"uniform": [0, 1], "int": [0, 1]}, "is {uniform: [0, 1], int: [0, 1]}, but must be a"),
        ({"log_unifrm": [1, 2]}, "must be a domain; did you mean 'log_uniform'?"),
        ({"uniform": [1, 1]}, "is {uniform: [1.0, 1.0]}, but low must be below high"),
        ({"uniform": [2, 1]}, "is {uniform: [2.0, 1.0]}, but low must be below high"),
        ({"int": [3, 3]}, "is {int: [3, 3]}, but low must be below high"),
        ({"log_uniform": [0, 1]}, "is {log_uniform: [0.0, 1.0]}, but must start above 0"),
        ({"uniform": [1]}, "is {uniform: [1]}, but must be {uniform: [low, high]}"),
        ({"int": [1, 2, 3]}, "is {int: [1, 2, 3]}, but must be {int: [low, high]}"),
        ({"uniform": 3}, "is {uniform: 3}, but must be {uniform: [low, high]}"),
        ({"uniform": ["a", 1]}, "search.optim.lr.uniform.0 is 'a', but must be a number"),
        ({"uniform": [0, math.inf]}, "lr.uniform.1 is inf, but must be a finite number"),
        ({"int": [1, 2.5]}, "search.optim.lr.int.1 is 2.5, but must be a whole number"),
        ({"int": [False, 2]}, "search.optim.lr.int.0 is false, but must be a whole number"),
        ({"choice": []}, "is {choice: []}, but must list at least one value"),
        ({"choice": "weak"}, "is {choice: 'weak'}, but must list at least one value"),
        ({"choice": [1, 2, 1]}, "is {choice: [1, 2, 1]}, but must name each choice once"),
    ],
)
def test_what_is_no_domain_is_refused_in_one_line(leaf, expected):
    assert expected in message(leaf)


def test_the_ends_are_those_that_were_written():
    assert domain({"log_uniform": [1e-4, 1e-1]}).ends() == [1e-4, 1e-1]
    assert domain({"int": [1, 8]}).ends() == [1, 8]
    assert domain({"choice": ["weak", None, 0, False]}).ends() == ["weak", None, 0, False]


def test_optuna_draws_from_the_same_domain():
    kinds = [
        ({"log_uniform": [1e-4, 1e-1]}, FloatDistribution(1e-4, 1e-1, log=True)),
        ({"uniform": [0, 0.8]}, FloatDistribution(0, 0.8)),
        ({"int": [1, 7]}, IntDistribution(1, 7)),
        ({"choice": ["weak", None]}, CategoricalDistribution(("weak", None))),
    ]
    for leaf, expected in kinds:
        assert distribution(domain(leaf)) == expected


@given(ranges, st.sampled_from(["uniform", "log_uniform"]), st.integers(2, 9))
def test_a_grid_has_both_ends_exactly_and_rises_between_them(ends, kind, points):
    values = domain({kind: list(ends)}).grid(points)
    assert (values[0], values[-1]) == ends
    assert len(values) == points
    assert all(ends[0] <= value <= ends[1] for value in values)
    assert values == sorted(values)


@given(st.integers(-20, 20), st.integers(1, 30), st.integers(2, 40))
def test_a_grid_of_whole_numbers_never_repeats_one(low, width, points):
    made = domain({"int": [low, low + width]})
    values = made.grid(points)
    assert values[0] == low and values[-1] == low + width
    assert len(set(values)) == len(values) == made.points(points) == min(points, width + 1)
    assert all(type(value) is int for value in values)


def test_a_grid_takes_as_many_points_of_each_range_as_the_budget_allows():
    domains = {
        "lr": domain({"log_uniform": [0.01, 1]}),
        "mu": domain({"int": [1, 2]}),
        "view": domain({"choice": ["weak", "strong"]}),
    }
    points = grid(domains, 13)
    assert len(points) == 12
    assert [p["lr"] for p in points[::4]] == pytest.approx([0.01, 0.1, 1])
    assert points[0] == {"lr": 0.01, "mu": 1, "view": "weak"}
    with pytest.raises(ValueError, match="is 7, but the smallest grid over the domains has 8"):
        grid(domains, 7)


def test_a_grid_over_few_whole_numbers_or_over_nothing_ends():
    assert len(grid({"mu": domain({"int": [1, 3]})}, 1_000_000)) == 3
    assert grid({}, 1) == [{}]
    assert grid({"view": domain({"choice": ["weak"]})}, 1) == [{"view": "weak"}]
