"""The tables of an ablation, from written records."""

from __future__ import annotations

import itertools

import pytest
from scipy.stats import ttest_rel

from analysis.numbers.ablations import ablation_table, ablation_trials, effect_table
from analysis.numbers.stats import holm
from analysis.read.load import load_runs
from tests.analysis.conftest import event
from tune_ssl.records import log

CONDITION = "data.num_labels=50"


@pytest.fixture
def ablate(tmp_path, write_run):
    """`ablate(rows)`: a run whose rows {variant: {seed: value}} were trained; `more` goes into the plan."""

    def write(rows, config=None, more=None, **run):
        path = write_run(tmp_path / "a", labels=(50,), **run)
        for variant, values in rows.items():
            plan = {"changes": {"x": 1} if variant != "reference" else {}, "retune": []}
            plan |= {"switches": None, "config": config or {}, **(more or {}).get(variant, {})}
            event(path, log.PLANNED, None, CONDITION, phase="ablate", variant=variant, **plan)
            for seed, value in values.items():
                about = {"phase": "ablate", "seed": seed, "variant": variant}
                name = f"c0-ablate-{variant}-s{seed}"
                event(path, log.STARTED, name, CONDITION, config={}, digest="d", **about)
                ending = {"value": value, "step": 9, "metrics": {}, "phase": "ablate"}
                event(path, log.FINISHED, name, CONDITION, **ending)
        return load_runs([path])

    return write


def test_an_effect_is_the_mean_over_all_settings_of_the_others(ablate):
    """Three switches: a costs 0.1, b nothing, but with c on a is worth 0.06 again."""
    names, rows, more = ("a", "b", "c"), {"reference": {0: 0.9, 1: 0.8}}, {}
    for size in (1, 2, 3):
        for on in itertools.combinations(names, size):
            change = -0.1 * ("a" in on) + 0.16 * ({"a", "c"} <= set(on))
            rows["+".join(on)] = {s: v + change for s, v in rows["reference"].items()}
            more["+".join(on)] = {"switches": list(on)}
    table = effect_table(ablate(rows, more=more, confirm={}))
    effects = table.set_index("effect")["mean"]
    assert effects["a"] == pytest.approx(-0.02)
    assert effects["b"] == pytest.approx(0) and effects["c"] == pytest.approx(0.08)
    assert effects["a x c"] == pytest.approx(0.16) and effects["a x b"] == pytest.approx(0)


def test_a_confirmed_seed_stands_for_the_reference_only_with_the_very_same_config(ablate):
    confirmed = {"optim.lr": 0.02, "method.temperature": 0.5, "data.num_labels": 50}
    rows = {"reference": {}, "no_x": {0: 0.7, 1: 0.7}}
    trials = ablation_trials(ablate(rows, config=confirmed))
    assert sorted(trials.loc[trials["variant"] == "reference", "seed"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("config", [{}, {"optim.lr": 0.02}, {"optim.grad_clip": None}])
def test_another_config_never_stands_for_the_reference(ablate, config):
    rows = {"reference": {0: 0.8, 1: 0.9}, "no_x": {0: 0.7, 1: 0.7}}
    found = ablation_table(ablate(rows, config=config))
    assert found["n"].to_list() == [2, 2]
    assert found["diff"].to_list()[1] == pytest.approx(-0.15)
    assert found["changes"].to_list() == ["", "x=1"]


def test_a_row_without_a_finished_trial_has_no_difference(ablate):
    found = ablation_table(ablate({"reference": {0: 0.8, 1: 0.9}, "no_x": {0: None}}, confirm={}))
    last = found.iloc[1]
    assert last["n"] == 0 and last["missing"] == 1 and last["pairs"] == 0
    assert found[["diff", "p", "p_holm", "p_sign_flip"]].isna().all(axis=None)


def test_p_is_of_the_paired_t_test_and_corrected_over_the_method(ablate):
    rows = {
        "reference": dict(enumerate((0.80, 0.84, 0.82, 0.86, 0.83))),
        "no_x": dict(enumerate((0.30, 0.33, 0.36, 0.34, 0.31))),
        "no_y": dict(enumerate((0.81, 0.83, 0.83, 0.85, 0.84))),
    }
    found = ablation_table(ablate(rows, confirm={})).set_index("variant")
    base = list(rows["reference"].values())
    for name, factor in (("no_x", 2), ("no_y", 1)):
        p = ttest_rel(list(rows[name].values()), base).pvalue
        assert found.loc[name, "p"] == pytest.approx(p)
        assert found.loc[name, "p_holm"] == pytest.approx(factor * p)
    assert found.loc["no_x", "p_holm"] < 0.001 and found.loc["no_x", "p_sign_flip"] == 2**-4


def test_p_of_effects_is_corrected_over_the_method(ablate):
    gains = {"reference": 0.0, "a": 0.1, "b": 0.0, "a+b": 0.1}
    noise = {"reference": 1, "a": -2, "b": 2, "a+b": 0}
    rows = {
        name: {s: 0.5 + gain + 0.001 * ((s * noise[name]) % 3) for s in range(6)}
        for name, gain in gains.items()
    }
    more = {name: {"switches": name.split("+")} for name in ("a", "b", "a+b")}
    table = effect_table(ablate(rows, more=more, confirm={})).set_index("effect")
    low, high = table["low"], table["high"]
    assert ((low > 0) | (high < 0)).eq(table["p"] < 0.05).all()
    assert table.loc["a", "p_holm"] == pytest.approx(3 * table.loc["a", "p"])
    assert table["p_holm"].to_list() == pytest.approx(holm(table["p"].to_list()))
