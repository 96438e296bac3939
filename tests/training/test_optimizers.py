"""Optimizers by part and by layer: which learning rate each weight has, and which ones are not decayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.test_freeze import CONVNEXT, GROUPS, LITE, RESNET, VIT
from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.data.batch import Task
from tune_ssl.models.encoders import layer_groups
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.loop import train
from tune_ssl.training.optimizers import build_optimizers, set_rate

Built = dict[str, tuple[Any, torch.optim.Optimizer]]


def built(spec: TrialSpec, index: int = 0, side: int = 32) -> tuple[nn.Module, Built]:
    """The network of a stage for colour images, and its optimizers."""
    network: Any = None
    for stage in spec.stages()[: index + 1]:
        network = stage.build(Task(10, 3, side), spec.model, network)
    return network, build_optimizers(spec.optim, stage, network)


def held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def values(optimizer: torch.optim.Optimizer, key: str) -> dict[int, float]:
    """id of each parameter -> what its group says."""
    return {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}


def test_without_settings_of_their_own_encoder_and_head_share_one_optimizer_of_two_groups():
    network, optimizers = built(small_spec("supervised"))
    ((settings, optimizer),) = optimizers.values()
    assert [*optimizers] == [""] and settings.lr == 3e-3
    assert held(optimizer) == {id(p) for p in network.parameters()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, 1]


@pytest.mark.parametrize("encoder", GROUPS)
@pytest.mark.parametrize("side", [32, 64])
def test_layer_decay_shrinks_the_rate_of_each_group_of_layers_with_its_distance_from_the_head(
    encoder, side
):
    spec = small_spec(
        "supervised", **{"model.encoder": encoder, "optim.layer_decay": 0.5, "optim.lr": 0.8}
    )
    network, optimizers = built(spec, side=side)
    ((_, optimizer),) = optimizers.values()
    set_rate(optimizer, 0.8)
    rates = values(optimizer, "lr")
    assert all(rates[id(p)] == 0.8 for p in network.classifier.parameters())
    weights, groups = dict(network.encoder.named_parameters()), layer_groups(network.encoder)
    for depth, group in enumerate(reversed(groups), start=1):
        assert {rates[id(weights[name])] for name in group} == {0.8 * 0.5**depth}
    assert len(rates) == len(list(network.parameters()))


def test_layer_decay_moves_what_is_far_from_the_head_less():
    """SGD without momentum: a step is the rate times the gradient."""
    plain = {"optim.name": "sgd", "optim.momentum": 0.0, "optim.schedule": "constant"}
    still = {"optim.weight_decay": 0.0, "optim.ema_decay": 0.0, "budget.steps": 1}

    def moved(decay: float) -> list[torch.Tensor]:
        spec = small_spec("supervised", **plain, **still, **{"optim.layer_decay": decay})
        torch.manual_seed(spec.seed)
        before = spec.stages()[0].build(Task(10, 1, 8), spec.model, None).state_dict()
        (report,) = train(spec)
        return [value - before[name] for name, value in report.trained.network.named_parameters()]

    whole, less = moved(1.0), moved(0.1)
    depths = [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0]  # three convolutions with BatchNorm, then the head
    for all_of_it, part, depth in zip(whole, less, depths, strict=True):
        torch.testing.assert_close(part, all_of_it * 0.1**depth, atol=1e-6, rtol=1e-2)


def test_the_encoder_and_the_head_may_have_rates_of_their_own():
    own = {"optim.lr": 0.5, "optim.encoder.lr": 0.1, "optim.head.lr": 0.9}
    network, optimizers = built(small_spec("supervised", **own))
    assert {part: settings.lr for part, (settings, _) in optimizers.items()} == {
        "encoder": 0.1,
        "head": 0.9,
    }
    assert held(optimizers["encoder"][1]) == {id(p) for p in network.encoder.parameters()}
    assert held(optimizers["head"][1]) == {id(p) for p in network.classifier.parameters()}


@pytest.mark.parametrize("part", ["encoder", "head"])
def test_what_one_of_them_leaves_out_is_as_for_all(part):
    _, optimizers = built(small_spec("supervised", **{"optim.lr": 0.5, f"optim.{part}.lr": 0.1}))
    rates = {name: settings.lr for name, (settings, _) in optimizers.items()}
    assert rates == {"encoder": 0.5, "head": 0.5, part: 0.1}
    both = {settings.weight_decay for settings, _ in optimizers.values()}
    assert both == {5e-4}


def test_a_stages_own_settings_come_before_those_for_all_and_after_those_of_a_part():
    spec = small_spec(
        "simclr", **{"optim.lr": 0.5, "optim.finetune.lr": 0.2, "optim.encoder.lr": 0.1}
    )
    rates = [{n: s.lr for n, (s, _) in built(spec, index)[1].items()} for index in (0, 1)]
    assert rates == [{"encoder": 0.1, "head": 0.5}, {"encoder": 0.1, "head": 0.2}]


def test_the_rates_of_both_are_in_the_history():
    spec = small_spec("supervised", **{"optim.encoder.lr": 0.01, "optim.schedule": "constant"})
    first, *_ = train(spec)
    assert first.metrics["lr/encoder"] == 0.01 and first.metrics["lr/head"] == 3e-3
    assert "lr" not in first.metrics


def test_under_layer_decay_the_history_has_the_rate_next_to_the_head():
    values = {"optim.layer_decay": 0.5, "optim.schedule": "constant", "optim.encoder.lr": 0.01}
    first, *_ = train(small_spec("supervised", **values))
    assert first.metrics["lr/encoder"] == pytest.approx(0.01)


@pytest.mark.parametrize("k", [1, 2])
def test_a_part_of_the_encoder_that_is_held_is_in_no_optimizer(k):
    spec = small_spec("supervised", **{"model.freeze": k, "optim.layer_decay": 0.5})
    network, optimizers = built(spec)
    ((_, optimizer),) = optimizers.values()
    assert held(optimizer) == {id(p) for p in network.parameters() if p.requires_grad}
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert scales == {0.5**depth for depth in range(4 - k)}, "distances stay what they were"


def test_a_frozen_encoder_has_no_optimizer_and_the_head_its_own():
    _, optimizers = built(small_spec("supervised", **{"model.freeze": "all", "optim.head.lr": 1.0}))
    assert {part: settings.lr for part, (settings, _) in optimizers.items()} == {"head": 1.0}


@pytest.mark.parametrize("encoder", [RESNET, LITE, CONVNEXT, VIT])
@pytest.mark.parametrize("own", [{}, {"optim.encoder.lr": 0.1}, {"optim.layer_decay": 0.7}])
def test_embeddings_biases_and_normalisation_are_not_decayed_and_all_else_is(encoder, own):
    spec = small_spec("supervised", **{"model.encoder": encoder, "optim.weight_decay": 0.3, **own})
    network, optimizers = built(spec)
    decays: dict[int, float] = {}
    for _, optimizer in optimizers.values():
        decays |= values(optimizer, "weight_decay")
    for name, parameter in network.named_parameters():
        plain = parameter.ndim == 1 or name in ("encoder.cls_token", "encoder.pos_embed")
        assert decays[id(parameter)] == (0 if plain else 0.3), name


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("optim.layer_decay", 0.0, "optim.layer_decay is 0.0, but must be greater than 0"),
        ("optim.layer_decay", 1.5, "optim.layer_decay is 1.5, but must be at most 1"),
        ("optim.encoder.lr", -1, "optim.encoder.lr is -1, but must be greater than 0"),
        ("optim.encodr.lr", 1, "did you mean 'encoder'?"),
    ],
)
def test_a_rate_that_cannot_be_is_one_line(key, value, says):
    with pytest.raises(UserError) as caught:
        small_spec("supervised", **{key: value})
    assert says in str(caught.value) and "\n" not in str(caught.value)
