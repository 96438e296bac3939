"""Our losses against what public code gives for the same numbers.

The values were worked out in float64 by the formulas of these files:

- USB: microsoft/Semi-supervised-learning, semilearn/algorithms: pseudolabel/pseudolabel.py (d4ca7b8c),
  pimodel/pimodel.py (7429eee7), vat/vat.py (57dd2bf9), flexmatch/utils.py (aca70354), freematch/freematch.py and
  freematch/utils.py (7065e703), softmatch/utils.py (5d09751f), adamatch/utils.py (aca70354), hooks/dist_align.py
  (cfad915b).
- google-research/uda, image/main.py (309e9a46).
- google-research/mixmatch, mixmatch.py (77bf67dd).
- CuriousAI/mean-teacher, pytorch/mean_teacher/losses.py and pytorch/main.py (bd4313d5).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.methods.slow import draw
from tests.methods.slow_targets import (
    fast_mean_teacher,
    fast_pi_model,
    fast_pseudo_label,
    fast_uda,
    stage_of,
    stepped,
    straight,
)
from tune_ssl.methods.mixmatch import sharpened, squared_error
from tune_ssl.methods.supervised import supervised_losses
from tune_ssl.methods.uda import annealed, most_confident
from tune_ssl.methods.vat import adversarial_noise, divergence, entropy
from tune_ssl.models import Teacher

CLOSE = 2e-6  # relative: ours are in float32
WEAK, STRONG, THIRD = draw(16, 5, 0, 3.0), draw(16, 5, 1, 3.0), draw(16, 5, 3, 3.0)
LABELED, LABELS = draw(8, 5, 2, 1.5), torch.tensor([1, 0, 2, 4, 2, 0, 1, 2])


def close(value: float, rel: float = CLOSE) -> object:
    return pytest.approx(value, rel=rel)


def test_pseudo_label_is_that_of_usb():
    assert fast_pseudo_label(WEAK, 0.7).item() == close(0.09050180115931816)


def test_squared_differences_are_those_of_usb_and_of_mean_teachers_authors():
    for fast in (fast_pi_model, fast_mean_teacher):
        assert fast(WEAK, STRONG).item() == close(0.1958576505447896)


def test_divergence_and_entropy_are_those_of_usb():
    assert divergence(WEAK, STRONG).item() == close(3.644732502683098)
    assert entropy(WEAK).item() == close(0.5736444682563075)


@pytest.mark.parametrize(
    "iterations, ours, theirs",
    [(1, 1.7883583482648362, 1.7857908373014313), (2, 1.794131770664067, 1.7884254808542464)],
)
def test_vat_finds_a_noise_as_adversarial_as_usb_does_in_double_precision(iterations, ours, theirs):
    """Theirs steps by 1e-6, which float32 rounds away: in float32 it finds 1.734 and 1.731. Ours steps by 0.01."""
    first, second = draw(16, 12, 50, 0.5), draw(12, 5, 51, 0.8)
    images = draw(8, 16, 52).view(8, 1, 4, 4)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(images.flatten(1) @ first) @ second

    clean = predict(images)
    torch.manual_seed(0)
    noise = adversarial_noise(predict, images, clean, 2.0, 0.01, iterations)
    found = divergence(clean, predict(images + noise)).item()
    assert found == close(ours, rel=1e-3) and found == close(theirs, rel=5e-3)


def test_uda_is_that_of_its_authors_but_for_the_entropy_of_the_targets():
    """Theirs is the divergence from the target, ours the cross-entropy. USB's is that without the temperature."""
    divergence_to_target, entropy_of_target = 2.873707503306818, 0.0036336872447255606
    found = fast_uda(WEAK, STRONG, 0.8, 0.4).item()
    assert found == close(divergence_to_target + entropy_of_target)
    assert fast_uda(WEAK, STRONG, 0.8, 1.0).item() == close(2.865687912895064)


@pytest.mark.parametrize(
    "annealing, most, theirs",
    [
        ("linear", [0.2, 0.44, 0.92], 3.19747075326706),
        ("log", [0.2, 0.8214958718812562, 0.9911128027694063], 1.670112445227002),
        ("exp", [0.20539035759926838, 0.22415790673785482, 0.6852245277701068], 3.19747075326706),
    ],
)
def test_the_annealed_signal_is_that_of_udas_authors(annealing, most, theirs):
    """USB leaves out by the largest probability and divides by all: 0.346, 1.461 and 0."""
    assert [most_confident(at, 5, annealing) for at in (0, 0.3, 0.9)] == pytest.approx(most)
    assert annealed(LABELED, LABELS, most[1]).item() == close(theirs)


def test_the_guess_of_mixmatch_and_its_two_terms_are_those_of_its_authors():
    guess = sharpened(WEAK, STRONG, 0.5)
    assert guess[0].tolist() == pytest.approx(
        [
            5.6964065547052424e-05,
            0.004020193195903328,
            0.010683383691649312,
            0.00027479231259256283,
            0.9849646667343078,
        ],
        rel=1e-5,
    )
    assert squared_error(THIRD, guess).item() == close(0.1443288517826967)
    soft = torch.eye(5)[LABELS] * 0.7 + 0.06
    assert supervised_losses(LABELED, soft).mean().item() == close(1.7050109328572531)


