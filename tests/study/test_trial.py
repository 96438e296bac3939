"""TrialSpec: built from plain values, and changed by dotted keys alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import digest
from tune_ssl.methods import find_method, method_names
from tune_ssl.study.trial import build_trial, override, set_dotted


def build(method="soft_kmeans", **values):
    return build_trial(set_dotted({"method": {"name": method}}, values))


def messages(values, base=None) -> list[str]:
    with pytest.raises(UserError) as caught:
        override(base or build(), values)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", method_names())
def test_every_methods_defaults_are_sound_and_survive_json(name):
    spec = build(name)
    assert [term for term, _ in spec.losses.items()] == list(find_method(name).losses)
    again = build_trial(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec and digest(again) == digest(spec)


@given(
    st.floats(1e-9, 1e3),
    st.floats(0, 1),
    st.integers(1, 512),
    st.one_of(st.none(), st.floats(0.01, 10)),
)
def test_an_overridden_spec_survives_json_to_the_last_bit(lr, ramp, batch, clip):
    values = {
        "optim.lr": lr,
        "losses.cluster.ramp_up": ramp,
        "data.batch_size": batch,
        "optim.grad_clip": clip,
    }
    spec = override(build(), values)
    again = build_trial(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert digest(again) == digest(spec)
    assert (spec.optim.lr, spec.data.batch_size, spec.optim.grad_clip) == (lr, batch, clip)


def test_an_override_changes_its_key_and_nothing_else():
    spec, before = build(), build().model_dump()
    changed = override(spec, {"losses.cluster.weight": 3})
    assert changed.losses.items()[1][1].weight == 3.0
    before["losses"]["cluster"]["weight"] = 3.0
    assert changed.model_dump() == before
    assert spec == build()  # the original is as it was


def test_no_override_gives_an_equal_spec():
    assert override(build(), {}) == build()


def test_another_method_starts_from_its_own_defaults_and_keeps_the_rest():
    spec = build(**{"method.temperature": 0.5, "losses.cluster.weight": 9, "optim.lr": 0.5})
    changed = override(spec, {"method.name": "supervised"})
    assert changed == build("supervised", **{"optim.lr": 0.5})
    also = override(spec, {"method.name": "kmeans", "losses.cluster.weight": 2})
    assert also == build("kmeans", **{"losses.cluster.weight": 2, "optim.lr": 0.5})
    assert override(spec, {"method": {"name": "supervised"}}) == changed


def test_the_same_method_named_again_keeps_its_options():
    spec = build(**{"method.temperature": 0.5})
    assert override(spec, {"method.name": "soft_kmeans"}) == spec


def test_a_number_of_steps_becomes_steps_by_stage():
    spec = override(build(), {"budget.steps.train": 100})
    assert spec.budget.steps == {"train": 100}
    assert spec.stage_steps() == {"train": 100}
    assert build(**{"budget.steps": 7}).stage_steps() == {"train": 7}
    assert messages({"budget.steps": {"train": 3, "probe": 4}}) == [
        "budget.steps is {train: 3, probe: 4}, but must be one number, or {train: STEPS} "
        "for the method's stages"
    ]


@pytest.mark.parametrize(
    "steps, problem",
    [
        (5, ""),
        ({"pretrain": 8, "finetune": 4}, ""),
        ({"pretrain": 8, "finetune": 4, "linear_probe": 2}, ""),  # for a condition's other transfer
        ({"pretrain": 8}, "is {pretrain: 8}, but must be"),
        ({"pretrain": 8, "linear_probe": 4}, "is {pretrain: 8, linear_probe: 4}, but must be"),
        ({"pretrain": 8, "finetune": 4, "train": 2}, "one number, or {pretrain: STEPS, finetune"),
    ],
)
def test_each_stage_has_its_steps_and_an_optional_one_may_have_some(steps, problem):
    if problem:
        [message] = messages({"budget.steps": steps}, build("simclr"))
        assert problem in message
        return
    spec = build("simclr", **{"budget.steps": steps})
    of = steps if isinstance(steps, dict) else {"pretrain": steps, "finetune": steps}
    assert spec.stage_steps() == {"pretrain": of["pretrain"], "finetune": of["finetune"]}


def test_without_pretraining_the_other_stage_is_the_whole_trial():
    values = {"method.init": "random", "budget.steps": {"pretrain": 100, "finetune": 30}}
    spec = build("simclr", **values)
    assert spec.stage_steps() == {"finetune": 30} and spec.stage_evaluations() == [1]
    assert build("simclr", **{"budget.steps": 100}).stage_evaluations() == [2, 2]


# ---- optimizer parts -----------------------------------------------------------------------------


def test_a_methods_optimizer_parts_are_keys_of_their_own():
    spec = build("simsiam", **{"optim.finetune.lr": 1, "optim.predictor.schedule": "cosine"})
    again = build_trial(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec and digest(again) == digest(spec) != digest(build("simsiam"))
    assert spec.optim.of("finetune").lr == 1.0 and spec.optim.of("pretrain").lr == 3e-3
    changed = override(spec, {"optim.lr": 0.5, "optim.finetune.lr": 2})
    assert changed.optim.of("pretrain", "predictor").lr == 0.5
    assert changed.optim.of("finetune").lr == 2.0


def test_the_settings_of_a_part_go_before_those_of_its_stage_and_these_before_the_rest():
    spec = build("simsiam", **{"optim.lr": 1, "optim.momentum": 0.5, "optim.finetune.lr": 2})
    assert build("simsiam").optim.of("pretrain", "predictor").schedule == "constant"
    nearer = spec.optim.of("finetune", "predictor")
    assert (nearer.lr, nearer.momentum, nearer.schedule) == (2.0, 0.5, "constant")
    assert spec.optim.of("no such stage", "", "name") == spec.optim  # a setting is no part


def test_another_method_does_not_take_the_optimizer_parts_over():
    spec = build("simsiam", **{"optim.finetune.lr": 1, "optim.lr": 2})
    same_data = {"optim.lr": 2, "data.mu": spec.data.mu}
    assert override(spec, {"method.name": "kmeans"}) == build("kmeans", **same_data)
    assert override(spec, {"method.name": "simclr"}) == build("simclr", **{"optim.lr": 2})


@pytest.mark.parametrize(
    "method, key, value, expected",
    [
        ("simclr", "optim.finetun.lr", 1, "did you mean 'finetune'?"),
        (
            "simclr",
            "optim.finetune.rl",
            1,
            "optim.finetune.rl is not a known key (known: layer_decay, lr, ",
        ),
        ("simclr", "optim.finetune.lr", 0, "optim.finetune.lr is 0, but must be greater than 0"),
        ("simclr", "optim.finetune", 3, "optim.finetune is 3, but must be a mapping"),
        ("simclr", "optim.finetune.ema_decay", 0.5, "ema_decay is not a known key"),
        ("simclr", "optim.predictor.lr", 1, "optim.predictor is not a known key"),
        ("kmeans", "optim.finetune.lr", 1, "optim.finetune is not a known key"),
        ("simclr", "model.freeze", 0, "must be 'all' or 'none' or at least 1"),
        ("simclr_joint", "method.transfer", "linear_probe", "method.transfer is 'linear_probe'"),
    ],
)
def test_what_is_wrong_with_a_part_is_named_too(method, key, value, expected):
    [message] = messages({key: value}, build(method))
    assert expected in message


def test_evaluations_count_the_last_one_at_an_uneven_end():
    assert build(**{"budget.steps": 100, "budget.eval_every": 30}).stage_evaluations() == [4]


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("losses.clustr.weight", 1, "losses.clustr is not a known key; did you mean 'cluster'?"),
        ("losses.cluster.wieght", 1, "losses.cluster.wieght is not a known key; did you mean"),
        ("losses.cluster", 3, "losses.cluster is 3, but must be a mapping"),
        ("optim.lr.x", 3, "optim.lr is {x: 3}, but must be a number"),
        ("lr", 3, "lr is not a known key; did you mean 'optim.lr'?"),
        ("optm.lr", 3, "optm is not a known key; did you mean 'optim'?"),
        ("method.temprature", 1, "did you mean 'temperature'?"),
        ("method.labeled_view", "week", "'joint_classification'; did you mean 'weak'?"),
        ("data.dataset", "digit", "must be a known dataset; did you mean 'digits'?"),
        ("model.encoder", "resnet81", "must be a known encoder; did you mean 'resnet18'?"),
        ("model.encoder", None, "model.encoder is null, but must be a text"),
        ("method.name", "kmean", "must be a known method; did you mean 'kmeans'?"),
        ("method.name", None, "method.name is missing, but must be one of: "),
        ("method", "kmeans", "method is 'kmeans', but must be a mapping such as {name: kmeans}"),
        ("data.num_labels", 0, "data.num_labels is 0, but must be greater than 0"),
    ],
)
def test_what_does_not_fit_is_named_with_the_nearest_known_name(key, value, expected):
    [message] = messages({key: value})
    assert expected in message


def test_all_problems_come_at_once_also_beside_an_unknown_method():
    with pytest.raises(UserError) as caught:
        build("kmeen", **{"optim.lr": 0, "data.dataset": "mnits", "compute.precision": "fp8"})
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["compute.precision", "data.dataset", "method.name", "optim.lr"]
