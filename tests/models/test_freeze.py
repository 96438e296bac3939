"""The first groups of an encoder's layers stay as they are: which ones, how much that is, and what else is refused."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.models import Classifier
from tune_ssl.models.encoders import build_encoder, freeze, layer_groups

RESNET, LITE, CONVNEXT, VIT = (
    f"timm:{name}"
    for name in ("resnet18", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224")
)
# The first three of timm's groups, by the beginnings of their weights' names, and how many there are.
GROUPS: dict[str, tuple[list[tuple[str, ...]], int]] = {
    RESNET: ([("conv1.", "bn1."), ("layer1.",), ("layer2.",)], 5),
    LITE: ([("conv_stem.", "bn1."), ("blocks.0.",), ("blocks.1.",)], 8),
    CONVNEXT: ([("stem.",), ("stages.0.",), ("stages.1.",)], 6),
    VIT: ([("cls_token", "pos_embed", "patch_embed."), ("blocks.0.",), ("blocks.1.",)], 13),
}
# Percent of the weights that freeze: 1, 2, 3 hold at 32 px, as docs/methods.md has them.
SHARES = {
    RESNET: (0.1, 1.4, 6.1),
    LITE: (0.0, 0.1, 0.5),
    CONVNEXT: (0.1, 1.0, 4.7),
    VIT: (2.7, 10.8, 18.9),
}
SIDES = (32, 64)


def classifier(encoder: str, side: int, k: int | str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Task(10, 3, side), ModelSpec(encoder=encoder, freeze=k)).train()


@cache
def on_meta(encoder: str, side: int) -> nn.Module:
    """The encoder without any numbers."""
    with torch.device("meta"):
        return build_encoder(encoder, 3, "small", (side, side))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("encoder", GROUPS)
def test_the_groups_of_a_timm_model_hold_each_of_its_weights_once_and_in_order(encoder, side):
    network, (first, count) = on_meta(encoder, side), GROUPS[encoder]
    found = layer_groups(network)
    assert len(found) == count
    assert [name for group in found for name in group] == [n for n, _ in network.named_parameters()]
    for group, beginnings in zip(found, first, strict=False):
        assert all(name.startswith(beginnings) for name in group)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("encoder, side", [(e, s) for e in GROUPS for s in SIDES])
def test_freeze_k_holds_exactly_the_weights_and_statistics_of_timms_first_k_groups(
    encoder, side, k
):
    network = classifier(encoder, side, k)
    held = tuple(start for group in GROUPS[encoder][0][:k] for start in group)
    for name, parameter in network.encoder.named_parameters():
        assert parameter.requires_grad is not name.startswith(held), name
    assert all(p.requires_grad for p in network.classifier.parameters())

    before = {name: value.clone() for name, value in network.encoder.named_buffers()}
    network(torch.randn(2, 3, side, side))
    for name, value in network.encoder.named_buffers():
        if "running" in name:
            assert torch.equal(value, before[name]) is name.startswith(held), name
    for module in network.encoder.modules():
        if within := [*module.parameters()]:
            assert module.training is any(p.requires_grad for p in within)


@pytest.mark.parametrize("encoder", GROUPS)
def test_a_held_group_is_as_large_a_share_of_the_weights_as_the_docs_say(encoder):
    weights = dict(on_meta(encoder, 32).named_parameters())
    total = sum(weight.numel() for weight in weights.values())
    found = layer_groups(on_meta(encoder, 32))
    for k, percent in zip((1, 2, 3), SHARES[encoder], strict=True):
        held = sum(weights[name].numel() for group in found[:k] for name in group)
        assert round(100 * held / total, 1) == percent


def test_what_is_not_held_stays_in_train_mode_though_the_network_itself_owns_a_held_weight():
    """A transformer's own cls_token is held by freeze: 1; its blocks train, with whatever noise they have."""
    network = classifier(VIT, 32, 1)
    assert not network.encoder.cls_token.requires_grad
    assert network.encoder.training and not network.encoder.patch_embed.training
    assert all(module.training for module in network.encoder.blocks.modules())


@pytest.mark.parametrize("encoder", [*GROUPS, "small_cnn", "resnet18"])
def test_a_frozen_encoder_stays_in_eval_mode_and_its_head_trains(encoder):
    network = classifier(encoder, 32, "all")
    assert not any(module.training for module in network.encoder.modules())
    assert not any(p.requires_grad for p in network.encoder.parameters())
    assert network.classifier.training
    network.eval().train()
    assert not network.encoder.training


@pytest.mark.parametrize("encoder", GROUPS)
def test_more_groups_than_there_are_is_refused_with_their_number(encoder):
    count = GROUPS[encoder][1]
    with torch.device("meta"):
        assert freeze(build_encoder(encoder, 3, "small", (32, 32)), count, encoder)
    with pytest.raises(UserError) as caught:
        freeze(on_meta(encoder, 32), count + 1, encoder)
    (problem,) = caught.value.problems
    assert problem.key == "model.freeze"
    assert problem.text == f"is {count + 1}, but {encoder} has {count} groups of layers"
    assert all(p.requires_grad for p in on_meta(encoder, 32).parameters()), "and nothing is held"


def test_no_group_at_all_is_refused():
    with pytest.raises(ValueError, match="freeze"):
        ModelSpec(freeze=0)
