"""Importance of searched keys: known truths, intervals, and when nothing is shown."""

import numpy as np
import optuna
import pandas as pd
import pytest

from analysis.numbers import importance
from analysis.numbers.importance import (
    FANOVA,
    PED_ANOVA,
    fanova,
    importance_notes,
    importance_table,
    ped_anova,
)
from analysis.plots import importance as figures
from analysis.read.load import load_runs
from analysis.read.search_space import Key
from tests.analysis.conftest import checked

KEYS = [
    Key("log_uniform", (1e-4, 1e-1), name="lr"),
    Key("choice", ("none", "weak", "strong"), name="aug"),
    Key("log_uniform", (1e-6, 1e-2), name="wd"),
    Key("int", (1, 10), name="m"),
]


def truth(count, seed=0):
    """lr dominates, aug=none costs 0.05, wd and m do nothing; noise 0.02."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "config.lr": 10 ** rng.uniform(-4, -1, count),
            "config.aug": rng.choice(["none", "weak", "strong"], count),
            "config.wd": 10 ** rng.uniform(-6, -2, count),
            "config.m": rng.integers(1, 11, count),
        }
    )
    best = 0.9 - 0.1 * (np.log10(table["config.lr"]) + 2) ** 2
    noise = rng.normal(0, 0.02, count)
    return table.assign(value=best - 0.05 * (table["config.aug"] == "none") + noise)


def search_of(table):
    """A run folder's search trials, as `grow` of the fixture takes them."""
    keys = {"lr": "optim.lr", "aug": "method.aug", "wd": "optim.weight_decay", "m": "method.m"}
    rows = table.rename(columns={f"config.{a}": b for a, b in keys.items()}).to_dict("records")
    return [(row.pop("value"), row) for row in rows]


SEARCH = {
    "optim.lr": {"log_uniform": [1e-4, 1e-1]},
    "method.aug": {"choice": ["none", "weak", "strong"]},
    "optim.weight_decay": {"log_uniform": [1e-6, 1e-2]},
    "method.m": {"int": [1, 10]},
}


def test_intervals_hold_a_known_truth(tmp_path, searched_run):
    path = searched_run(tmp_path / "a", search_of(truth(100)), SEARCH)
    table = importance_table(load_runs([path]))
    assert set(table["evaluator"]) == {FANOVA, PED_ANOVA}
    assert table.groupby("evaluator")["share"].sum().to_list() == pytest.approx([1, 1])
    assert (table["used"] == 100).all() and (table["resamples"] == 60).all()
    by_key = table[table["evaluator"] == FANOVA].set_index("key")
    lr, aug = by_key.loc["optim.lr"], by_key.loc["method.aug"]
    null = by_key.loc[["optim.weight_decay", "method.m"]]
    assert lr["low"] > 0.8 and lr["explained"] > 0.8
    assert aug["share"] > null["share"].max()
    assert aug["low"] > null["low"].max() and null["high"].max() < 0.1
    # PED-ANOVA finds the dominant key as well; its intervals are wider.
    ped = table[table["evaluator"] == PED_ANOVA].set_index("key")
    assert ped["share"].idxmax() == "optim.lr"
    assert (ped["high"] - ped["low"])["optim.lr"] > lr["high"] - lr["low"]


def test_noise_is_said_to_explain_nothing(tmp_path, searched_run):
    table = truth(60).assign(value=np.random.default_rng(0).normal(size=60))
    runs = load_runs([searched_run(tmp_path / "a", search_of(table), SEARCH)])
    (plot,) = [p for p in figures.plots(runs, {}, {}) if p.section == "importance"]
    found = plot.table
    fit = found.loc[found["evaluator"] == FANOVA, "explained"].iloc[0]
    assert fit < 0.1
    assert f"R2 of fANOVA's forest: soft_kmeans {fit:.2f}; near 0 or below" in plot.caption


def test_fanova_agrees_with_optunas():
    rng = np.random.default_rng(1)
    points = rng.random((60, 3))
    values = 2 * points[:, 0] + points[:, 1] ** 2 + rng.normal(0, 0.05, 60)
    places = {name: optuna.distributions.FloatDistribution(0, 1) for name in "abc"}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for point, value in zip(points, values, strict=True):
        params = dict(zip("abc", map(float, point), strict=True))
        trial = optuna.trial.create_trial(params=params, distributions=places, value=float(value))
        study.add_trial(trial)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    ours, _ = fanova(points, values, 64, 0)
    assert ours / ours.sum() == pytest.approx([theirs[name] for name in "abc"], abs=0.03)


