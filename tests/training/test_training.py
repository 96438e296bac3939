"""What training promises: the same spec gives the same numbers, an interruption changes nothing,
divergence and collapse are named, weights, ramps and optimizers are the loop's alone."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import textwrap
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import nn

from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import StudySpec
from tune_ssl.data.loading import load_data
from tune_ssl.methods import find_method, method_names
from tune_ssl.methods.base import Ratio, StepOutput
from tune_ssl.methods.simclr import SimCLRPretrain
from tune_ssl.methods.soft_kmeans import SoftKMeansStage
from tune_ssl.methods.supervised import SupervisedStage, balance_of
from tune_ssl.methods.transfer import FinetuneStage
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.training.guard import GRADIENT, Collapsed, Diverged, Guard
from tune_ssl.training.loop import Clock, Report, TooLong, train
from tune_ssl.training.optimizers import build_optimizers
from tune_ssl.training.schedules import learning_rate, ramp_up
from tune_ssl.training.stepper import Averaged, Stepper

CPU = torch.device("cpu")


def run(spec, **options):
    return list(train(spec, **options))


def numbers(reports):
    return [(r.stage, r.step, r.evaluation, r.images_seen, r.metrics) for r in reports]


def weights(report):
    return report.trained.network.state_dict()


class Whole(NamedTuple):
    """An uninterrupted run, and a checkpoint of each of its reports."""

    spec: TrialSpec
    reports: list[Report]
    checkpoints: list[io.BytesIO]


@cache
def whole_run(name, checkpoint="last") -> Whole:
    """Of each stage two evaluations."""
    budget = {"steps": 6, "eval_every": 3, "checkpoint": checkpoint}
    spec = small_spec(name, budget=budget)
    whole = Whole(spec, [], [])
    for report in train(spec):
        whole.reports.append(report)
        whole.checkpoints.append(io.BytesIO())
        torch.save(report.snapshot and report.snapshot(), whole.checkpoints[-1])
    return whole


def assert_ends_like(reports, whole):
    """The same numbers in each report, the same result, and the same weights at the end."""
    assert numbers(reports) == numbers(whole.reports)[-len(reports) :]
    assert reports[-1].result == whole.reports[-1].result
    ours, theirs = weights(reports[-1]), weights(whole.reports[-1])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", method_names())
def test_the_same_spec_gives_the_same_numbers_and_another_seed_gives_others(name):
    whole = whole_run(name)
    assert_ends_like(run(whole.spec), whole)
    other = next(train(override(whole.spec, {"seed": 1})))
    assert numbers([other]) != numbers(whole.reports[:1])


@pytest.mark.parametrize(
    "name, checkpoint",
    [*((name, "last") for name in method_names()), ("simclr", "best"), ("soft_kmeans", "best")],
)
def test_a_resumed_run_is_bit_identical_wherever_it_was_interrupted(name, checkpoint):
    whole = whole_run(name, checkpoint)
    for at, file in enumerate(whole.checkpoints[:-1]):  # within each stage, and between two
        torch.manual_seed(12345)  # a new process has another random state
        file.seek(0)
        rest = run(whole.spec, resume=torch.load(file, weights_only=True))
        assert len(rest) == len(whole.reports) - at - 1
        assert_ends_like(rest, whole)


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
    assert small_spec(**{"budget.steps": 10, "budget.eval_every": 4}).stage_evaluations() == [3]


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


# ---- several stages ----------------------------------------------------------------------------


def test_steps_evaluations_and_images_run_on_over_the_stages():
    spec = small_spec("simclr", **{"budget.steps": {"pretrain": 10, "finetune": 4}, "data.mu": 3})
    reports = run(spec)
    assert [r.stage for r in reports] == ["pretrain"] * 3 + ["finetune"]
    assert [r.step for r in reports] == [4, 8, 10, 14]
    assert [r.evaluation for r in reports] == [1, 2, 3, 4]
    assert [r.last for r in reports] == [False, False, False, True]
    assert [r.images_seen for r in reports] == [96, 192, 240, 240 + 4 * 8]
    assert spec.stage_evaluations() == [3, 1]


@pytest.mark.parametrize("mode, sign", [("max", 1), ("min", -1)])
def test_a_stand_in_is_compared_the_way_the_metric_is(mode, sign):
    reports = run(small_spec("simclr"), metric="val/loss", mode=mode)
    for report in reports[:3]:
        assert report.stand_in == sign * report.metrics["val/probe_accuracy"] != 0
    assert [report.stand_in for report in reports[3:]] == [None] * 3


def test_the_first_stage_starts_from_the_seed_and_each_later_one_from_a_stream_of_its_own(
    monkeypatch,
):
    seeds = []

    def build(self, *arguments):
        seeds.append(torch.initial_seed())
        return type(self).__mro__[1].build(self, *arguments)

    first = type("First", (SimCLRPretrain,), {"build": build})
    later = [type("Later", (FinetuneStage,), {"build": build, "name": name}) for name in ("a", "b")]
    method = find_method("simclr")
    monkeypatch.setattr(method, "stage_types", (first, *later))
    monkeypatch.setattr(
        method, "stages", classmethod(lambda cls, spec: [s(spec) for s in cls.stage_types])
    )
    for seed in (0, 1):
        run(small_spec("simclr", seed=seed, **{"budget.steps": 1}))
    assert seeds[0] == 0 and seeds[3] == 1
    assert len(set(seeds)) == 6


def test_best_is_chosen_within_each_stage_that_measures_the_metric(monkeypatch):
    given = []
    build = FinetuneStage.build

    def spy(self, task, model, previous):
        given.append({k: v.clone() for k, v in previous.state_dict().items()})
        return build(self, task, model, previous)

    monkeypatch.setattr(FinetuneStage, "build", spy)
    noisy = {"optim.lr": 0.03, "optim.schedule": "constant", "optim.ema_decay": 0.0}

    def spec(evaluations):
        steps = {"pretrain": 8, "finetune": 4 * evaluations}
        return small_spec("simclr", **noisy, **{"budget.steps": steps, "budget.checkpoint": "best"})

    def finetuned(reports):
        return [r.metrics["val/mean_class_accuracy"] for r in reports if r.stage == "finetune"]

    # where its value falls for the first time differs between processors: let it end there
    long = finetuned(train(spec(12)))
    fall = next(i for i in range(1, 12) if long[i] < long[i - 1])
    given.clear()
    reports, pretrained = [], {}
    for report in train(spec(fall + 1)):
        reports.append(report)
        if report.stage == "pretrain":
            pretrained = {k: v.clone() for k, v in weights(report).items()}
            assert report.result["val/probe_accuracy"] == report.metrics["val/probe_accuracy"]
    # pretraining does not measure the metric: its last weights go on
    assert all(torch.equal(given[0][key], pretrained[key]) for key in pretrained)
    values = finetuned(reports)
    assert reports[-1].result["val/mean_class_accuracy"] == max(values) > values[-1]


def test_a_frozen_encoder_stays_as_it_was_pretrained_and_is_in_no_optimizer():
    reports = run(small_spec("simclr", **{"model.freeze": "all", "optim.ema_decay": 0.0}))
    before, after = weights(reports[2]), weights(reports[-1])
    encoder = [key for key in after if key.startswith("encoder.")]
    assert encoder and all(torch.equal(before[key], after[key]) for key in encoder)


# ---- collapse ------------------------------------------------------------------------------------


def test_a_collapse_is_named_with_its_steps_and_what_it_cost():
    spec = small_spec("simsiam", **{"method.collapse_below": 0.99})
    with pytest.raises(Collapsed) as caught:
        run(spec)
    error = caught.value
    assert (error.quantity, error.step) == ("embedding_std", 4)
    assert str(error) == (
        f"embedding_std is {error.value:.3g} over steps 1 to 4, under its floor 0.99"
    )
    assert error.images_seen == 4 * 8 and error.seconds > 0
    assert run(small_spec("simsiam", **{"method.collapse_below": 0.0}))[-1].last


class Sinking(FinetuneStage):
    """Its diagnostic falls under its floor after the 6th step."""

    floors, calls = {"height": 0.5}, 0

    def step(self, network: nn.Module, batch) -> StepOutput:
        type(self).calls += 1
        height = torch.tensor(1.0 if type(self).calls <= 6 else 0.0)
        return StepOutput(super().step(network, batch).losses, {"height": height})


def test_a_collapse_in_a_later_stage_counts_the_steps_before_it(monkeypatch):
    monkeypatch.setattr(find_method("simclr"), "stage_types", (SimCLRPretrain, Sinking))
    monkeypatch.setattr(Sinking, "calls", 0)
    with pytest.raises(Collapsed) as caught:
        run(small_spec("simclr"))
    assert caught.value.step == 12 + 12  # of steps 5 to 8 two are high; of 9 to 12 none is
    assert str(caught.value) == "height is 0 over steps 21 to 24, under its floor 0.5"
    assert caught.value.images_seen == (12 + 12) * 8


def test_a_ratio_is_the_share_over_all_steps_and_nan_where_nothing_was_counted(monkeypatch):
    parts = iter([(1, 1), (0, 9), (0, 0), (5, 10)] + [(0, 0)] * 8)

    class Counting(SoftKMeansStage):
        def step(self, network: nn.Module, batch) -> StepOutput:
            part, whole = map(torch.tensor, next(parts))
            return StepOutput(super().step(network, batch).losses, {"share": Ratio(part, whole)})

    monkeypatch.setattr(find_method("soft_kmeans"), "stage_types", (Counting,))
    first, second, third = run(small_spec())
    assert first.metrics["diag/share"] == 6 / 20
    assert math.isnan(second.metrics["diag/share"]) and math.isnan(third.metrics["diag/share"])


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
            guard.add(torch.tensor(row), [], step)
    assert (caught.value.quantity, caught.value.step) == ("b", 13)


def test_a_guard_sums_what_is_finite():
    guard = Guard(("a",), every=2)
    for step in range(1, 4):
        guard.add(torch.tensor([float(step)]), [], step)
    guard.check(3)
    assert guard.take_sums().tolist() == [6.0] and guard.take_sums().tolist() == [0.0]


# ---- growth --------------------------------------------------------------------------------------


class Growing(SoftKMeansStage):
    """Its term is `values` of the step, from 0."""

    values, calls = staticmethod(lambda step: 1.0), 0

    def step(self, network: nn.Module, batch) -> StepOutput:
        out = super().step(network, batch)
        loss = out.losses["supervised"]
        out.losses["supervised"] = loss + (self.values(type(self).calls) - loss.detach())
        type(self).calls += 1
        return out


@pytest.fixture
def growing(monkeypatch):
    monkeypatch.setattr(find_method("soft_kmeans"), "stage_types", (Growing,))
    monkeypatch.setattr(Growing, "calls", 0)

    def grow(values):
        monkeypatch.setattr(Growing, "values", staticmethod(values))

    return grow


def test_a_term_that_grows_without_bound_is_named_and_does_not_count_as_finished(growing):
    growing(lambda step: 2.0 if step < 8 else 1.5e22)
    with pytest.raises(Diverged) as caught:
        run(small_spec())
    error = caught.value
    assert str(error) == "loss supervised is 1.5e+22 at step 12: it grew without bound"
    assert (error.quantity, error.step) == ("supervised", 12) and error.value > 1e22
    assert error.images_seen == 12 * 16


@pytest.mark.parametrize("last, ends", [(2.9e3, False), (3.1e3, True)])
def test_later_a_term_may_be_a_thousand_times_one_and_its_mean_of_the_first_interval(
    growing, last, ends
):
    growing(lambda step: 2.0 if step < 4 else last)
    assert_ends(ends, small_spec())
    growing(lambda step: 2.0 if step < 4 else -last)
    assert run(small_spec())[-1].last


@pytest.mark.parametrize("last, ends", [(2.9e6, False), (3.1e6, True)])
def test_in_the_first_interval_a_terms_mean_may_be_a_million_times_one_and_its_first_value(
    growing, last, ends
):
    growing(lambda step: 2.0 if step == 0 else last * 4 / 3)
    assert_ends(ends, small_spec(**{"budget.steps": 4}))


def assert_ends(ends, spec):
    Growing.calls = 0
    if not ends:
        assert run(spec)[-1].last
        return
    with pytest.raises(Diverged, match="it grew without bound"):
        run(spec)


def test_a_term_of_weight_zero_may_grow(growing):
    growing(lambda step: 10.0**step)
    assert run(small_spec(**{"losses.supervised.weight": 0}))[-1].last


def test_the_limits_of_a_loss_survive_an_interruption(growing):
    growing(lambda step: 2.0 if step < 4 else 2500.0 if step < 8 else 1e5)
    reports = train(small_spec())
    next(reports)
    snapshot = next(reports).snapshot()
    with pytest.raises(Diverged, match="is 1e\\+05 at step 12"):
        run(small_spec(), resume=snapshot)


# ---- what taught nothing -------------------------------------------------------------------------

TAUGHT_NOTHING = "no unlabeled image was ever confident enough (method.threshold): the unlabeled images taught nothing"


@pytest.mark.parametrize("threshold, said", [(1.0, [TAUGHT_NOTHING]), (0.1, [])])
def test_a_diagnostic_that_stayed_zero_is_said_and_survives_an_interruption(threshold, said):
    spec = small_spec("fixmatch", **{"method.threshold": threshold})
    stepper = stepper_of(spec)
    assert stepper.idle() == []  # nothing was measured yet
    for step in (4, 8):
        stepper.advance_to(step)
        assert stepper.idle() == said
    other = stepper_of(spec)
    other.load(stepper.state())
    assert other.idle() == said


def test_one_interval_in_which_it_was_not_zero_is_enough_and_nan_counts_as_zero(monkeypatch):
    parts = iter([(0, 0), (0, 0), (1, 2), (0, 3)])

    class Silent(SoftKMeansStage):
        idle = {"share": "it was silent"}

        def step(self, network: nn.Module, batch) -> StepOutput:
            part, whole = map(torch.tensor, next(parts))
            return StepOutput(super().step(network, batch).losses, {"share": Ratio(part, whole)})

    monkeypatch.setattr(find_method("soft_kmeans"), "stage_types", (Silent,))
    stepper, found = stepper_of(small_spec()), []
    for step in range(1, 5):
        stepper.advance_to(step)
        found.append(stepper.idle())
    assert found == [["it was silent"]] * 2 + [[]] * 2


# ---- unbalanced classes --------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("how", ["none", "class_weights", "logit_adjustment"])
def test_each_batch_and_each_part_of_it_has_the_balance_of_all_labeled_images(
    how, parts, monkeypatch
):
    seen, step = [], SupervisedStage.step
    monkeypatch.setattr(
        SupervisedStage,
        "step",
        lambda self, n, batch: seen.append(batch.balance) or step(self, n, batch),
    )
    values = {"losses.supervised.balance": how, "compute.accumulate": parts}
    spec = small_spec("supervised", **values, **{"data.split": "random", "budget.steps": 2})
    last = run(spec)[-1]
    labels = torch.from_numpy(last.trained.data.sets.labeled.labels)
    expected = balance_of(how, labels, 10)
    assert len(seen) == 2 * parts and labels.bincount().unique().numel() > 1
    for balance in seen:
        assert (balance is None) == (how == "none")
        assert balance is None or all(map(torch.equal, balance, expected))


def test_a_balance_is_there_for_features_of_a_frozen_encoder_too():
    values = {"model.freeze": "all", "data.split": "random", "method.labeled_view": "none"}
    found = [
        run(small_spec("supervised", **values, **{"losses.supervised.balance": how}))[-1].metrics
        for how in ("none", "class_weights", "logit_adjustment")
    ]
    assert len({metrics["loss/supervised"] for metrics in found}) == 3


# ---- averaging, optimizers, devices ------------------------------------------------------------


def test_averaging_covers_weights_and_batchnorm_statistics_and_copies_counts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = Averaged(network, 0.9, steps=1000)
    before = {k: v.clone() for k, v in average.network.state_dict().items()}
    network(torch.randn(8, 1, 4, 4) + 3)
    with torch.no_grad():
        network[0].weight += 1
    average.update(500)
    for key, kept in average.network.state_dict().items():
        now = network.state_dict()[key]
        expected = now if key.endswith("tracked") else 0.9 * before[key] + 0.1 * now
        assert torch.allclose(kept, expected), key
    assert average.network[1].num_batches_tracked == 1


def test_without_averaging_the_network_itself_is_evaluated():
    network = nn.Linear(2, 2)
    assert Averaged(network, 0.0, steps=100).network is network
    assert Averaged(network, 0.9, steps=5).network is network  # too short to average


def stepper_of(spec, index=0):
    """The stepper of one stage, from fresh weights."""
    data = load_data(spec.data, 0, CPU)
    network = None
    for stage in spec.stages()[: index + 1]:
        network = stage.build(data.task, spec.model, network)
    return Stepper(spec, stage, network, data, 12, before=0)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_biases_and_normalisation_are_not_decayed(name):
    stepper = stepper_of(small_spec("supervised", **{"optim.name": name}))
    ((_, optimizer),) = stepper.optimizers.values()
    decayed, rest = optimizer.param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4} and decayed["weight_decay"] == 5e-4
    assert {p.ndim for p in rest["params"]} == {1} and rest["weight_decay"] == 0
    count = len(decayed["params"]) + len(rest["params"])
    assert count == len(list(stepper.network.parameters()))


def test_each_part_has_its_own_optimizer_and_every_parameter_is_in_one():
    values = {"optim.predictor.lr": 0.5, "optim.predictor.name": "sgd", "optim.finetune.lr": 9.0}
    spec = small_spec("simsiam", **values)
    stepper = stepper_of(spec)
    (part, predictor), (rest, others) = stepper.optimizers["predictor"], stepper.optimizers[""]
    assert (part.name, part.lr, part.schedule) == ("sgd", 0.5, "constant")
    assert (rest.name, rest.lr, rest.schedule) == ("adamw", 3e-3, "cosine")

    def held(optimizer):
        return {id(p) for group in optimizer.param_groups for p in group["params"]}

    assert held(predictor) == {id(p) for p in stepper.network.predictor.parameters()}
    assert held(predictor) | held(others) == {id(p) for p in stepper.network.parameters()}
    assert not held(predictor) & held(others)
    (finetune,) = stepper_of(spec, index=1).optimizers.values()
    assert finetune[0].lr == 9.0


def test_a_part_follows_its_own_schedule_and_logs_its_own_rate():
    first, *_, last = run(small_spec("simsiam", **{"optim.predictor.lr": 0.01}))[:3]
    assert first.metrics["lr/predictor"] == last.metrics["lr/predictor"] == 0.01
    assert last.metrics["lr"] == pytest.approx(3e-3 * learning_rate(11 / 12, "cosine"))


def test_what_needs_no_gradient_is_in_no_optimizer():
    spec = small_spec("simclr", **{"model.freeze": "all"})
    stepper = stepper_of(spec, index=1)
    ((_, optimizer),) = stepper.optimizers.values()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in stepper.network.parameters() if p.requires_grad}
    assert not held & {id(p) for p in stepper.network.encoder.parameters()}
    for parameter in stepper.network.parameters():
        parameter.requires_grad_(False)
    assert build_optimizers(spec.optim, stepper.stage, stepper.network) == {}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_part_whose_only_term_is_ramped_to_zero_waits_for_it_also_under_a_scaler(name):
    values = {"losses.probe.ramp_up": 1.0, "optim.name": name}
    stepper = stepper_of(small_spec("simclr_joint", **values))
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # as fp16 has it on a GPU
    probe = stepper.network.probe.weight
    before = probe.clone()
    stepper.advance()
    assert torch.equal(probe, before)
    stepper.advance()
    assert not torch.equal(probe, before)


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


@pytest.mark.parametrize("gpus", [2.0, 2, 1.5])
def test_a_trial_has_one_gpu_at_most(gpus):
    with pytest.raises(ValueError, match=rf"is {gpus}.*, but must be at most 1: a trial trains on"):
        StudySpec(gpus_per_trial=gpus)
    assert [StudySpec(gpus_per_trial=g).gpus_per_trial for g in ("auto", 0.25, 1)] == [
        "auto",
        0.25,
        1,
    ]


def test_soft_kmeans_learns_digits():
    spec = small_spec(
        **{
            "budget.steps": 80,
            "data.batch_size": 16,
            "method.temperature": 0.01,
            "losses.cluster.weight": 0.1,
            "model.feature_dim": 64,
            "budget.eval_every": 80,
        }
    )
    assert run(spec)[-1].result["val/mean_class_accuracy"] > 0.7


# ---- a quick start -------------------------------------------------------------------------------


def test_training_a_small_encoder_loads_neither_torchs_compiler_nor_other_libraries_of_models():
    code = """
        import sys
        from tests.support.helpers import small_spec
        from tune_ssl.training.loop import train
        for method in ("supervised", "fixmatch"):
            list(train(small_spec(method)))
        print(sorted({"torch._dynamo", "torchvision", "timm"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- what the weights can do, and how long it may take -------------------------------------------


def test_the_raw_weights_are_reported_beside_their_average_and_choose_nothing():
    averaged = run(small_spec("supervised"))
    raw = [report.metrics["raw/mean_class_accuracy"] for report in averaged]
    alone = run(small_spec("supervised", **{"optim.ema_decay": 0.0}))
    assert all("raw/mean_class_accuracy" not in report.metrics for report in alone)
    # The same steps: what is averaged in one run is what the other one has
    assert raw == [report.metrics["val/mean_class_accuracy"] for report in alone]
    assert all("raw/mean_class_accuracy" not in report.result for report in averaged)


def test_a_trial_that_takes_too_long_is_stopped_at_an_evaluation_and_says_so(monkeypatch):
    spec = small_spec("supervised", **{"budget.max_minutes": 1.0})
    assert run(spec)[-1].last
    monkeypatch.setattr(Clock, "seconds", property(lambda clock: 61.0))
    reports = []
    with pytest.raises(TooLong, match="longer than budget.max_minutes") as caught:
        for report in train(spec):
            reports.append(report)
    assert [report.step for report in reports] == [4] and caught.value.step == 4
    assert caught.value.seconds == 61.0 and caught.value.images_seen == reports[0].images_seen
