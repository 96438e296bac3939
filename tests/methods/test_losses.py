"""Each loss against its slow version (slow.py), its gradients, and its edge cases; the centroids."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from tests.methods import slow
from tests.methods.slow import consistency, diagnostics, draw, plain, rounded
from tests.methods.slow_targets import TARGET_LOSSES
from tune_ssl.methods import barlow_twins, moco, vicreg
from tune_ssl.methods.byol import decay_at, regression
from tune_ssl.methods.kmeans import augmentation_consistency, cluster_diagnostics, normalize
from tune_ssl.methods.simclr import contrastive_accuracy, embedding_std, nt_xent
from tune_ssl.methods.simclr_joint import info_nce
from tune_ssl.methods.simsiam import similarity
from tune_ssl.methods.supervised import balance_of, supervised_loss
from tune_ssl.models.heads import Centroids

LOSSES = slow.LOSSES | TARGET_LOSSES
NO_LOSS = ("mask_rate", "pseudo_label_accuracy", "contrastive_accuracy", "embedding_std")
TRAINED = [name for name in LOSSES if name not in NO_LOSS]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_loss_is_that_of_the_slow_loop_also_for_inputs_of_half_precision(name, dtype):
    loss = LOSSES[name]
    errors = {case: loss.error(case, dtype) for case in loss.inputs}
    assert {case: error for case, error in errors.items() if not error <= 2e-5} == {}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_is_a_float32_scalar_and_autocast_does_not_change_it(name, dtype):
    loss = LOSSES[name]
    arguments = rounded(next(iter(loss.inputs.values())), dtype)
    expected = loss.fast(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.fast(*arguments)
    assert found.dtype == torch.float32 and found.shape == () and torch.equal(found, expected)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_the_slow_versions_finite_differences(name):
    loss, step = LOSSES[name], 1e-5
    case = next(case for case in loss.inputs if case.startswith("a few"))
    arguments = loss.inputs[case]
    inputs = [a.clone().requires_grad_() if is_float(a) else a for a in arguments]
    loss.fast(*inputs).backward()
    for index, given in enumerate(inputs):
        if not is_float(given):
            continue
        if index in loss.still:
            assert given.grad is None or not given.grad.any(), index
            continue
        gradient = torch.zeros_like(given) if given.grad is None else given.grad
        for at in np.ndindex(*given.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.double() if is_float(a) else a for a in arguments]
                moved[index] = moved[index].clone()
                moved[index][at] += sign * step
                ends.append(loss.slow(*plain(moved)))
            expected = (ends[0] - ends[1]) / (2 * step)
            assert gradient[at].item() == pytest.approx(expected, rel=1e-3, abs=1e-5), (index, at)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_stay_finite_in_every_edge_case(name):
    for case, arguments in LOSSES[name].inputs.items():
        inputs = [a.clone().requires_grad_() if is_float(a) else a for a in arguments]
        LOSSES[name].fast(*inputs).backward()
        for given in inputs:
            if is_float(given) and given.grad is not None:
                assert torch.isfinite(given.grad).all(), case


def is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


# ---- unbalanced classes --------------------------------------------------------------------------

RARE = 2  # images of class 1 among 200 of class 0


def recalls(how: str) -> list[float]:
    """Of each class, on as many new images of each: a linear classifier trained on 100 times as many of class 0."""
    generator = torch.Generator().manual_seed(0)

    def images(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor(counts))
        centers = torch.tensor([[0.0, 0.0], [1.5, 1.5]])
        return centers[labels] + torch.randn(len(labels), 2, generator=generator), labels

    features, labels = images([100 * RARE, RARE])
    seen, wanted = images([500, 500])
    weights = torch.zeros(2, 2, requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weights, bias], lr=0.1)
    balance = balance_of(how, labels, 2)
    for _ in range(1000):
        optimizer.zero_grad()
        supervised_loss(features @ weights + bias, labels, balance).backward()
        optimizer.step()
    right = (seen @ weights + bias).argmax(dim=1) == wanted
    return [right[wanted == k].float().mean().item() for k in range(2)]


def test_a_balance_raises_the_recall_of_a_class_with_a_hundredth_of_the_images():
    found = {how: recalls(how) for how in ("none", "class_weights", "logit_adjustment")}
    assert found["none"][1] < 0.2
    for how in ("class_weights", "logit_adjustment"):
        assert found[how][1] > found["none"][1] + 0.4 and sum(found[how]) > sum(found["none"]) + 0.3


def test_class_weights_are_one_on_the_mean_over_the_images_and_parts_of_a_batch_add_up():
    labels = torch.tensor([0] * 9 + [1] * 3 + [3])
    balance = balance_of("class_weights", labels, 4)
    assert balance.weights_K[labels].mean().item() == pytest.approx(1)
    assert balance.weights_K[2] == 0 and balance.weights_K[1] == pytest.approx(
        3 * balance.weights_K[0]
    )
    logits, drawn = draw(12, 4, 0), torch.arange(12) % 4
    whole = supervised_loss(logits, drawn, balance)
    halves = [supervised_loss(logits[i::2], drawn[i::2], balance) for i in range(2)]
    assert whole.item() == pytest.approx(sum(halves).item() / 2)


def test_no_balance_of_a_class_without_a_label_is_infinite_and_none_is_no_balance():
    assert balance_of("none", torch.tensor([0, 1]), 2) is None
    for how in ("class_weights", "logit_adjustment"):
        for part in balance_of(how, torch.tensor([2, 2, 2]), 5):
            assert torch.isfinite(part).all() and part.shape == (5,)


# ---- augmentation consistency ------------------------------------------------------------------


def test_augmentation_consistency_is_zero_for_equal_views_and_finite_for_opposite_certainties():
    x = draw(5, 4, 0)
    assert augmentation_consistency(x, x, 0.5).item() == 0.0
    certain = torch.tensor([[1000.0, 0.0]])
    value = augmentation_consistency(certain, -certain, 1.0)
    assert value.item() == pytest.approx(1000.0)


def test_augmentation_consistency_teaches_both_views():
    weak, strong = draw(4, 3, 1).requires_grad_(), draw(4, 3, 2).requires_grad_()
    augmentation_consistency(weak, strong, 1.0).backward()
    assert weak.grad is not None and weak.grad.abs().sum() > 0
    assert strong.grad is not None and strong.grad.abs().sum() > 0


# ---- pseudo-labels -----------------------------------------------------------------------------


def test_unsure_images_count_in_the_mean_of_the_consistency():
    sure, unsure, strong = torch.tensor([[9.0, 0.0]]), torch.zeros(3, 2), draw(4, 2, 0)
    alone = consistency(sure, strong[:1], 0.95)
    among = consistency(torch.cat([sure, unsure]), strong, 0.95)
    assert among.item() == pytest.approx(alone.item() / 4)


def test_without_a_confident_image_the_consistency_and_its_gradient_are_zero():
    strong = draw(4, 3, 1).requires_grad_()
    loss = consistency(torch.zeros(4, 3), strong, 0.95)
    loss.backward()
    assert loss.item() == 0 and not strong.grad.any()


def test_the_pseudo_labels_get_no_gradient():
    weak, strong = draw(8, 3, 0, 5.0).requires_grad_(), draw(8, 3, 1).requires_grad_()
    consistency(weak, strong, 0.5).backward()
    assert weak.grad is None and strong.grad.any()


def test_a_confidence_of_exactly_the_threshold_is_confident():
    assert diagnostics(torch.zeros(1, 2), torch.tensor([0]), 0.5)["mask_rate"] == 1


def test_an_image_that_nobody_labeled_is_neither_right_nor_wrong():
    weak = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.1, 0.0]])
    hidden = torch.tensor([0, -1, 0, -1, 0])  # right, unknown, wrong, unknown, unsure
    found = diagnostics(weak, hidden, 0.9)
    assert found["mask_rate"].item() == pytest.approx(4 / 5)
    right, known = found["pseudo_label_accuracy"]
    assert (right.item(), known.item()) == (1, 2)
    _, none = diagnostics(weak, torch.full((5,), -1), 0.9)["pseudo_label_accuracy"]
    assert none.item() == 0


# ---- two views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [nt_xent, info_nce])
def test_one_image_has_nothing_to_repel(contrast):
    assert contrast(draw(1, 4, 0), draw(1, 4, 1), 0.01).item() == 0


@pytest.mark.parametrize("count", [2, 5])
def test_collapsed_features_cost_the_logarithm_of_the_choices(count):
    same = torch.ones(count, 3)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(2 * count - 1))
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(count))


def test_only_nt_xent_repels_images_within_a_view():
    near = torch.tensor([[1.0, 0.0], [1.0, 0.01]])  # two images alike in the first view only
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    turned = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    across = [info_nce(first, turned, 0.5).item() for first in (near, apart)]
    assert across[0] == pytest.approx(across[1], abs=0.02)
    assert nt_xent(near, turned, 0.5) > nt_xent(apart, turned, 0.5) + 0.1


@pytest.mark.parametrize("contrast", [nt_xent, info_nce])
def test_a_contrast_does_not_depend_on_order_length_or_which_view_is_first(contrast):
    first, second, order = draw(6, 4, 0), draw(6, 4, 1), torch.randperm(6)
    expected = contrast(first, second, 0.5).item()
    assert contrast(second, first, 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert contrast(first[order], second[order], 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert contrast(3 * first, 0.1 * second, 0.5).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("contrast", [nt_xent, info_nce])
def test_a_contrast_of_matched_views_is_less_than_of_swapped_ones(contrast):
    views = draw(6, 8, 0)
    assert contrast(views, views, 0.01) < 1e-6 < 10 < contrast(views, views.flip(0), 0.01)


def test_contrastive_accuracy_is_one_for_own_views_and_zero_for_those_of_others():
    views = torch.eye(4)
    assert contrastive_accuracy(views, views) == 1
    assert contrastive_accuracy(views, views.roll(1, 0)) == 0


def test_similarity_runs_from_minus_one_for_equal_to_one_for_opposite_directions():
    rows = draw(5, 3, 0)
    assert similarity(rows, 7 * rows).item() == pytest.approx(-1)
    assert similarity(rows, -rows).item() == pytest.approx(1)


def test_embedding_std_is_one_where_rows_point_everywhere_and_zero_where_all_are_the_same():
    assert embedding_std(draw(4000, 16, 0)).item() == pytest.approx(1, abs=0.02)
    assert embedding_std(torch.ones(9, 4)).item() == pytest.approx(0, abs=1e-6)
    assert embedding_std(torch.zeros(9, 4)).item() == 0
    assert embedding_std(draw(1, 4, 0)).item() == 0


def test_diagnostics_carry_no_gradient():
    first, second = draw(5, 3, 0).requires_grad_(), draw(5, 3, 1).requires_grad_()
    found = diagnostics(first, torch.zeros(5, dtype=torch.int64), 0.1)
    flat = [found["mask_rate"], *found["pseudo_label_accuracy"]]
    flat += [contrastive_accuracy(first, second), embedding_std(first)]
    assert not any(value.requires_grad for value in flat)


def test_regression_runs_from_zero_for_equal_to_four_for_opposite_directions():
    rows = draw(5, 3, 0)
    assert regression(rows, 7 * rows).item() == pytest.approx(0, abs=1e-12)
    assert regression(rows, -rows).item() == pytest.approx(4)


def test_the_targets_decay_rises_from_its_start_to_one_by_a_cosine():
    # target_ema of google-deepmind/deepmind-research, byol/utils/schedules.py (8457046), of 1000 steps
    found = [decay_at(at, 0.996) for at in (0, 0.25, 0.5, 0.999, 1)]
    expected = [0.996, 0.9965857864376269, 0.998, 0.9999999901304037, 1]
    assert found == pytest.approx(expected, abs=1e-14)


def test_a_key_that_is_no_negative_says_nothing_and_without_one_there_is_nothing_to_lose():
    queries, keys, queue = draw(4, 3, 0), draw(4, 3, 1), draw(6, 3, 2)
    others = torch.arange(24).reshape(4, 6) % 5 > 0
    found = moco.contrast(moco.queue_logits(queries, keys, queue, others, 0.1))
    fewer = torch.zeros(4)
    for i in range(4):
        logits = moco.queue_logits(
            queries[[i]], keys[[i]], queue[others[i]], others[[i]][:, others[i]], 0.1
        )
        fewer[i] = moco.contrast(logits)
    assert found.item() == pytest.approx(fewer.mean().item(), rel=1e-6)
    none = moco.queue_logits(queries, keys, queue, others & False, 0.1)
    assert moco.contrast(none).item() == 0


def test_views_that_agree_have_no_invariance_loss_and_copied_dimensions_are_redundant():
    apart = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    copied = apart[:, [0, 0]]
    for rows, redundant in ((apart, 0), (copied, 2)):
        correlation = barlow_twins.cross_correlation(3 * rows + 5, rows - 1)
        assert barlow_twins.invariance(correlation).item() == pytest.approx(0, abs=1e-9)
        assert barlow_twins.redundancy(correlation).item() == pytest.approx(redundant, rel=1e-4)
    opposite = barlow_twins.cross_correlation(apart, -apart)
    assert barlow_twins.invariance(opposite).item() == pytest.approx(8, rel=1e-4)


def test_variance_asks_for_a_deviation_of_one_and_no_more_and_covariance_for_none_in_common():
    spread = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert vicreg.variance(spread).item() == vicreg.variance(9 * spread + 4).item() == 0
    assert vicreg.variance(torch.ones(4, 2)).item() == pytest.approx(0.99)
    assert vicreg.covariance(9 * spread + 4).item() == pytest.approx(0, abs=1e-9)
    assert vicreg.covariance(spread[:, [0, 0]]).item() == pytest.approx((4 / 3) ** 2)


# What a public implementation gives for `waves`, with its commit; computed in float64 by its own code.


def waves(count: int, phase: float) -> torch.Tensor:
    rows = torch.sin(1.7 * torch.arange(4 * count, dtype=torch.float64) + phase)
    return rows.reshape(count, 4) * torch.linspace(0.5, 2, 4, dtype=torch.float64)


A, B, QUEUE = waves(6, 0.0), waves(6, 0.4), waves(9, 5.0)
OTHERS = torch.ones(6, 9) > 0
C = barlow_twins.cross_correlation(A, B)
PUBLIC = [
    # vturrisi/solo-learn 2269ce6, solo/losses/byol.py
    ("regression", regression(A, B), 0.16750019422827944),
    # lucidrains/byol-pytorch 0095aa4: both views' losses are added
    (
        "regression of both views",
        regression(waves(6, 1), waves(6, 4.5)) + regression(waves(6, 2), waves(6, 3)),
        4.813266715669093,
    ),
    # facebookresearch/moco 4397a04, moco/builder.py: there each key of the queue is a negative
    (
        "contrastive (MoCo)",
        moco.contrast(moco.queue_logits(A, B, QUEUE, OTHERS, 0.1)),
        1.5260905933720055,
    ),
    (
        "contrastive (MoCo), T 0.2",
        moco.contrast(moco.queue_logits(A, B, QUEUE, OTHERS, 0.2)),
        1.4667541998389266,
    ),
    # facebookresearch/barlowtwins 046eec3, main.py; lightly 11cfbc0 divides by the unbiased deviation and by N
    ("invariance (Barlow Twins)", barlow_twins.invariance(C), 0.2497208118459129),
    ("redundancy", barlow_twins.redundancy(C), 5.09188831221656),
    # facebookresearch/vicreg 08c8c0c, main_vicreg.py; solo-learn 53e8139 adds the views' variance terms: twice as much
    ("invariance (VICReg)", vicreg.invariance(A, B), 0.14852599241600592),
    ("variance", (vicreg.variance(A) + vicreg.variance(B)) / 2, 0.3825895667518061),
    ("covariance", vicreg.covariance(A) + vicreg.covariance(B), 1.3631194705267249),
]


@pytest.mark.parametrize("name, found, expected", PUBLIC, ids=[name for name, *_ in PUBLIC])
def test_a_loss_is_that_of_a_public_implementation(name, found, expected):
    assert found.item() == pytest.approx(expected, rel=1e-6)


# ---- clusters ----------------------------------------------------------------------------------


def test_normalised_rows_have_length_one_and_zero_rows_stay_finite():
    rows = torch.cat([draw(3, 8, 0), torch.zeros(1, 8)])
    lengths = normalize(rows).norm(dim=1)
    assert torch.allclose(lengths[:3], torch.ones(3)) and lengths[3] == 0


def test_cluster_diagnostics_of_even_and_of_collapsed_clusters():
    even = cluster_diagnostics(torch.eye(4))
    assert even["cluster_entropy"].item() == pytest.approx(np.log(4))
    assert even["largest_cluster_share"].item() == pytest.approx(0.25)
    one = cluster_diagnostics(torch.eye(4)[[2, 2, 2]])
    assert one["cluster_entropy"].item() == 0.0 and one["largest_cluster_share"].item() == 1.0


# ---- centroids ---------------------------------------------------------------------------------


def slow_update(centers, features, weights, momentum):
    new = []
    for k, center in enumerate(centers):
        mass = sum(w[k] for w in weights)
        if mass == 0:
            new.append(center)
            continue
        mean = sum(w[k] * f for w, f in zip(weights, features, strict=True)) / mass
        moved = momentum * center + (1 - momentum) * mean
        new.append(moved / np.linalg.norm(moved))
    return np.array(new)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_centroid_moves_towards_the_weighted_mean_and_an_empty_one_stays(momentum):
    centroids = Centroids(3, 4)
    features, weights = normalize(draw(6, 4, 5)), torch.rand(6, 3)
    weights[:, 1] = 0
    expected = slow_update(
        centroids.centers_KD.double().numpy(),
        features.double().numpy(),
        weights.double().numpy(),
        momentum,
    )
    centroids.update(features, weights, momentum)
    np.testing.assert_allclose(centroids.centers_KD.numpy(), expected, atol=1e-5)


def test_labeled_means_start_each_centroid_at_its_own_class():
    centroids = Centroids(3, 4)
    features, labels = normalize(draw(9, 4, 7)), torch.arange(9) % 3
    centroids.start("labeled_means", features, labels, features)
    for k in range(3):
        mean = features[labels == k].mean(dim=0)
        assert torch.allclose(centroids.centers_KD[k], mean / mean.norm(), atol=1e-6)


@pytest.mark.parametrize("how", ["kmeans++", "random"])
def test_other_starts_are_images_of_the_sample_and_follow_the_seed(how):
    features = normalize(draw(30, 4, 7))

    def start() -> torch.Tensor:
        torch.manual_seed(3)
        centroids = Centroids(5, 4)
        centroids.start(how, features[:10], torch.arange(10) % 5, features[10:])
        return centroids.centers_KD

    centers = start()
    assert torch.equal(centers, start())
    distances = torch.cdist(centers, features)
    assert torch.all(distances.min(dim=1).values < 1e-3)
    assert len(set(distances.argmin(dim=1).tolist())) == 5


@pytest.mark.parametrize("how", ["kmeans++", "random", "labeled_means"])
def test_centroids_start_where_there_are_fewer_images_than_clusters(how):
    torch.manual_seed(0)
    centroids = Centroids(200, 4)
    before, features = centroids.centers_KD.clone(), normalize(draw(150, 4, 7))
    centroids.start(how, features[:50], torch.arange(50), features[50:])
    moved = (centroids.centers_KD != before).any(dim=1)
    count = 50 if how == "labeled_means" else 150
    assert moved[:count].all() and not moved[count:].any()
    assert torch.allclose(centroids.centers_KD.norm(dim=1), torch.ones(200))


@pytest.mark.parametrize("every, solved", [(1, 30), (10, 3), (7, 5), (100, 1)])
def test_clusters_are_assigned_in_the_first_match_and_every_nth_after_it(
    every, solved, monkeypatch
):
    import scipy.optimize

    calls, solve = [], scipy.optimize.linear_sum_assignment

    def counted(*arguments, **options):
        calls.append(1)
        return solve(*arguments, **options)

    monkeypatch.setattr(scipy.optimize, "linear_sum_assignment", counted)
    centroids, often = Centroids(4, 2), Centroids(4, 2)
    labels = torch.arange(40) % 4
    for _ in range(30):
        centroids.match((labels + 1) % 4, labels, every)
    assert len(calls) == solved and centroids.matches == 30
    for _ in range(30):
        often.match((labels + 1) % 4, labels)
    assert torch.equal(centroids.counts_KK, often.counts_KK)
    assert centroids.cluster_of_class.tolist() == often.cluster_of_class.tolist() == [1, 2, 3, 0]


def test_loaded_centroids_go_on_counting_and_those_of_an_older_model_begin_anew():
    labels = torch.arange(8) % 4
    first, second = Centroids(4, 2), Centroids(4, 2)
    for _ in range(7):
        first.match(labels, labels, 10)
    second.load_state_dict(first.state_dict())
    for centroids in (first, second):
        for _ in range(3):
            centroids.match((labels + 1) % 4, labels, 10, memory=0.0)
        assert centroids.cluster_of_class.tolist() == [0, 1, 2, 3]  # assigned in the 1st call
        centroids.match((labels + 1) % 4, labels, 10, memory=0.0)  # and in the 11th
        assert centroids.cluster_of_class.tolist() == [1, 2, 3, 0]
    older = {key: value for key, value in first.state_dict().items() if key != "matches"}
    second.load_state_dict(older)
    assert second.matches == 0


def test_matching_finds_the_best_one_to_one_map_of_clusters_to_classes():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        centroids = Centroids(4, 2)
        labels = torch.randint(4, (40,), generator=generator)
        clusters = torch.randint(4, (40,), generator=generator)
        centroids.match(clusters, labels)

        def hits(cluster_of_class, labels=labels, clusters=clusters) -> int:
            return sum(cluster_of_class[t] == c for t, c in zip(labels, clusters, strict=True))

        best = max(hits(torch.tensor(p)) for p in permutations(range(4)))
        assert hits(centroids.cluster_of_class) == best
