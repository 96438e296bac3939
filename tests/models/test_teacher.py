"""The copy that follows a network, and the passes from which BatchNorm does not learn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.methods.slow import draw
from tests.support.helpers import small_spec
from tune_ssl.data.loading import load_data
from tune_ssl.models import Teacher, still_statistics
from tune_ssl.training.optimizers import build_optimizers
from tune_ssl.training.stepper import Stepper

CPU = torch.device("cpu")


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def images(seed: int = 0) -> torch.Tensor:
    return 3 + draw(5, 16, seed).view(5, 1, 4, 4)


def change(network: nn.Module) -> dict[str, torch.Tensor]:
    """New random weights; a copy of them."""
    for weights in network.parameters():
        weights.data.normal_()
    return {name: weights.detach().clone() for name, weights in network.named_parameters()}


@pytest.mark.parametrize("warm_up", [True, False])
def test_the_weights_are_the_averages_of_those_that_the_network_had(warm_up):
    network = small_network()
    teacher = Teacher(network)
    expected = {name: weights.detach().clone() for name, weights in network.named_parameters()}
    for t in range(4):
        now = change(network)
        decay = min(0.6, 1 - 1 / (t + 1)) if warm_up else 0.6
        expected = {k: decay * expected[k] + (1 - decay) * now[k] for k in expected}
        teacher.follow(network, 0.6, warm_up=warm_up)
        for name, weights in expected.items():
            torch.testing.assert_close(teacher.network.state_dict()[name], weights)
    assert teacher.updates == 4


def test_a_teacher_has_no_parameter_gives_no_gradient_and_leaves_the_network_as_it_is():
    network = small_network()
    kept = copy.deepcopy(network.state_dict())
    teacher = Teacher(network)
    assert [*teacher.parameters()] == []
    found = teacher(images())
    assert not found.requires_grad and torch.equal(found, network(images()))
    network.load_state_dict(kept)
    teacher.follow(network, 0.0)
    change(teacher.network)
    teacher.network[3].weight.zero_()
    assert all(torch.equal(network.state_dict()[name], kept[name]) for name in kept)


def test_its_batchnorm_has_statistics_of_its_own():
    network = small_network()
    teacher = Teacher(network)
    teacher(images(1))
    assert teacher.network[1].running_mean.any() and not network[1].running_mean.any()
    before = teacher.network[1].running_mean.clone()
    network(images(2))
    teacher.follow(network, 0.5)
    assert torch.equal(teacher.network[1].running_mean, before)


def test_a_loaded_teacher_goes_on_as_the_one_that_was_saved():
    network = small_network()
    first, second = Teacher(network), Teacher(small_network())
    for _ in range(3):
        change(network)
        first.follow(network, 0.9, warm_up=True)
    second.load_state_dict(first.state_dict())
    change(network)
    for teacher in (first, second):
        teacher.follow(network, 0.9, warm_up=True)
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours["updates"] == 4


def test_mean_teachers_teacher_is_in_no_optimizer_and_averages_what_each_step_began_with():
    spec = small_spec("mean_teacher", **{"method.teacher_decay": 0.6})
    data, (stage,) = load_data(spec.data, 0, CPU), spec.stages()
    torch.manual_seed(0)
    network = stage.build(data.task, spec.model, None)
    ((_, optimizer),) = build_optimizers(spec.optim, stage, network).values()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters()}
    stepper = Stepper(spec, stage, network, data, 12, before=0)
    expected = {name: weights.detach().clone() for name, weights in network.named_parameters()}
    for t in range(3):
        decay = min(0.6, 1 - 1 / (t + 1))
        for name, weights in network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weights.detach()
        stepper.advance()
    found = network.teacher.network.state_dict()
    for name, weights in network.named_parameters():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        assert name.endswith("bias") or not torch.equal(found[name], weights)


def test_a_frozen_encoder_is_followed_too_and_its_copy_stays_in_eval_mode():
    spec = small_spec("mean_teacher", **{"model.freeze": "all"})
    data, (stage,) = load_data(spec.data, 0, CPU), spec.stages()
    network = stage.build(data.task, spec.model, None).train()
    kept = copy.deepcopy(network.encoder.state_dict())
    network.teacher.follow(network, 0.6, warm_up=True)
    network.teacher(torch.randn(4, 1, 8, 8))
    found = network.teacher.network.encoder.state_dict()
    assert all(torch.equal(found[name], kept[name]) for name in kept)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_in_still_passes_batchnorm_normalises_by_the_batch_and_learns_nothing(momentum):
    network, other = small_network(), small_network()
    network[1].momentum = momentum
    mean, variance = network[1].running_mean.clone(), network[1].running_var.clone()
    with still_statistics(network):
        found = network(images())
    assert torch.equal(found, other(images()))
    assert torch.equal(network[1].running_mean, mean)
    assert torch.equal(network[1].running_var, variance)
    assert network[1].momentum == momentum


def test_after_an_error_in_a_still_pass_batchnorm_learns_again():
    network = small_network()
    with pytest.raises(RuntimeError), still_statistics(network):
        network(torch.zeros(2, 5))
    network(images())
    assert network[1].momentum == 0.1 and network[1].running_mean.any()