def steps(
    method: str,
    size: int = 16,
    scale: float = 3.0,
    pool: int = 0,
    buffers: dict[str, torch.Tensor] | None = None,
    count: int = 3,
    **options,
):
    """(losses, mask_rate) of steps on drawn logits, and the network."""
    stage = stage_of(method, **options)
    network = straight(stage, 5, unlabeled=pool)
    for name, value in (buffers or {}).items():
        getattr(network, name).copy_(value)
    found = []
    for step in range(count):
        weak, strong = draw(size, 5, 10 + step, scale), draw(size, 5, 20 + step, 3.0)
        labeled, ids = draw(8, 5, 30 + step, 3.0), None
        if pool:
            ids = (torch.arange(size) + 5 * step) % pool
        out = stepped(stage, network, (weak, strong), labeled_NK=labeled, ids_U=ids)
        losses = {term: loss.item() for term, loss in out.losses.items()}
        found.append((losses, out.diagnostics["mask_rate"].item()))
    return found, network


def test_flexmatch_counts_the_same_images_as_usb_over_eight_steps():
    expected = [
        (3.254225722544147, 1.0),
        (3.323693922761817, 1.0),
        (3.3343075499905046, 1.0),
        (2.395496134015139, 1.0),
        (3.143858163349565, 0.75),
        (2.863491074494098, 0.75),
        (3.468177509060408, 0.875),
        (2.4868269485260566, 0.625),
    ]
    found, network = steps("flexmatch", 8, 1.5, pool=12, count=8, threshold=0.7)
    assert [losses["consistency"] for losses, _ in found] == close([loss for loss, _ in expected])
    assert [rate for _, rate in found] == [rate for _, rate in expected]
    assert network.predicted_P.tolist() == [1, 2, 2, 2, 4, 0, 2, 0, 2, 2, 1, 3]


@pytest.mark.parametrize("sign, fairness", [(1, "published"), (-1, "agreement")])
def test_freematch_is_that_of_usb_with_the_sign_that_was_printed(sign, fairness):
    """Older versions of USB start the averages at 1, with which they count 7 of the first 16 images instead of 15."""
    expected = [
        (4.416846858665535, 0.9375, -5.185349214172869),
        (3.1608694048146484, 0.8125, -1.6735707307871324),
        (2.489901242833361, 0.6875, -1.6706041122862958),
    ]
    found, _ = steps("freematch", decay=0.3, fairness=fairness)
    for (losses, rate), (consistency, counted, term) in zip(found, expected, strict=True):
        assert losses["consistency"] == close(consistency) and rate == counted
        assert losses["fairness"] == close(sign * term)


def test_softmatch_is_that_of_usb_where_its_averages_start_from_the_first_batch():
    """USB adds 1e-6 to both sides of the alignment: 4e-7 of the loss. From 1 / K, as ours start, the first is 4.431."""
    expected = [
        (4.440888445828215, 0.9851730364188198),
        (3.255215486914039, 0.8738890596142055),
        (2.613672036143006, 0.7605759287881069),
    ]
    start = {"classes_K": torch.softmax(draw(16, 5, 10, 3.0), dim=1).mean(dim=0)}
    found, _ = steps("softmatch", buffers=start, decay=0.3)
    for (losses, rate), (consistency, weight) in zip(found, expected, strict=True):
        assert losses["consistency"] == close(consistency, rel=1e-5)
        assert rate == close(weight, rel=1e-5)


def test_adamatch_is_that_of_usb_where_its_averages_start_from_the_first_batch():
    """From 1 / K, as ours start, it counts the same of these images."""
    expected = [
        (2.793486954778594, 0.5625),
        (2.845627534227728, 0.6875),
        (2.269680606485376, 0.6875),
    ]
    start = {"unlabeled_K": torch.softmax(draw(16, 5, 10, 3.0), dim=1).mean(dim=0)}
    found, _ = steps("adamatch", buffers=start, decay=0.3, threshold=0.9)
    for (losses, rate), (consistency, counted) in zip(found, expected, strict=True):
        assert losses["consistency"] == close(consistency) and rate == counted


def test_the_teacher_follows_as_that_of_mean_teachers_authors():
    """They follow after each step, from its number 1 on; ours before each, so that its call number 0 copies."""
    student = nn.Linear(3, 2, bias=False)
    student.weight.data.copy_(draw(2, 3, 40, 3.0))
    teacher = Teacher(student)
    teacher.follow(student, 0.6, warm_up=True)
    for seed in range(41, 45):
        student.weight.data.copy_(draw(2, 3, seed, 3.0))
        teacher.follow(student, 0.6, warm_up=True)
    assert teacher.network.weight.flatten().tolist() == close(
        [
            0.3070302698612212,
            -2.446395547389984,
            1.918830595254898,
            1.2076329958438874,
            1.0599368438720707,
            -1.0860070967674258,
        ]
    )
