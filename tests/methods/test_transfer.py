"""From pretraining to a classifier: what is frozen, what starts from what, and which labels are seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.test_methods import CHOICES, copied, distinct, same, spec_of
from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.data.loading import Data, load_data
from tune_ssl.models import TransferClassifier
from tune_ssl.training import loop
from tune_ssl.training.loop import train
from tune_ssl.training.stepper import Stepper

CPU = torch.device("cpu")
# Every encoder's blocks, by the prefixes of their weights' names.
BLOCKS = {
    "small_cnn": [("0.", "1."), ("3.", "4."), ("6.", "7.")],
    "keras_cnn": [("0.",), ("2.",), ("4.",), ("6.",)],
    "resnet18": [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
    "wrn_28_2": [
        ("conv.",),
        tuple(f"groups.{i}." for i in range(4)),
        tuple(f"groups.{i}." for i in range(4, 8)),
        (*(f"groups.{i}." for i in range(8, 12)), "norm."),
    ],
}
FREEZES = [*((name, 2) for name in BLOCKS), ("small_cnn", len(BLOCKS["small_cnn"]))]


def trained(encoder: str, data: Data, **values: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network of a transfer after two steps, evaluated in between, and its weights before."""
    random = {"method.init": "random", "model.encoder": encoder, "optim.name": "sgd"}
    spec = small_spec("simclr", **random, **values)
    torch.manual_seed(0)
    (stage,) = spec.stages()
    network = stage.build(data.task, spec.model, None)
    before = copied(network)
    stepper = Stepper(spec, stage, network, data, 12, 0)
    stepper.start()
    for _ in range(2):
        stepper.advance()
        network.eval()
        network.train()
    return network, before


def changed(network: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    after = network.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(small_spec().data, 0, CPU)


# ---- what is frozen ----------------------------------------------------------------------------


@pytest.mark.parametrize("encoder, k", FREEZES)
def test_freeze_k_keeps_exactly_the_first_k_blocks_batchnorm_statistics_included(
    encoder, k, digits
):
    network, before = trained(encoder, digits, **{"model.freeze": k})
    frozen = {
        f"encoder.{key}"
        for key in network.encoder.state_dict()
        for prefixes in BLOCKS[encoder][:k]
        if key.startswith(prefixes)
    }
    assert frozen and changed(network, before) == set(before) - frozen


def test_freeze_none_trains_all_and_freeze_all_only_the_head(digits):
    network, before = trained("small_cnn", digits, **{"model.freeze": "none"})
    assert changed(network, before) == set(before)
    network, before = trained("small_cnn", digits, **{"model.freeze": "all"})
    assert changed(network, before) == {key for key in before if not key.startswith("encoder.")}


def test_freeze_all_also_holds_what_lies_outside_of_any_block():
    task, model = Task(3, 3, 224), ModelSpec(encoder="timm:vit_tiny_patch16_224", freeze="all")
    network = TransferClassifier(task, model, None).train()
    learning = {key for key, p in network.named_parameters() if p.requires_grad}
    assert learning and not any(key.startswith("encoder.") for key in learning)  # cls_token, ...
    assert not any(module.training for module in network.encoder.modules())


@pytest.mark.parametrize("method, init", [("simclr", "random"), ("simsiam", "pretrained")])
def test_a_linear_probe_trains_nothing_of_the_encoder_though_nothing_is_frozen(method, init):
    probe = {"method.transfer": "linear_probe", "model.freeze": "none", "model.head": "mlp"}
    kept: list[dict[str, torch.Tensor]] = []
    heads = []
    for report in train(small_spec(method, **probe, **{"method.init": init})):
        if report.stage == "linear_probe" or report.step == 12:
            kept.append(copied(report.trained.network.encoder))
        if report.stage == "linear_probe":
            network = report.trained.network
            assert isinstance(network.features, nn.Identity)
            assert isinstance(network.classifier, nn.Linear)
            heads.append(network.classifier.weight.clone())
    assert len(kept) == 4 if init == "pretrained" else 3
    assert same(network.encoder, kept[0])
    assert not torch.equal(heads[0], heads[-1])


# ---- what starts from what ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, transfer, checkpoint",
    [("simclr", "finetune", "last"), ("simsiam", "linear_probe", "best")],
)
def test_a_transfer_starts_from_the_averaged_encoder_that_pretraining_ended_with(
    method, transfer, checkpoint
):
    still = {f"optim.{transfer}.lr": 1e-30, "method.transfer": transfer}
    for report in train(small_spec(method, **still, **{"budget.checkpoint": checkpoint})):
        if report.stage == "pretrain":
            ended = copied(report.trained.network.encoder)
    for key, weight in report.trained.network.encoder.named_parameters():
        assert torch.equal(weight, ended[key])


