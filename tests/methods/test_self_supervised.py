"""What BYOL, MoCo, Barlow Twins and VICReg promise beyond the contract of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.test_methods import copied, started
from tests.support.helpers import small_spec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.data.loading import load_data
from tune_ssl.methods import moco
from tune_ssl.methods.base import Stage
from tune_ssl.methods.byol import decay_at, regression
from tune_ssl.training.loop import Collapsed, train

CPU = torch.device("cpu")


def begun(name: str, **values: Any) -> tuple[Stage[Any], Any, Batch]:
    """The pretraining stage, its network and a batch of 16 images."""
    spec = small_spec(name, **{"data.mu": 2, **values})
    torch.manual_seed(0)
    stage, network, loader = next(started(spec, load_data(spec.data, 0, CPU)))
    return stage, network, loader.next()


@pytest.mark.parametrize("name", ["byol", "moco", "barlow_twins", "vicreg"])
def test_each_view_goes_through_the_network_by_itself(name):
    """So that BatchNorm normalises over the images of one view."""
    stage, network, batch = begun(name)
    seen: list[int] = []
    network.projector.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    if hasattr(network, "teacher"):
        network.teacher.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    stage.step(network, batch)
    assert seen == [16] * {"byol": 4}.get(name, 2)


@pytest.mark.parametrize("name, decay", [("byol", decay_at(0.25, 0.9)), ("moco", 0.9)])
def test_a_step_first_moves_the_copy_towards_what_the_network_has_become(name, decay):
    key = {"byol": "target_decay", "moco": "key_decay"}[name]
    stage, network, batch = begun(name, **{f"method.{key}": 0.9})
    before = [weights.clone() for weights in network.encoder.parameters()]
    with torch.no_grad():
        for weights in network.encoder.parameters():
            weights += 1
    stage.step(network, batch._replace(progress=0.25))
    copy = dict(network.teacher.network[0].named_buffers())
    for old, (key, new) in zip(before, network.encoder.named_parameters(), strict=True):
        torch.testing.assert_close(copy[key], decay * old + (1 - decay) * new.detach())


# ---- byol --------------------------------------------------------------------------------------


def test_each_view_predicts_the_targets_projection_of_the_other_one():
    stage, network, batch = begun("byol")
    for weights in network.teacher.buffers():  # a target of its own
        weights.mul_(0.5) if weights.is_floating_point() else None
    kept = copied(network)
    found = stage.step(network, batch._replace(progress=1.0)).losses["regression"]
    network.load_state_dict(kept)
    first, second = (network.predictor(network(view)) for view in batch.unlabeled)
    targets = [network.teacher(view) for view in batch.unlabeled]
    assert found.item() == pytest.approx(
        (regression(first, targets[1]) + regression(second, targets[0])).item()
    )
    own = (regression(first, targets[0]) + regression(second, targets[1])).item()
    assert found.item() != pytest.approx(own, rel=1e-3)


def test_the_predictor_of_byol_may_be_left_out():
    _, network, _ = begun("byol", **{"method.predictor": False})
    assert isinstance(network.predictor, nn.Identity)
    _, network, _ = begun("byol")
    kinds = [type(layer).__name__ for layer in network.predictor]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


# ---- moco --------------------------------------------------------------------------------------


def queue(length: int) -> Any:
    return begun("moco", **{"method.queue": length})[1]


def test_new_keys_take_the_place_of_the_oldest_and_of_too_many_the_last_stay():
    network, keys = queue(5), torch.eye(16)
    network.enqueue(keys[:3], torch.tensor([0, 1, 2]))
    assert network.ids_Q.tolist() == [0, 1, 2, -1, -1]
    network.enqueue(keys[3:7], torch.tensor([3, 4, 5, 6]))
    assert network.ids_Q.tolist() == [5, 6, 2, 3, 4]
    assert torch.equal(network.keys_QD, keys[[5, 6, 2, 3, 4]])
    network.enqueue(keys[7:14], torch.arange(7, 14))
    assert sorted(network.ids_Q.tolist()) == [9, 10, 11, 12, 13]


def test_the_keys_of_a_step_are_negatives_from_the_next_one_on():
    stage, network, batch = begun("moco")
    first = stage.step(network, batch)
    assert first.losses["contrastive"].item() == 0 and first.diagnostics["negatives"] == 0
    assert network.ids_Q.tolist() == [*batch.ids_U.tolist(), *[-1] * 16]
    assert torch.allclose(network.keys_QD[:16].norm(dim=1), torch.ones(16))
    others = batch._replace(ids_U=batch.ids_U + 10_000)
    second = stage.step(network, others)
    assert second.losses["contrastive"] > 0 and second.diagnostics["negatives"] == 16


def test_no_image_is_its_own_negative_however_long_its_key_is_in_the_queue():
    stage, network, batch = begun("moco")
    stage.step(network, batch)
    kept = copied(network)
    again = stage.step(network, batch)
    assert again.diagnostics["negatives"] == 15
    found = []
    for key in (torch.zeros(16), torch.ones(16)):
        network.load_state_dict(kept)
        network.keys_QD[3] = key
        alone = batch._replace(
            unlabeled=tuple(view[[3, 3]] for view in batch.unlabeled), ids_U=batch.ids_U[[3, 3]]
        )
        found.append(stage.step(network, alone).losses["contrastive"].item())
    assert found[0] == found[1]


def test_the_queue_has_no_more_keys_than_there_are_unlabeled_images():
    spec = small_spec("moco").method
    for unlabeled, length in ((20, 20), (500, 32), (0, 32)):
        task = Task(10, 1, 8, unlabeled=unlabeled)
        network = moco.MoCoPretrain(spec).build(task, small_spec("moco").model, None)
        assert len(network.ids_Q) == len(network.keys_QD) == length


# ---- collapse ----------------------------------------------------------------------------------

BATCHES = {"data.mu": 4, "budget.steps": {"pretrain": 30, "finetune": 1}, "budget.eval_every": 15}
HEADS = {"method.projector_hidden": 64, "method.projector_dim": 64}
BROKEN = {
    "byol": {"method.predictor": False, "method.target_decay": 0.0},
    "vicreg": {"losses.variance.weight": 0.0, "method.collapse_below": 0.3},
    "moco": {"method.key_decay": 0.0, "method.queue": 1},
}


def spreads(name: str, **values: Any) -> list[float]:
    reports = train(small_spec(name, **BATCHES, **HEADS, **values))
    return [r.metrics["diag/embedding_std"] for r in reports if r.stage == "pretrain"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_collapse_ends_the_run_and_is_named(name):
    with pytest.raises(Collapsed, match="^embedding_std is 0"):
        spreads(name, **BROKEN[name], **{"optim.lr": 0.1})


@pytest.mark.parametrize("name", ["byol", "moco", "barlow_twins", "vicreg"])
def test_as_published_it_stays_well_above_its_floor(name):
    floor = small_spec(name).method.collapse_below
    assert min(spreads(name)) > 2 * floor