def test_an_interaction_is_no_key_s_own_importance():
    """x y of two centred keys, and two keys of no account: none explains anything alone."""
    rng = np.random.default_rng(2)
    points = rng.random((200, 4))
    shares, _ = fanova(points, (points[:, 0] - 0.5) * (points[:, 1] - 0.5), 32, 0)
    assert shares.sum() < 0.45 and shares.max() < 0.2
    alone, _ = fanova(points, points[:, 0], 32, 0)
    assert alone[0] > 0.95


def test_main_effects_of_a_tree_by_hand():
    # A corner worth 4 of a unit square: the mean is 1 and the variance 3.
    points = np.array([[x, y] for x in (0.1, 0.4, 0.6, 0.9) for y in (0.1, 0.4, 0.6, 0.9)])
    values = 4.0 * ((points > 0.5).all(axis=1))
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(random_state=0).fit(points, values).tree_
    # E[f|x] is 0 or 2, so each main effect has variance 1 of 3.
    assert importance._main_effects(tree, 2) == pytest.approx([1 / 3, 1 / 3], rel=1e-5)


def test_ped_anova_is_optunas_on_the_searched_scale():
    trials = truth(50)
    shares = ped_anova(trials, KEYS, "max")(np.arange(50))
    study = optuna.create_study(direction="maximize")
    places = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "aug": optuna.distributions.CategoricalDistribution(["none", "weak", "strong"]),
        "wd": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
        "m": optuna.distributions.IntDistribution(1, 10),
    }
    for row in trials.to_dict("records"):
        params = {name: row[f"config.{name}"] for name in places}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=places, value=row["value"])
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.1)
    theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert shares == pytest.approx([theirs[name] for name in places], abs=0.02)
    fewer = ped_anova(trials, KEYS, "min")(np.arange(50))
    assert not np.allclose(shares, fewer, atol=0.05)


def test_a_sentence_where_nothing_can_be_shown(tmp_path, searched_run):
    few = searched_run(tmp_path / "few", search_of(truth(7)), SEARCH)
    one = searched_run(
        tmp_path / "one", search_of(truth(20)), {"optim.lr": SEARCH["optim.lr"]}, method="fixmatch"
    )
    flat = searched_run(
        tmp_path / "flat", search_of(truth(20).assign(value=0.5)), SEARCH, method="kmeans"
    )
    none = searched_run(tmp_path / "none", search_of(truth(20)), {}, method="supervised")
    runs = load_runs([few, one, flat, none])
    where = "data.num_labels=50: no importance is shown, as"
    assert importance_notes(runs) == [
        f"soft_kmeans, {where} 7 search trials finished, of at least 8 needed.",
        f"fixmatch, {where} 1 searched key varied among finished trials, of at least 2 needed.",
        f"kmeans, {where} all 20 finished trials have the same value.",
        f"supervised, {where} 0 searched keys varied among finished trials, of at least 2 needed.",
    ]
    assert importance_table(runs).empty
    assert [p.section for p in figures.plots(runs, {}, {}) if p.section == "importance"] == []


def test_many_trials_are_a_random_subset_and_many_conditions_have_no_intervals(
    tmp_path, searched_run, monkeypatch
):
    monkeypatch.setattr(importance, "MOST", 20)
    monkeypatch.setattr(importance, "RESAMPLES", importance.FEWEST - 1)
    runs = load_runs([searched_run(tmp_path / "a", search_of(truth(30)), SEARCH)])
    table = importance_table(runs)
    assert (table["used"] == 20).all() and (table["finished"] == 30).all()
    assert table["low"].isna().all() and table["share"].notna().all()
    caption = figures.importance_caption(table)
    assert "soft_kmeans 20 (a random 20 of 30)" in caption and "No intervals" in caption


def test_the_figure_draws_the_table(tmp_path, searched_run):
    runs = load_runs([searched_run(tmp_path / "a", search_of(truth(30)), SEARCH)])
    plot, contour = figures.plots(runs, {}, {})
    pd.testing.assert_frame_equal(plot.table, importance_table(runs))  # the same numbers every time
    assert (plot.section, plot.group) == ("importance", "data.num_labels=50")
    assert plot.caption.startswith("Exploratory:") and importance.REST in plot.caption
    for trace in checked(plot.figure).data:
        rows = plot.table[plot.table["evaluator"] == trace.name]
        assert list(trace.text) == list(rows["key"]) and list(trace.x) == list(rows["share"])
        assert np.add(trace.x, trace.error_x.array) == pytest.approx(
            rows[["share", "high"]].max(axis=1)
        )
    # The contour takes the two numeric keys that lead.
    ranked = plot.table[plot.table["evaluator"] == FANOVA].sort_values("share", ascending=False)
    numeric = [key for key in ranked["key"] if key not in ("method.aug", importance.REST)]
    assert [contour.table["x_key"].iloc[0], contour.table["y_key"].iloc[0]] == numeric[:2]
