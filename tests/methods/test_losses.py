"""Each loss against a slow second implementation written from its formula, in float64 numpy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from tune_ssl.methods.kmeans import augmentation_consistency, cluster_diagnostics, normalize
from tune_ssl.methods.soft_kmeans import cluster_consistency
from tune_ssl.methods.supervised import supervised_loss
from tune_ssl.models.heads import Centroids

SHAPES = [(1, 2), (2, 3), (7, 10), (64, 5)]


def logits(n: int, k: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * scale


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def slow_cross_entropy(rows: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([-np.log(softmax(r)[t]) for r, t in zip(rows, labels, strict=True)]))


@pytest.mark.parametrize("n, k", SHAPES)
def test_supervised_is_the_mean_cross_entropy(n, k):
    x, labels = logits(n, k), torch.arange(n) % k
    expected = slow_cross_entropy(x.double().numpy(), labels.numpy())
    assert supervised_loss(x, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("n, k", SHAPES)
def test_augmentation_consistency_is_the_symmetric_kl_of_the_softmaxes(n, k, temperature):
    weak, strong = logits(n, k, 1, 0.5), logits(n, k, 2, 0.5)
    total = 0.0
    for a, b in zip(weak.double().numpy(), strong.double().numpy(), strict=True):
        # in log space here too: at T = 0.01 a probability underflows to 0 even in float64
        la = a / temperature - np.logaddexp.reduce(a / temperature)
        lb = b / temperature - np.logaddexp.reduce(b / temperature)
        total += 0.5 * float((np.exp(la) * (la - lb)).sum() + (np.exp(lb) * (lb - la)).sum())
    found = augmentation_consistency(weak, strong, temperature).item()
    assert found == pytest.approx(total / n, rel=1e-4, abs=1e-7)


def test_augmentation_consistency_is_zero_for_equal_views_and_finite_for_opposite_certainties():
    x = logits(5, 4)
    assert augmentation_consistency(x, x, 0.5).item() == 0.0
    certain = torch.tensor([[1000.0, 0.0]])
    value = augmentation_consistency(certain, -certain, 1.0)
    assert value.item() == pytest.approx(1000.0)


def test_augmentation_consistency_teaches_both_views():
    weak, strong = logits(4, 3, 1).requires_grad_(), logits(4, 3, 2).requires_grad_()
    augmentation_consistency(weak, strong, 1.0).backward()
    assert weak.grad is not None and weak.grad.abs().sum() > 0
    assert strong.grad is not None and strong.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    weak, strong = logits(8, 4, 1).to(dtype), logits(8, 4, 2).to(dtype)
    for found, expected in (
        (
            augmentation_consistency(weak, strong, 1.0),
            augmentation_consistency(weak.double(), strong.double(), 1.0),
        ),
        (
            supervised_loss(weak, torch.arange(8) % 4),
            supervised_loss(weak.double(), torch.arange(8) % 4),
        ),
    ):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("n, k", SHAPES)
def test_cluster_consistency_is_half_of_both_cross_entropies_against_the_nearest_cluster(n, k):
    parts = [logits(n, k, seed) for seed in range(4)]
    a, b, c, d = (part.double().numpy() for part in parts)
    expected = 0.5 * (
        slow_cross_entropy(b, d.argmax(axis=1)) + slow_cross_entropy(a, c.argmax(axis=1))
    )
    assert cluster_consistency(*parts).item() == pytest.approx(expected, rel=1e-5)


def test_normalised_rows_have_length_one_and_zero_rows_stay_finite():
    rows = torch.cat([logits(3, 8), torch.zeros(1, 8)])
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
    features, weights = normalize(logits(6, 4, 5)), torch.rand(6, 3)
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
    features, labels = normalize(logits(9, 4, 7)), torch.arange(9) % 3
    centroids.start("labeled_means", features, labels, features)
    for k in range(3):
        mean = features[labels == k].mean(dim=0)
        assert torch.allclose(centroids.centers_KD[k], mean / mean.norm(), atol=1e-6)


@pytest.mark.parametrize("how", ["kmeans++", "random"])
def test_other_starts_are_images_of_the_sample_and_follow_the_seed(how):
    features = normalize(logits(30, 4, 7))

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
