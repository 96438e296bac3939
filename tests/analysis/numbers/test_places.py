"""Where chosen configurations lie in what was searched."""

import math

import pytest

from analysis.numbers.places import LOWER, UPPER, places_table
from analysis.numbers.tables import chosen_table
from analysis.read.load import load_runs
from analysis.read.values import NONE
from tests.analysis.conftest import shown

SPACE = {
    "optim.lr": {"log_uniform": [1e-4, 1e-2]},
    "method.k": {"int": [1, 9]},
    "method.share": {"uniform": [0.0, 0.5]},
    "method.kind": {"choice": [None, "weak", "strong"]},
    "optim.momentum": {"uniform": [0, 1], "when": {"method.kind": ["strong"]}},
}


def trial(value, lr, k, share, kind, **more):
    config = {"optim.lr": lr, "method.k": k, "method.share": share, "method.kind": kind}
    return value, {**config, **more}


@pytest.fixture(name="table")
def _table(tmp_path, searched_run):
    trials = [
        trial(0.5, 1e-3, 5, 0.2, "weak"),
        trial(0.9, 1.1e-4, 9, 0.48, None),
        trial(0.8, 1e-3, 2, 0.1, "weak"),
        trial(0.7, 5e-3, 3, 0.3, "strong", **{"optim.momentum": 0.9}),
        trial(0.6, 2e-3, 3, 0.3, "weak"),
        trial(0.1, 9e-3, 1, 0.0, "weak"),
    ]
    runs = load_runs([searched_run(tmp_path / "a", trials, SPACE)])
    return places_table(runs, chosen_table(runs))


def test_places_are_on_the_scale_that_was_searched(table):
    found = table.set_index("key")
    lr = found.loc["optim.lr"]
    assert lr["place"] == pytest.approx(math.log10(1.1) / 2) and lr["edge"] == LOWER
    assert found.loc["method.share", "place"] == pytest.approx(0.96)
    assert found.loc["method.share", "edge"] == UPPER
    assert found.loc["method.k", "edge"] == UPPER  # the last whole number
    assert math.isnan(found.loc["method.kind", "place"]) and found.loc["method.kind", "edge"] == ""
    assert "optim.momentum" not in found.index  # not active in the chosen config


def test_the_five_best_are_those_that_finished(table):
    found = table.set_index("key")["spread"]
    assert found["optim.lr"] == "0.00011 to 0.005" and found["method.k"] == "2 to 9"
    assert found["method.kind"] == "3 x weak, 1 x None, 1 x strong".replace("None", "none")
    text = shown(table, "places").set_index("Key")
    assert text.loc["optim.lr", "Domain"] == "0.0001 to 0.01 (log)"
    assert text.loc["method.kind", ["Domain", "Chosen", "Place, %"]].to_list() == [
        "none, weak, strong",
        "none",
        NONE,
    ]
