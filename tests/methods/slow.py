"""Each loss a second time, slowly: from its formula, with plain Python loops, in float64.

`LOSSES` has both versions by name, and the inputs on which they must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tune_ssl.methods import barlow_twins, moco, vicreg
from tune_ssl.methods.byol import regression
from tune_ssl.methods.fixmatch import pseudo_labels, target_diagnostics, weighted_consistency
from tune_ssl.methods.kmeans import augmentation_consistency
from tune_ssl.methods.simclr import contrastive_accuracy, embedding_std, nt_xent
from tune_ssl.methods.simclr_joint import info_nce
from tune_ssl.methods.simsiam import similarity
from tune_ssl.methods.soft_kmeans import cluster_consistency
from tune_ssl.methods.supervised import balance_of, supervised_loss
from tune_ssl.models.cvae import Gaussian, kl_divergence, reconstruction_loss

SMALLEST = torch.finfo(torch.float32).tiny  # what is below is 0 in float32

Row = list[float]
Rows = list[Row]


def mean(values: Row) -> float:
    return math.fsum(values) / len(values)


def log_softmax(row: Row) -> Row:
    highest = max(row)
    total = math.fsum(math.exp(x - highest) for x in row)
    return [x - highest - math.log(total) for x in row]


def likeliest(row: Row) -> int:
    """The index of the largest; the first one of equals."""
    return row.index(max(row))


def cosine(a: Row, b: Row) -> float:
    """A row counts as at least 1e-6 long, so that one of zeros is at right angles to all."""
    lengths = [max(math.sqrt(math.fsum(x * x for x in row)), 1e-6) for row in (a, b)]
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths[0] / lengths[1]


# ---- classes -----------------------------------------------------------------------------------


def slow_supervised(logits: Rows, labels: list[int]) -> float:
    return mean([-log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)])


def slow_class_weights(logits: Rows, labels: list[int], all_labels: list[int]) -> float:
    """Each image weighs 1 / (its class's images), times what makes the mean weight of all labeled images 1."""
    factor = len(all_labels) / math.fsum(1 / all_labels.count(label) for label in all_labels)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label in all_labels:
            total += factor / all_labels.count(label) * -log_softmax(row)[label]
    return total / len(labels)


def slow_logit_adjustment(logits: Rows, labels: list[int], all_labels: list[int]) -> float:
    """Equation 10 of arXiv 2007.07314 as it stands there: the log of one plus a sum over the other classes."""
    priors = [max(1, all_labels.count(k)) / len(all_labels) for k in range(len(logits[0]))]
    losses = []
    for row, y in zip(logits, labels, strict=True):
        others = [k for k in range(len(row)) if k != y]
        parts = [math.log(priors[k] / priors[y]) + row[k] - row[y] for k in others]
        highest = max(0.0, *parts) if parts else 0.0
        total = math.exp(-highest) + math.fsum(math.exp(part - highest) for part in parts)
        losses.append(highest + math.log(total))
    return mean(losses)


def slow_augmentation_consistency(weak: Rows, strong: Rows, temperature: float) -> float:
    losses = []
    for a, b in zip(weak, strong, strict=True):
        p, q = (log_softmax([x / temperature for x in row]) for row in (a, b))
        forth = math.fsum(math.exp(x) * (x - y) for x, y in zip(p, q, strict=True))
        back = math.fsum(math.exp(y) * (y - x) for x, y in zip(p, q, strict=True))
        losses.append((forth + back) / 2)
    return mean(losses)


def slow_cluster_consistency(
    logits_n: Rows, logits_u: Rows, clusters_n: Rows, clusters_u: Rows
) -> float:
    unlabeled = slow_supervised(logits_u, [likeliest(row) for row in clusters_u])
    labeled = slow_supervised(logits_n, [likeliest(row) for row in clusters_n])
    return (unlabeled + labeled) / 2


def confident(row: Row, threshold: float) -> bool:
    return math.exp(max(log_softmax(row))) >= threshold


def slow_consistency(weak: Rows, strong: Rows, threshold: float) -> float:
    total = 0.0
    for a, b in zip(weak, strong, strict=True):
        if confident(a, threshold):
            total += -log_softmax(b)[likeliest(a)]
    return total / len(weak)  # over all images, confident or not


def slow_mask_rate(weak: Rows, hidden: list[int], threshold: float) -> float:
    return sum(confident(row, threshold) for row in weak) / len(weak)


def slow_pseudo_label_accuracy(weak: Rows, hidden: list[int], threshold: float) -> float:
    rights = []
    for row, label in zip(weak, hidden, strict=True):
        if confident(row, threshold) and label != -1:
            rights.append(float(likeliest(row) == label))
    return mean(rights) if rights else math.nan


# ---- two views ---------------------------------------------------------------------------------


def slow_nt_xent(first: Rows, second: Rows, temperature: float) -> float:
    views, losses = first + second, []
    for i, view in enumerate(views):
        partner = (i + len(first)) % len(views)
        others = [k for k in range(len(views)) if k != i]
        scaled = [cosine(view, views[k]) / temperature for k in others]
        losses.append(-log_softmax(scaled)[others.index(partner)])
    return mean(losses)


def slow_info_nce(first: Rows, second: Rows, temperature: float) -> float:
    losses = []
    for a, b in ((first, second), (second, first)):
        for i, row in enumerate(a):
            losses.append(-log_softmax([cosine(row, other) / temperature for other in b])[i])
    return mean(losses)


def slow_similarity(predicted: Rows, target: Rows) -> float:
    return mean([-cosine(p, z) for p, z in zip(predicted, target, strict=True)])


def slow_contrastive_accuracy(first: Rows, second: Rows) -> float:
    hits = [likeliest([cosine(row, other) for other in second]) == i for i, row in enumerate(first)]
    return sum(hits) / len(hits)


def slow_embedding_std(features: Rows) -> float:
    units = [[x / max(math.hypot(*row), 1e-6) for x in row] for row in features]
    deviations = []
    for column in zip(*units, strict=True):
        center = mean(list(column))
        deviations.append(math.sqrt(mean([(x - center) ** 2 for x in column])))
    return mean(deviations) * math.sqrt(len(features[0]))


def slow_regression(predicted: Rows, target: Rows) -> float:
    """Equation 2 of arXiv 2006.07733 in its second form: 2 - 2 cosine; a row of zeros has no direction."""
    losses = []
    for p, z in zip(predicted, target, strict=True):
        losses.append(any(p) + any(z) - 2 * cosine(p, z))
    return mean(losses)


def slow_queue_contrast(
    queries: Rows, keys: Rows, queue: Rows, others: list[list[bool]], temperature: float
) -> float:
    losses = []
    for query, key, chosen in zip(queries, keys, others, strict=True):
        negatives = [row for row, other in zip(queue, chosen, strict=True) if other]
        scaled = [cosine(query, row) / temperature for row in [key, *negatives]]
        losses.append(-log_softmax(scaled)[0])
    return mean(losses)


def columns(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


def product_of_deviations(a: Row, b: Row) -> float:
    """Sum over the images of (a - mean of a) (b - mean of b)."""
    return math.fsum((x - mean(a)) * (y - mean(b)) for x, y in zip(a, b, strict=True))


def slow_correlation(a: Row, b: Row) -> float:
    """Equation 2 of arXiv 2103.03230, with the authors' BatchNorm: 1e-5 is added to each variance."""
    lengths = [math.sqrt(product_of_deviations(x, x) / len(x) + 1e-5) for x in (a, b)]
    return product_of_deviations(a, b) / len(a) / lengths[0] / lengths[1]


def slow_barlow_invariance(first: Rows, second: Rows) -> float:
    pairs = zip(columns(first), columns(second), strict=True)
    return math.fsum((1 - slow_correlation(a, b)) ** 2 for a, b in pairs)


def slow_redundancy(first: Rows, second: Rows) -> float:
    total = 0.0
    for i, a in enumerate(columns(first)):
        total += math.fsum(
            slow_correlation(a, b) ** 2 for j, b in enumerate(columns(second)) if j != i
        )
    return total


def slow_vicreg_invariance(first: Rows, second: Rows) -> float:
    squares = []
    for a, b in zip(first, second, strict=True):
        squares += [(x - y) ** 2 for x, y in zip(a, b, strict=True)]
    return mean(squares)


def slow_variance(features: Rows) -> float:
    hinges = []
    for column in columns(features):
        var = product_of_deviations(column, column) / max(len(column) - 1, 1)
        hinges.append(max(0.0, 1 - math.sqrt(var + 1e-4)))
    return mean(hinges)


def slow_covariance(features: Rows) -> float:
    total = 0.0
    for i, a in enumerate(columns(features)):
        for j, b in enumerate(columns(features)):
            if i != j:
                total += (product_of_deviations(a, b) / max(len(a) - 1, 1)) ** 2
    return total / len(features[0])


# ---- perturbations -----------------------------------------------------------------------------


def slow_kl(mean_q: Rows, log_q: Rows, mean_p: Rows, log_p: Rows) -> float:
    losses = []
    for rows in zip(mean_q, log_q, mean_p, log_p, strict=True):
        losses.append(
            math.fsum(
                0.5 * (lp - lq + (math.exp(lq) + (mq - mp) ** 2) / math.exp(lp) - 1)
                for mq, lq, mp, lp in zip(*rows, strict=True)
            )
        )
    return mean(losses)


def slow_reconstruction(found: Rows, wanted: Rows) -> float:
    pairs = zip(found, wanted, strict=True)
    return mean([math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 2 for a, b in pairs])


# ---- the two versions and their inputs ---------------------------------------------------------


class Loss(NamedTuple):
    """`fast` takes tensors, `slow` the same as lists; `inputs` are arguments by what is special.

    Those at the places `still` are held still: no gradient reaches them.
    """

    fast: Callable[..., Tensor]
    slow: Callable[..., float]
    inputs: dict[str, tuple[Any, ...]]
    still: tuple[int, ...] = ()

    def error(self, case: str, dtype: torch.dtype = torch.float32) -> float:
        """|fast - slow| / |slow| for one of `inputs`, rounded to `dtype` for both versions.

        Values that float32 cannot hold count as 0, and two NaN as equal.
        """
        arguments = rounded(self.inputs[case], dtype)
        found, expected = self.fast(*arguments).item(), self.slow(*plain(arguments))
        if found == expected or (math.isnan(found) and math.isnan(expected)):
            return 0.0
        return abs(found - expected) / max(abs(expected), SMALLEST)


def rounded(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """With every tensor of floats in `dtype`."""
    return tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
    )


def plain(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """With every tensor as lists of Python's own numbers."""
    return tuple(a.tolist() if isinstance(a, Tensor) else a for a in arguments)


def draw(n: int, k: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def logits(count: int, scale: float = 3.0) -> dict[str, tuple[Tensor, ...]]:
    """`count` tensors of logits (N, K)."""
    shapes = {
        "random": (64, 5),
        "a few": (4, 3),
        "two images": (2, 10),
        "one image": (1, 2),
        "one class": (6, 1),
    }
    found = {
        case: tuple(draw(*shape, seed, scale) for seed in range(count))
        for case, shape in shapes.items()
    }
    return {**found, "very sure": tuple(draw(16, 4, seed, 100.0) for seed in range(count))}


def views() -> dict[str, tuple[Tensor, Tensor]]:
    """Features (N, D) of two views; with rows of zeros, and of very different lengths."""
    shapes = {"random": (24, 16), "a few": (4, 3), "two images": (2, 3), "one image": (1, 4)}
    found = {case: (draw(*shape, 0), draw(*shape, 1)) for case, shape in shapes.items()}
    lengths = 10.0 ** torch.arange(-3, 4)[:, None]
    holes = torch.ones(6, 1)
    holes[[0, 3]] = 0
    return {
        **found,
        "long and short rows": (draw(7, 5, 0) * lengths, draw(7, 5, 1) * lengths.flip(0)),
        "zero rows": (draw(6, 4, 0) * holes, draw(6, 4, 1) * holes.roll(1)),
        "only zero rows": (torch.zeros(3, 4), torch.zeros(3, 4)),
        "one direction": (torch.ones(5, 4), torch.ones(5, 4)),
    }


def at(inputs: dict[str, tuple[Any, ...]], name: str, *values: float) -> dict[str, tuple[Any, ...]]:
    """Every input with each value as one argument more."""
    return {f"{case}, {name} {v}": (*a, v) for case, a in inputs.items() for v in values}


def with_labels(unknown: bool = False) -> dict[str, tuple[Tensor, ...]]:
    """Logits and labels; if `unknown`, every other label is -1."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for case, (rows,) in logits(1).items():
        labels = torch.arange(len(rows)) % rows.shape[1]
        if unknown:
            labels[::2] = -1
        found[case] = (rows, labels)
    return {**found, "one label": (found["random"][0], torch.full((64,), 3))}


def balanced(how: str) -> Callable[..., Tensor]:
    """The fast loss, with the balance of all labels in the last argument."""

    def fast(logits_NK: Tensor, labels_N: Tensor, all_labels_N: Tensor) -> Tensor:
        balance = balance_of(how, all_labels_N, logits_NK.shape[1])
        return supervised_loss(logits_NK, labels_N, balance)

    return fast


def with_unbalanced_labels() -> dict[str, tuple[Tensor, ...]]:
    """Logits and labels of a batch, and all labels: 2 of the first class, 5 of the second and so on."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for case, (rows, labels) in with_labels().items():
        classes = torch.arange(rows.shape[1])
        found[case] = (rows, labels, classes.repeat_interleave(3 * classes + 2))
    rows, labels, _ = found["random"]
    return {**found, "classes without a label": (rows, labels, torch.tensor([1, 1, 3]))}


def gaussians() -> dict[str, tuple[Tensor, ...]]:
    """Means and log-variances of q and p, these as far as the network's clamp lets them be."""
    return {
        case: (mean_q, 8 * torch.tanh(log_q), mean_p, 8 * torch.tanh(log_p))
        for case, (mean_q, log_q, mean_p, log_p) in logits(4).items()
    }


def consistency(weak_UK: Tensor, strong_UK: Tensor, threshold: float) -> Tensor:
    """FixMatch's term."""
    return weighted_consistency(strong_UK, pseudo_labels(weak_UK, threshold))


def diagnostics(weak_UK: Tensor, hidden_U: Tensor, threshold: float) -> dict[str, Any]:
    """Those of FixMatch's targets."""
    return target_diagnostics(pseudo_labels(weak_UK, threshold), hidden_U)


def queues() -> dict[str, tuple[Tensor, ...]]:
    """Queries, keys, a queue of as many keys twice over, and which of these are of another image than the query."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for case, (queries, keys) in views().items():
        ids = torch.arange(len(queries))
        queue, ids_of_queue = torch.cat([keys.flip(0), queries]), torch.cat([ids.flip(0), ids + 1])
        found[case] = (queries, keys, queue, ids[:, None] != ids_of_queue)
    queries, keys, queue, _ = found["random"]
    found["no other image"] = (queries[:1], keys[:1], queue[:3], torch.zeros(1, 3) > 0)
    return found


THRESHOLDS = at(logits(2), "tau", 0.0, 0.7, 0.95) | {
    "none confident": (draw(8, 5, 0, 0.1), draw(8, 5, 1), 0.95)
}
HIDDEN = at(with_labels(unknown=True), "tau", 0.0, 0.95) | {
    "no label known": (draw(8, 5, 0), torch.full((8,), -1), 0.0)
}
ONE_VIEW = {case: rows[:1] for case, rows in views().items()}
SPREAD = views() | {"centred": (draw(2000, 8, 0), draw(2000, 8, 1))}
ALIKE = ("one direction", "only zero rows")  # no spread: only noise is left of it

LOSSES = {
    "supervised": Loss(supervised_loss, slow_supervised, with_labels()),
    "supervised (class_weights)": Loss(
        balanced("class_weights"), slow_class_weights, with_unbalanced_labels()
    ),
    "supervised (logit_adjustment)": Loss(
        balanced("logit_adjustment"), slow_logit_adjustment, with_unbalanced_labels()
    ),
    "augmentation_consistency": Loss(
        augmentation_consistency,
        slow_augmentation_consistency,
        at(logits(2), "T", 0.01, 0.5, 10.0),
    ),
    "cluster_consistency": Loss(cluster_consistency, slow_cluster_consistency, logits(4)),
    "consistency": Loss(consistency, slow_consistency, THRESHOLDS),
    "mask_rate": Loss(lambda *a: diagnostics(*a)["mask_rate"], slow_mask_rate, HIDDEN),
    "pseudo_label_accuracy": Loss(
        lambda *a: torch.div(*diagnostics(*a)["pseudo_label_accuracy"]),
        slow_pseudo_label_accuracy,
        HIDDEN,
    ),
    "contrastive (NT-Xent)": Loss(nt_xent, slow_nt_xent, at(views(), "T", 0.01, 0.5)),
    "contrastive (InfoNCE)": Loss(info_nce, slow_info_nce, at(views(), "T", 0.01, 0.5)),
    "contrastive_accuracy": Loss(contrastive_accuracy, slow_contrastive_accuracy, views()),
    "similarity": Loss(similarity, slow_similarity, views()),
    "regression": Loss(regression, slow_regression, views()),
    "contrastive (MoCo)": Loss(
        lambda *a: moco.contrast(moco.queue_logits(*a)),
        slow_queue_contrast,
        at(queues(), "T", 0.01, 0.5),
    ),
    "invariance (Barlow Twins)": Loss(
        lambda *a: barlow_twins.invariance(barlow_twins.cross_correlation(*a)),
        slow_barlow_invariance,
        views(),
    ),
    "redundancy": Loss(
        lambda *a: barlow_twins.redundancy(barlow_twins.cross_correlation(*a)),
        slow_redundancy,
        views(),
    ),
    "invariance (VICReg)": Loss(vicreg.invariance, slow_vicreg_invariance, views()),
    "variance": Loss(vicreg.variance, slow_variance, ONE_VIEW),
    "covariance": Loss(vicreg.covariance, slow_covariance, ONE_VIEW),
    "embedding_std": Loss(
        embedding_std,
        slow_embedding_std,
        {case: rows[:1] for case, rows in SPREAD.items() if case not in ALIKE},
    ),
    "kl": Loss(lambda *a: kl_divergence(Gaussian(*a[:2]), Gaussian(*a[2:])), slow_kl, gaussians()),
    "reconstruction": Loss(reconstruction_loss, slow_reconstruction, logits(2)),
}
