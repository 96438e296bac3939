"""Ablation variants: what is generated for every method, and how rows are combined."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from analysis.read.study import Study as ReportStudy
from analysis.report.trace import reproduce
from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import digest
from tune_ssl.methods import method_names
from tune_ssl.study.study import load_fixed, load_study
from tune_ssl.study.trial import override
from tune_ssl.study.variants import (
    Variant,
    changed_config,
    distinct_variants,
    factorial_variants,
    generated_variants,
)

FOLDER = Path(__file__).parents[2] / "search_spaces"


def names(spec):
    return [variant.name for variant in generated_variants(spec)]


def test_each_term_is_off_and_alone_and_the_method_itself_is_taken_out():
    spec = small_spec("kmeans", **{"losses.cluster.ramp_up": 0.3})
    terms = ("supervised", "cluster", "augmentation_consistency")
    assert names(spec) == [
        *(f"no_{term}" for term in terms),
        *(f"only_{term}" for term in terms),
        "no_ramp_up",
        "raw_clusters",
        "supervised_only",
    ]
    for variant in generated_variants(spec):
        changed = override(spec, variant.changes)
        if variant.name.startswith("only_"):
            kept = [name for name, loss in changed.losses.items() if loss.weight]
            assert kept == [variant.name.removeprefix("only_")]
    alone = override(spec, generated_variants(spec)[-1].changes)
    assert alone.method.name == "supervised"
    assert alone.optim.model_dump() == spec.optim.model_dump()


def test_what_changes_nothing_is_not_generated():
    assert "no_ramp_up" not in names(small_spec("kmeans", **{"losses.cluster.ramp_up": 0.0}))
    assert "no_cluster" not in names(small_spec("kmeans", **{"losses.cluster.weight": 0.0}))
    assert names(small_spec("supervised")) == []
    assert "matched_clusters" in names(small_spec("kmeans", **{"method.cluster_to_class": "raw"}))


def test_of_two_terms_one_alone_is_the_other_one_off():
    assert names(small_spec("fixmatch")) == ["no_supervised", "no_consistency", "supervised_only"]


@pytest.mark.parametrize("name", method_names())
def test_every_generated_variant_of_every_search_space_has_the_whole_budget(name):
    study = load_study(FOLDER / f"{name}.yaml")
    for variant in generated_variants(study.fixed):
        changed = override(study.fixed, variant.changes)
        assert sum(changed.stage_steps().values()) == sum(study.fixed.stage_steps().values())
        assert changed.data == study.fixed.data and changed.seed == study.fixed.seed


@pytest.mark.parametrize("name", method_names())
def test_the_printed_command_of_every_variant_trains_the_very_same_spec(name, tmp_path):
    path = FOLDER / f"{name}.yaml"
    study = load_study(path)
    config = {key: domain.ends()[-1] for key, domain in study.search.items()}
    spec = study.conditions[0].spec
    raw = {"source": str(path), "method": name}
    every = [*study.conditions[0].variants, *generated_variants(override(spec, config))]
    for variant, values, _ in distinct_variants(spec, config, every):
        wanted = override(spec, {**values, "seed": 3})
        shown = ReportStudy(name, name, tmp_path, raw)
        command = reproduce(shown, {**study.conditions[0].values, **values}, 3)
        program, verb, file, *overrides = shlex.split(command)
        assert (program, verb, file) == ("tune-ssl", "train", str(path))
        assert digest(load_fixed(file, overrides).fixed) == digest(wanted), variant.name


def test_a_factorial_design_has_every_combination_once():
    variants = [Variant("a", {"x": 1}), Variant("b", {"y": 2}, ("lr",)), Variant("c", {"z": 3})]
    rows = factorial_variants(variants, ["a", "b", "c"])
    assert [row.name for row in rows] == ["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    whole = rows[-1]
    assert whole.changes == {"x": 1, "y": 2, "z": 3} and whole.retune == ("lr",)
    assert whole.switches == ("a", "b", "c")


def test_switches_that_set_one_key_differently_are_refused():
    variants = [Variant("a", {"x": 1}), Variant("b", {"x": 2})]
    with pytest.raises(
        UserError, match="--factorial combines a, b, which set x to different values"
    ):
        factorial_variants(variants, ["a", "b"])


def test_a_change_of_method_drops_what_only_the_other_one_knows():
    config = {"optim.lr": 0.1, "optim.probe.lr": 0.2, "losses.cluster.weight": 1, "method.x": 2}
    assert changed_config(config, {"method.name": "supervised"}, "kmeans") == {
        "optim.lr": 0.1,
        "method.name": "supervised",
    }
    assert changed_config(config, {"optim": {"lr": 3}}, "kmeans") == {
        "losses.cluster.weight": 1,
        "method.x": 2,
        "optim": {"lr": 3},
    }


def test_a_row_that_is_another_one_again_says_so():
    spec = small_spec("kmeans")
    twins = [
        Variant("one", {"losses.cluster.weight": 0.0}),
        Variant("two", {"losses.cluster.weight": 0}),
    ]
    same = [Variant("three", {"losses.cluster.weight": 1.0})]
    found = {v.name: why for v, _, why in distinct_variants(spec, {}, itertools.chain(twins, same))}
    assert found == {
        "one": "",
        "two": "is the same as one",
        "three": "is the same as the reference",
    }


def test_a_row_that_is_tuned_again_does_not_stand_for_its_plain_twin():
    spec, change = small_spec("kmeans"), {"losses.cluster.weight": 0.0}
    twins = [Variant("tuned", change, ("optim.lr",)), Variant("plain", change)]
    assert [why for _, _, why in distinct_variants(spec, {}, twins)] == ["", ""]


def test_the_order_of_switches_makes_no_other_row():
    variants = [Variant("a", {"x": 1}), Variant("b", {"y": 2})]
    assert factorial_variants(variants, ["b", "a"]) == factorial_variants(variants, ["a", "b"])
    long = [Variant(c * 80, {c: 1}) for c in "ab"]
    with pytest.raises(UserError, match="--factorial makes a name of 161 characters, but at most"):
        factorial_variants(long, [v.name for v in long])
