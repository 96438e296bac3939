"""What training promises: the same spec gives the same numbers, an interruption changes nothing,
divergence is named, weights and ramps are the loop's alone."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from tests.helpers import small_spec
from tune_ssl.data.loading import load_data
from tune_ssl.errors import UserError
from tune_ssl.methods import find_method, method_names
from tune_ssl.methods.base import StepOutput
from tune_ssl.methods.soft_kmeans import SoftKMeansStage
from tune_ssl.schedules import ema_decay, learning_rate, ramp_up
from tune_ssl.stepping import GRADIENT, Averaged, Diverged, Guard, Stepper, build_optimizer
from tune_ssl.training import train

CPU = torch.device("cpu")


def run(spec, **options):
    return list(train(spec, **options))


def numbers(reports):
    return [(r.step, r.metrics) for r in reports]


def weights(report):
    return report.trained.network.state_dict()


@pytest.mark.parametrize("name", method_names())
def test_the_same_spec_gives_the_same_numbers_and_another_seed_gives_others(name):
    first, again = run(small_spec(name)), run(small_spec(name))
    assert numbers(first) == numbers(again)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(first[-1]).values(), weights(again[-1]).values(), strict=True)
    )
    assert numbers(run(small_spec(name, seed=1))) != numbers(first)


@pytest.mark.parametrize("checkpoint", ["last", "best"])
@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("at", [0, 1])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(name, at, checkpoint):
    spec = small_spec(name, **{"budget.checkpoint": checkpoint})
    whole = run(spec)

    stream = train(spec)
    for _ in range(at + 1):
        report = next(stream)
    file = io.BytesIO()
    torch.save(report.snapshot(), file)
    stream.close()
    torch.manual_seed(12345)  # a new process has another random state
    file.seek(0)
    rest = run(spec, resume=torch.load(file, weights_only=True))

    assert numbers(rest) == numbers(whole)[at + 1 :]
    assert rest[-1].result == whole[-1].result
    assert rest[-1].images_seen == whole[-1].images_seen
    for ours, theirs in zip(weights(rest[-1]).values(), weights(whole[-1]).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_another_spec_is_refused():
    snapshot = next(train(small_spec())).snapshot()
    with pytest.raises(
        ValueError, match="the checkpoint is of spec [0-9a-f]{12}, not [0-9a-f]{12}"
    ):
        run(small_spec(seed=5), resume=snapshot)


def test_reports_come_every_eval_every_steps_and_at_the_end():
    reports = run(small_spec(**{"budget.steps": 10, "budget.eval_every": 4}))
    assert [r.step for r in reports] == [4, 8, 10]
    assert [r.evaluation for r in reports] == [1, 2, 3]
    assert [r.last for r in reports] == [False, False, True]
    assert [r.images_seen for r in reports] == [4 * 16, 8 * 16, 10 * 16]
    assert small_spec(**{"budget.steps": 10, "budget.eval_every": 4}).evaluations() == 3


def test_every_report_logs_each_term_its_weight_and_the_schedule():
    spec = small_spec(
        "kmeans", **{"losses.cluster.weight": 4.0, "losses.cluster.ramp_up": 1.0, "optim.lr": 0.01}
    )
    middle = run(spec)[1]  # step 8 of 12
    assert set(middle.metrics) >= {
        "loss/supervised",
        "loss/cluster",
        "loss/augmentation_consistency",
        "loss/total",
        "weight/cluster",
        "gradient_norm",
        "lr",
        "val/accuracy",
        "val/mean_class_accuracy",
    }
    assert middle.metrics["weight/cluster"] == pytest.approx(4 * ramp_up(8 / 12, 1.0))
    assert middle.metrics["lr"] == pytest.approx(0.01 * learning_rate(7 / 12, "cosine"))


def test_a_weight_of_zero_means_the_term_changes_nothing():
    off = {"losses.cluster.weight": 0, "losses.augmentation_consistency.weight": 0}
    ours = run(small_spec("kmeans", **off, **{"method.centroid_momentum": 1.0}))
    theirs = run(small_spec("kmeans", **off, **{"method.centroid_momentum": 0.0}))
    key = "val/loss"  # the classifier never hears of the clusters
    assert [r.metrics[key] for r in ours] == [r.metrics[key] for r in theirs]


def test_best_keeps_the_weights_of_the_best_evaluation_and_reports_their_values():
    noisy = {"optim.lr": 0.02, "optim.schedule": "constant", "optim.ema_decay": 0.0}
    spec = small_spec("supervised", **noisy, **{"budget.checkpoint": "best", "budget.steps": 80})
    reports = run(spec)
    values = [r.metrics["val/mean_class_accuracy"] for r in reports]
    last = reports[-1]
    assert last.result["val/mean_class_accuracy"] == max(values) > values[-1]
    again = last.trained.evaluate(last.trained.data.sets.validation, "val")
    assert again == pytest.approx(last.result)


# ---- divergence --------------------------------------------------------------------------------


class BrokenStage(SoftKMeansStage):
    """Turns one loss term into a bad number from its 6th step on."""

    broken, value, calls = "cluster_consistency", float("nan"), 0

    def step(self, network: nn.Module, batch) -> StepOutput:
        out = super().step(network, batch)
        type(self).calls += 1
        if type(self).calls >= 6:
            out.losses[self.broken] = out.losses[self.broken] * self.value
        return out


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setattr(find_method("soft_kmeans"), "stage_types", (BrokenStage,))
    monkeypatch.setattr(BrokenStage, "calls", 0)
    return BrokenStage


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_bad_term_and_its_step_are_named(broken, monkeypatch, value):
    monkeypatch.setattr(broken, "value", value)
    with pytest.raises(Diverged) as caught:
        run(small_spec())
    assert caught.value.quantity == "cluster_consistency" and caught.value.step == 6
    assert str(caught.value) == f"cluster_consistency is {value} at step 6"
    assert caught.value.images_seen == 6 * 16 and caught.value.seconds > 0


def test_a_bad_term_of_weight_zero_does_not_end_the_run(broken):
    assert run(small_spec(**{"losses.cluster_consistency.weight": 0}))[-1].last


def test_a_gradient_that_is_not_finite_is_named_when_every_loss_is():
    spec = small_spec("supervised")
    data = load_data(spec.data, 0, CPU)
    stage = find_method("supervised").stages(spec.method)[0]
    network = stage.build(data.task, spec.model, None)
    next(network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    stepper = Stepper(spec, stage, network, data, 12, before=100)
    with pytest.raises(Diverged) as caught:
        stepper.advance()
    assert caught.value.quantity == GRADIENT and caught.value.step == 101


def test_a_guard_that_looks_seldom_still_names_the_first_bad_step():
    guard = Guard(("a", "b"), every=5)
    nan = float("nan")
    rows = [[1.0, 1.0], [1.0, 2.0], [1.0, nan], [nan, nan], [nan, nan]]
    with pytest.raises(Diverged) as caught:
        for step, row in enumerate(rows, start=11):
            guard.add(torch.tensor(row), step)
    assert (caught.value.quantity, caught.value.step) == ("b", 13)


def test_a_guard_sums_what_is_finite():
    guard = Guard(("a",), every=2)
    for step in range(1, 4):
        guard.add(torch.tensor([float(step)]), step)
    guard.check(3)
    assert guard.take_sums().tolist() == [6.0] and guard.take_sums().tolist() == [0.0]


# ---- averaging, optimizers, devices ------------------------------------------------------------


def test_averaging_covers_weights_and_batchnorm_statistics_and_copies_counts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = Averaged(network, 0.9)
    before = {k: v.clone() for k, v in average.network.state_dict().items()}
    network(torch.randn(8, 1, 4, 4) + 3)
    with torch.no_grad():
        network[0].weight += 1
    average.update()
    for key, kept in average.network.state_dict().items():
        now = network.state_dict()[key]
        expected = now if key.endswith("tracked") else 0.9 * before[key] + 0.1 * now
        assert torch.allclose(kept, expected), key
    assert average.network[1].num_batches_tracked == 1


def test_without_averaging_the_network_itself_is_evaluated():
    network = nn.Linear(2, 2)
    assert Averaged(network, 0.0).network is network
    assert ema_decay(0.999, 100) == pytest.approx(0.9) and ema_decay(0.9, 5) == 0.0


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_biases_and_normalisation_are_not_decayed(name):
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    decayed, rest = build_optimizer(small_spec(**{"optim.name": name}).optim, network).param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 5e-4
    assert [p.ndim for p in rest["params"]] == [1, 1, 1] and rest["weight_decay"] == 0


def test_a_gradient_longer_than_the_clip_is_shortened_and_logged_unclipped():
    loose = run(small_spec("supervised"))[0]
    tight = run(small_spec("supervised", **{"optim.grad_clip": 1e-6}))[0]
    assert loose.metrics["gradient_norm"] > 1e-3 and tight.metrics["gradient_norm"] > 1e-3
    assert tight.metrics["val/loss"] != loose.metrics["val/loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:63"])
def test_a_device_this_machine_lacks_is_one_clear_line(device):
    with pytest.raises(UserError, match=f"compute.device is '{device}', but must be auto, cpu or"):
        run(small_spec(**{"compute.device": device}))


def test_soft_kmeans_learns_digits():
    spec = small_spec(
        **{
            "budget.steps": 200,
            "data.batch_size": 32,
            "method.temperature": 0.01,
            "losses.cluster.weight": 0.1,
            "model.feature_dim": 128,
            "budget.eval_every": 100,
        }
    )
    value = run(spec)[-1].result["val/mean_class_accuracy"]
    assert value > 0.7 and not math.isnan(value)
