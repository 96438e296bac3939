"""Batches in parts: the same step with less memory; and what happens where a device has too little of it."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from tests.methods.test_methods import CHOICES, spec_of
from tests.support.helpers import small_spec
from tests.support.runs import write_study
from tune_ssl.base.errors import UserError
from tune_ssl.data.loading import load_data
from tune_ssl.methods.plugins import load_plugins
from tune_ssl.models import cvae
from tune_ssl.study.study import load_study
from tune_ssl.study.trial import build_trial, override
from tune_ssl.training.loop import train
from tune_ssl.training.out_of_memory import TooLarge, out_of_memory, smaller, with_retry
from tune_ssl.training.stepper import Stepper

CPU = torch.device("cpu")
WHOLE = {"simclr": "pretrain", "simsiam": "pretrain", "simclr_joint": "joint", "kmeans": "train"}
WHOLE |= dict.fromkeys(("byol", "moco", "barlow_twins", "vicreg"), "pretrain")
WHOLE |= {name: "train" for name in ("soft_kmeans", "mean_teacher", "vat", "mixmatch")}
WHOLE |= {name: "train" for name in ("flexmatch", "freematch", "softmatch", "adamatch")}

HUNGRY = """
from typing import Literal
import torch
from pydantic import Field
from tune_ssl.methods.base import Method
from tune_ssl.methods.supervised import SupervisedSpec, SupervisedStage
from tune_ssl.base.spec import LossSpec

class HungrySpec(SupervisedSpec):
    name: Literal["hungry"] = "hungry"
    fits: int = Field(4, description="images that the device has memory for")

class HungryStage(SupervisedStage[HungrySpec]):
    def step(self, network, batch):
        if len(batch.labels_N) > self.spec.fits:
            torch.empty(2**50, dtype=torch.uint8)
        return super().step(network, batch)

class Hungry(Method[HungrySpec]):
    name = "hungry"
    Spec = HungrySpec
    losses = {"supervised": LossSpec()}
    stage_types = (HungryStage,)
"""


def stepped(spec, stage, network, data, parts):
    """One step from the weights of `network`, without BatchNorm's effect: (gradients, means)."""
    torch.manual_seed(0)
    spec = spec.model_copy(
        update={"compute": spec.compute.model_copy(update={"accumulate": parts})}
    )
    stepper = Stepper(spec, stage, network, data, steps=10, before=0)
    stepper.step = stepper.reported = 5  # past every ramp's beginning
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    stepper.advance()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return gradients, stepper.take_means()


@pytest.mark.parametrize("name, chosen", CHOICES)
def test_parts_of_a_batch_give_the_gradients_and_the_means_of_the_whole_one(
    name, chosen, monkeypatch
):
    """Of every stage that says so; the CVAE's noise, which no two draws share, is left out."""
    monkeypatch.setattr(cvae, "_noise_like", lambda mean_NZ, generator: torch.zeros_like(mean_NZ))
    spec = spec_of(name, chosen, **{"data.mu": 2, "optim.grad_clip": None})
    data, network = load_data(spec.data, 0, CPU), None
    for stage in spec.stages():
        torch.manual_seed(1)
        network = stage.build(data.task, spec.model, network)
        if stage.fits:
            continue
        if not stage.splits_batches:
            assert stage.name == WHOLE[name]
            continue
        kept = {key: value.clone() for key, value in network.state_dict().items()}
        whole, means = stepped(spec, stage, network, data, 1)
        network.load_state_dict(kept)
        cut, cut_means = stepped(spec, stage, network, data, 4)
        assert cut.keys() == whole.keys() and whole
        for key, gradient in whole.items():
            torch.testing.assert_close(cut[key], gradient, atol=1e-6, rtol=1e-4, msg=key)
        assert cut_means == pytest.approx(means, rel=1e-4, abs=1e-6, nan_ok=True)
        network.load_state_dict(kept)


def test_a_run_in_parts_trains_and_counts_steps_and_images_as_ever():
    whole = list(train(small_spec("fixmatch")))
    cut = list(train(small_spec("fixmatch", **{"compute.accumulate": 4})))
    assert [(r.step, r.images_seen) for r in cut] == [(r.step, r.images_seen) for r in whole]
    assert [r.metrics.keys() for r in cut] == [r.metrics.keys() for r in whole]