def test_the_joint_encoder_is_fine_tuned():
    reports = train(small_spec("simclr_joint", **{"optim.finetune.lr": 1e-30}))
    for report in reports:
        if report.stage == "joint":
            ended = copied(report.trained.network.encoder)
    assert report.stage == "finetune"
    assert all(
        torch.equal(weight, ended[key])
        for key, weight in report.trained.network.encoder.named_parameters()
    )


@pytest.mark.parametrize("name, chosen", [c for c in CHOICES if c.values[1]])
def test_init_random_leaves_out_pretraining_and_nothing_else(name, chosen):
    stages = [stage.name for stage in spec_of(name, chosen).stages()]
    first = {"simclr_joint": "joint"}.get(name, "pretrain")
    before = [first] if chosen["init"] == "pretrained" else []
    assert stages == [*before, chosen["transfer"]]


# ---- budget.steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_steps_may_name_stages_that_the_options_left_out(init):
    steps = {"pretrain": 8, "finetune": 4, "linear_probe": 6}
    spec = small_spec("simclr", **{"budget.steps": steps, "method.init": init})
    before = {"pretrain": 8} if init == "pretrained" else {}
    assert spec.stage_steps() == {**before, "finetune": 4}


def test_each_stage_trains_for_its_own_steps():
    steps = {"pretrain": 6, "finetune": 3}
    spec = small_spec("simclr", **{"budget.steps": steps, "budget.eval_every": 4})
    reports = list(train(spec))
    assert [(r.stage, r.step) for r in reports] == [
        ("pretrain", 4),
        ("pretrain", 6),
        ("finetune", 9),
    ]
    assert reports[-1].last and sum(spec.stage_evaluations()) == 3
    assert reports[-1].images_seen == 6 * 8 + 3 * 8  # pretraining sees no labeled batch


@pytest.mark.parametrize(
    "steps, shown",
    [
        ({"pretrain": 8}, "{pretrain: 8}"),
        ({"finetune": 8}, "{finetune: 8}"),
        ({"pretrain": 8, "linear_probe": 4}, "{pretrain: 8, linear_probe: 4}"),
        ({"pretrain": 8, "finetune": 4, "fintune": 4}, "{pretrain: 8, finetune: 4, fintune: 4}"),
    ],
)
def test_steps_that_do_not_fit_the_stages_are_one_clear_line(steps, shown):
    with pytest.raises(UserError) as caught:
        small_spec("simclr", **{"budget.steps": steps})
    wanted = "{pretrain: STEPS, finetune: STEPS}"
    assert str(caught.value) == (
        f"budget.steps is {shown}, but must be one number, or {wanted} for the method's stages"
    )


# ---- the label budget --------------------------------------------------------------------------


@pytest.mark.parametrize("name, chosen", distinct())
def test_labels_beyond_the_budget_reach_no_loss_and_no_number_but_their_own(
    name, chosen, monkeypatch
):
    """With another label on every image that is neither labeled nor held out, all stays the same."""
    spec = spec_of(name, chosen, **{"budget.steps": 4, "budget.eval_every": 4})

    def numbers() -> tuple[list[dict[str, float]], nn.Module]:
        reports = list(train(spec))
        kept = [dict(r.metrics) for r in reports]
        for values in kept:
            values.pop("diag/pseudo_label_accuracy", None)
        return kept, reports[-1].trained.network

    def scrambled(*arguments: Any) -> Data:
        data = load_data(*arguments)
        labels, split = data.store.train.labels.copy(), data.split
        hidden = np.setdiff1d(np.arange(len(labels)), [*split.labeled, *split.validation])
        labels[hidden] = (labels[hidden] + 3) % 10
        assert len(hidden) > 1000
        train_part = replace(data.store.train, labels=labels)
        return Data(replace(data.store, train=train_part), split, data.device)

    expected, ours = numbers()
    monkeypatch.setattr(loop, "load_data", scrambled)
    found, theirs = numbers()
    assert repr(found) == repr(expected)  # as text: NaN equals itself
    assert same(ours, theirs)


def test_freezing_more_blocks_than_the_encoder_has_is_refused_with_their_number():
    with pytest.raises(UserError, match=r"model.freeze is 4, but small_cnn has 3 groups of layers"):
        list(train(small_spec("simclr", **{"model.freeze": 4})))