@pytest.mark.parametrize("name, stage", WHOLE.items())
def test_a_stage_that_compares_the_images_of_a_batch_refuses_parts(name, stage):
    with pytest.raises(UserError) as refused:
        small_spec(name, **{"compute.accumulate": 2})
    assert str(refused.value) == (
        f"compute.accumulate is 2, but must be 1: stage {stage!r} of {name} needs all images of a "
        "batch at once"
    )


def test_a_share_of_cvae_images_is_counted_in_whole_batches():
    with pytest.raises(
        UserError, match="stage 'train' of fixmatch_cvae needs all images of a batch"
    ):
        small_spec("fixmatch_cvae", **{"compute.accumulate": 2, "method.cvae_share": 0.5})


def test_what_does_not_divide_is_refused_with_its_line(tmp_path):
    study = """fixed:
  data: {dataset: digits, num_labels: 50, batch_size: 9}
  method: {name: supervised}
  compute:
    accumulate: 2
search:
  optim.lr: {log_uniform: [1e-4, 1e-2]}
"""
    path = write_study(tmp_path, study)
    with pytest.raises(UserError) as refused:
        load_study(path)
    text = "compute.accumulate is 2, but must divide data.batch_size, 9"
    assert str(refused.value) == f"{path}:5: {text}"


# ---- too little memory ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hungry(tmp_path_factory):
    """`hungry(**values)`: a spec of a method that asks for 2**50 bytes where a batch exceeds method.fits."""
    plugin = tmp_path_factory.mktemp("plugin") / "hungry.py"
    plugin.write_text(HUNGRY)
    load_plugins([plugin])
    return lambda **values: small_spec("hungry", **values)


def test_a_trial_that_does_not_fit_is_trained_once_more_in_parts(hungry):
    tried, frames = [], []

    def attempt(spec):
        held = torch.zeros(10)  # stands for all that the first attempt had on the device
        frames.append(weakref.ref(held))
        if tried:
            assert frames[0]() is None, "the first attempt still holds memory"
        tried.append(spec.compute.accumulate)
        return [report.step for report in train(spec)]

    assert with_retry(attempt, hungry()) == [4, 8, 12]
    assert tried == [1, 2]


@pytest.mark.parametrize(
    "values, tried, reason",
    [
        ({"method.fits": 2}, [1, 2], "also with each batch in 2 parts"),
        ({"data.batch_size": 9}, [1], "a batch of 9 cannot be cut into 2 equal parts"),
    ],
)
def test_where_smaller_parts_do_not_help_a_person_is_told_what_would(hungry, values, tried, reason):
    attempts = []

    def attempt(spec):
        attempts.append(spec.compute.accumulate)
        list(train(spec))

    with pytest.raises(TooLarge) as failed:
        with_retry(attempt, hungry(**values))
    assert attempts == tried
    assert str(failed.value).startswith("out of memory: ")
    remedy = "halve data.batch_size or data.mu, or give it a device with more memory"
    assert str(failed.value).endswith(f"; {reason}; {remedy}")


def test_what_is_no_lack_of_memory_is_raised_as_it_is():
    def attempt(spec):
        attempts.append(spec)
        raise RuntimeError("shapes do not match")

    attempts = []
    with pytest.raises(RuntimeError, match="shapes do not match"):
        with_retry(attempt, small_spec("supervised"))
    assert len(attempts) == 1


def test_a_smaller_spec_doubles_the_parts_and_changes_nothing_else():
    spec = small_spec("fixmatch")
    less = smaller(smaller(spec))
    assert less == override(spec, {"compute.accumulate": 4})
    assert build_trial(less.model_dump()) == less
    assert smaller(small_spec("simclr")) == (
        "stage 'pretrain' of simclr needs all images of a batch at once"
    )


def test_every_allocators_failure_is_known():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50, dtype=torch.uint8)
    for error in (
        real.value,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        MemoryError(),
    ):
        assert out_of_memory(error), error
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not out_of_memory(OSError(12, "Cannot allocate memory"))


def test_a_trial_whose_first_attempt_ran_out_before_a_crash_does_not_make_it_again():
    attempts = []
    with_retry(
        lambda spec: attempts.append(spec.compute.accumulate), small_spec("fixmatch"), ran_out=True
    )
    assert attempts == [2]
