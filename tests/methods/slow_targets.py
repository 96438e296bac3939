"""What unlabeled images teach, a second time and slowly: see slow.py.

The fast version is the real `step` of a stage, whose network takes logits for images and gives them back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tests.methods.slow import (
    Loss,
    Row,
    Rows,
    at,
    draw,
    likeliest,
    log_softmax,
    logits,
    mean,
    slow_consistency,
    with_labels,
    with_unbalanced_labels,
)
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.methods import find_method
from tune_ssl.methods.base import Stage, StepOutput
from tune_ssl.methods.freematch import fairness
from tune_ssl.methods.mixmatch import sharpened, squared_error
from tune_ssl.methods.pi_model import squared_difference
from tune_ssl.methods.supervised import balance_of, supervised_losses
from tune_ssl.methods.uda import annealed
from tune_ssl.methods.vat import divergence, entropy


def straight(stage: Stage[Any], classes: int, unlabeled: int = 0) -> nn.Module:
    """The network that the stage builds, with all that it remembers, but one that gives back what it is given."""
    task = Task(classes, 1, 8, unlabeled=unlabeled)
    network = stage.build(task, ModelSpec(encoder="pixels", head="linear"), None)
    network.forward = lambda given: (given, given)
    return network


def stage_of(method: str, **options: Any) -> Stage[Any]:
    """A method's only stage."""
    kind = find_method(method)
    (stage,) = kind.stages(kind.Spec(name=method, **options))
    return stage


def stepped(
    stage: Stage[Any],
    network: nn.Module,
    unlabeled: tuple[Tensor, ...],
    labeled_NK: Tensor | None = None,
    ids_U: Tensor | None = None,
) -> StepOutput:
    """A step that sees these logits; every label is 0."""
    labeled_NK = unlabeled[0][:1].detach() if labeled_NK is None else labeled_NK
    labels_N = torch.zeros(len(labeled_NK), dtype=torch.int64)
    hidden_U = torch.full((len(unlabeled[0]),), -1)
    return stage.step(network, Batch((labeled_NK,), labels_N, unlabeled, hidden_U, ids_U=ids_U))


# ---- words of the formulas -----------------------------------------------------------------------


def softmax(row: Row) -> Row:
    return [math.exp(x) for x in log_softmax(row)]


def scaled(row: Row) -> Row:
    return [x / math.fsum(row) for x in row]


def mean_row(rows: Rows) -> Row:
    return [mean(list(column)) for column in zip(*rows, strict=True)]


def moved(old: Row, new: Row, decay: float) -> Row:
    return [a + (1 - decay) * (b - a) for a, b in zip(old, new, strict=True)]


def cross_entropy(target: Row, row: Row) -> float:
    return -math.fsum(p * q for p, q in zip(target, log_softmax(row), strict=True))


def learned(strong: Rows, labels: list[int], weights: Row) -> float:
    """The mean over all images of weight x the cross-entropy with the label."""
    return mean(
        [-w * log_softmax(row)[k] for row, k, w in zip(strong, labels, weights, strict=True)]
    )


# ---- the formulas --------------------------------------------------------------------------------


def slow_pseudo_label(weak: Rows, threshold: float) -> float:
    return slow_consistency(weak, weak, threshold)


def slow_squared_difference(student: Rows, teacher: Rows) -> float:
    rows = zip(map(softmax, student), map(softmax, teacher), strict=True)
    return mean([(x - y) ** 2 for a, b in rows for x, y in zip(a, b, strict=True)])


def slow_divergence(clean: Rows, perturbed: Rows) -> float:
    losses = []
    for a, b in zip(map(log_softmax, clean), map(log_softmax, perturbed), strict=True):
        losses.append(math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True)))
    return mean(losses)


def slow_entropy(rows: Rows) -> float:
    return mean([cross_entropy(softmax(row), row) for row in rows])


def slow_uda(weak: Rows, strong: Rows, threshold: float, temperature: float) -> float:
    total = 0.0
    for a, b in zip(weak, strong, strict=True):
        if max(softmax(a)) >= threshold:
            total += cross_entropy(softmax([x / temperature for x in a]), b)
    return total / len(weak)


def slow_annealed(rows: Rows, labels: list[int], most: float) -> float:
    kept = [
        -log_softmax(row)[label]
        for row, label in zip(rows, labels, strict=True)
        if softmax(row)[label] <= most
    ]
    return mean(kept) if kept else 0.0


def slow_guess(rows: Rows, first: Rows, second: Rows, temperature: float) -> float:
    """Powers by their logarithms: p^(1/T) of a small T is below what a number can hold."""
    squares = []
    for row, a, b in zip(rows, first, second, strict=True):
        guess = softmax([math.log(p) / temperature for p in mean_row([softmax(a), softmax(b)])])
        squares += [(x - y) ** 2 for x, y in zip(softmax(row), guess, strict=True)]
    return mean(squares)


def slow_soft_labels(rows: Rows, others: Rows, all_labels: list[int]) -> float:
    """With class weights: class k of each soft label counts 1 / n_k, times what makes the images' mean weight 1."""
    counts = [all_labels.count(k) for k in range(len(rows[0]))]
    factor = len(all_labels) / sum(count > 0 for count in counts)
    total = 0.0
    for row, other in zip(rows, others, strict=True):
        for q, p, count in zip(log_softmax(row), softmax(other), counts, strict=True):
            total -= factor / count * p * q if count else 0.0
    return total / len(rows)


def flexmatch_ids(count: int, step: int) -> list[int]:
    """Which of 3/2 x `count` images the step sees: in the second one the first half of them again."""
    return [(i + step * count) % (count + count // 2) for i in range(count)]


def slow_flexmatch(before: Rows, weak: Rows, strong: Rows, threshold: float) -> float:
    classes, count = len(weak[0]), len(weak)
    latest: dict[int, int] = {}
    for place, row in zip(flexmatch_ids(count, 0), before, strict=True):
        if max(softmax(row)) >= threshold:
            latest[place] = likeliest(row)
    numbers = [list(latest.values()).count(k) for k in range(classes)]
    most = max(*numbers, count + count // 2 - len(latest))
    weights = []
    for row in weak:
        beta = numbers[likeliest(row)] / most
        weights.append(float(max(softmax(row)) >= threshold * beta / (2 - beta)))
    return learned(strong, [likeliest(row) for row in weak], weights)


def slow_freematch(before: Rows, weak: Rows, strong: Rows, decay: float) -> tuple[float, float]:
    """The consistency and the fairness of a second step."""
    classes = len(weak[0])
    confidence, m, h = 1 / classes, [1 / classes] * classes, [1 / classes] * classes
    for rows in (before, weak):
        p = [softmax(row) for row in rows]
        (confidence,) = moved([confidence], [mean([max(row) for row in p])], decay)
        m = moved(m, mean_row(p), decay)
        chosen = [likeliest(row) for row in rows]
        h = moved(h, [chosen.count(k) / len(rows) for k in range(classes)], decay)
    weights = [
        float(max(softmax(row)) >= confidence * (m[likeliest(row)] / max(m))) for row in weak
    ]
    found = learned(strong, [likeliest(row) for row in weak], weights)
    return found, slow_fairness(strong, list(map(int, weights)), m, h)


def slow_fairness(strong: Rows, confident: list[int], m: Row, h: Row) -> float:
    sure = [row for row, counts in zip(strong, confident, strict=True) if counts]
    if not sure:
        return 0.0
    wanted = scaled([x / y if y else 0.0 for x, y in zip(m, h, strict=True)])
    chosen = [likeliest(row) for row in sure]
    averages = mean_row([softmax(row) for row in sure])
    given = scaled(
        [p / (chosen.count(k) / len(sure)) if k in chosen else 0.0 for k, p in enumerate(averages)]
    )
    return -math.fsum(a * math.log(min(1.0, b + 1e-12)) for a, b in zip(wanted, given, strict=True))


def slow_aligned(rows: Rows, wanted: Row, found: Row) -> Rows:
    return [
        scaled([p * w / max(f, 1e-6) for p, w, f in zip(row, wanted, found, strict=True)])
        for row in rows
    ]


def slow_softmatch(before: Rows, weak: Rows, strong: Rows, decay: float, width: float) -> float:
    classes = len(weak[0])
    center, spread, found, confidence = 1 / classes, 1.0, [1 / classes] * classes, [0.0]
    for rows in (before, weak):
        p = [softmax(row) for row in rows]
        found = moved(found, mean_row(p), decay)
        confidence = [max(row) for row in slow_aligned(p, [1 / classes] * classes, found)]
        middle = mean(confidence)
        squares = math.fsum((c - middle) ** 2 for c in confidence)
        variance = squares / (len(rows) - 1) if len(rows) > 1 else 0.0
        center, spread = moved([center, spread], [middle, variance], decay)
    weights = [math.exp(-(min(0.0, c - center) ** 2) / (2 * spread / width**2)) for c in confidence]
    return learned(strong, [likeliest(row) for row in weak], weights)


def slow_adamatch(
    labeled_before: Rows,
    before: Rows,
    labeled: Rows,
    weak: Rows,
    strong: Rows,
    threshold: float,
    decay: float,
) -> float:
    classes = len(weak[0])
    wanted = found = [1 / classes] * classes
    for own, other in ((labeled_before, before), (labeled, weak)):
        wanted = moved(wanted, mean_row([softmax(row) for row in own]), decay)
        found = moved(found, mean_row([softmax(row) for row in other]), decay)
    least = threshold * mean([max(softmax(row)) for row in labeled])
    p = slow_aligned([softmax(row) for row in weak], wanted, found)
    return learned(strong, [likeliest(row) for row in p], [float(max(row) >= least) for row in p])


# ---- the fast versions ---------------------------------------------------------------------------


def fast_pseudo_label(weak_UK: Tensor, threshold: float) -> Tensor:
    stage = stage_of("pseudo_label", threshold=threshold)
    return stepped(stage, straight(stage, weak_UK.shape[1]), (weak_UK,)).losses["pseudo_label"]


def fast_pi_model(student_UK: Tensor, teacher_UK: Tensor) -> Tensor:
    stage = stage_of("pi_model")
    network = straight(stage, student_UK.shape[1])
    return stepped(stage, network, (student_UK, teacher_UK)).losses["consistency"]


def fast_mean_teacher(student_UK: Tensor, teacher_UK: Tensor) -> Tensor:
    stage = stage_of("mean_teacher")
    network = straight(stage, student_UK.shape[1])
    network.teacher.network.forward = network.forward
    return stepped(stage, network, (student_UK, teacher_UK)).losses["consistency"]


def fast_uda(weak_UK: Tensor, strong_UK: Tensor, threshold: float, temperature: float) -> Tensor:
    stage = stage_of("uda", threshold=threshold, temperature=temperature)
    network = straight(stage, weak_UK.shape[1])
    return stepped(stage, network, (weak_UK, strong_UK)).losses["consistency"]


def fast_guess(logits_UK: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    return squared_error(logits_UK, sharpened(first, second, temperature))


def fast_soft_labels(logits_NK: Tensor, others_NK: Tensor, all_labels: Tensor) -> Tensor:
    balance = balance_of("class_weights", all_labels, logits_NK.shape[1])
    targets_NK = torch.softmax(others_NK.float(), dim=1)
    return supervised_losses(logits_NK, targets_NK, balance).mean()


def fast_flexmatch(before: Tensor, weak: Tensor, strong: Tensor, threshold: float) -> Tensor:
    stage, count = stage_of("flexmatch", threshold=threshold), len(weak)
    network = straight(stage, weak.shape[1], unlabeled=count + count // 2)
    first, second = (torch.tensor(flexmatch_ids(count, step)) for step in range(2))
    stepped(stage, network, (before, before), ids_U=first)
    return stepped(stage, network, (weak, strong), ids_U=second).losses["consistency"]


def second_step(
    method: str, before: tuple[Tensor, ...], now: tuple[Tensor, ...], **options: Any
) -> StepOutput:
    """`before` and `now`: logits of labeled images, of weak and of strong views."""
    stage = stage_of(method, **options)
    network = straight(stage, now[0].shape[1])
    stepped(stage, network, before[1:], labeled_NK=before[0])
    return stepped(stage, network, now[1:], labeled_NK=now[0])


def fast_freematch(term: str) -> Any:
    def fast(before: Tensor, weak: Tensor, strong: Tensor, decay: float) -> Tensor:
        rows = (before, before, before), (weak, weak, strong)
        return second_step("freematch", *rows, decay=decay).losses[term]

    return fast


def fast_softmatch(
    before: Tensor, weak: Tensor, strong: Tensor, decay: float, width: float
) -> Tensor:
    rows = (before, before, before), (weak, weak, strong)
    return second_step("softmatch", *rows, decay=decay, width=width).losses["consistency"]


def fast_adamatch(
    labeled_before: Tensor,
    before: Tensor,
    labeled: Tensor,
    weak: Tensor,
    strong: Tensor,
    threshold: float,
    decay: float,
) -> Tensor:
    rows = (labeled_before, before, before), (labeled, weak, strong)
    options = {"threshold": threshold, "decay": decay}
    return second_step("adamatch", *rows, **options).losses["consistency"]


# ---- the two versions and their inputs ---------------------------------------------------------


def fairness_inputs() -> dict[str, tuple[Tensor, ...]]:
    """Logits, who is confident, and averages m and h; in one case nobody is, in another h has a class no more."""
    found = {}
    for case, (rows, averages) in logits(2).items():
        confident = torch.arange(len(rows)) % 3 != 1
        m, h = (torch.softmax(averages[:1] * factor, dim=1)[0] for factor in (0.01, -0.02))
        found[case] = (rows, confident.long(), m, h)
    rows, confident, m, h = found["random"]
    return {
        **found,
        "nobody": (rows, torch.zeros_like(confident), m, h),
        "everybody": (rows, torch.ones_like(confident), m, h),
        "never predicted": (rows, confident, m, torch.cat([h[:-1], torch.zeros(1)])),
    }


def pseudo_label_inputs() -> dict[str, tuple[Any, ...]]:
    """Without the very sure ones: their losses are 0 in float32."""
    found = at(logits(1), "tau", 0.0, 0.5, 0.8) | {"none confident": (draw(8, 5, 0), 1.0)}
    return {case: a for case, a in found.items() if "very sure" not in case}


def soft_labels() -> dict[str, tuple[Tensor, ...]]:
    """Logits, logits of the soft labels, and all labels that there are."""
    return {
        case: (rows, draw(*rows.shape, 9, 3.0), every)
        for case, (rows, _, every) in with_unbalanced_labels().items()
    }


THRESHOLDS = (0.0, 0.7, 0.95)  # all count, some do, and few or none
DECAYS = (0.2, 0.9)

TARGET_LOSSES = {
    "pseudo_label": Loss(fast_pseudo_label, slow_pseudo_label, pseudo_label_inputs()),
    "squared_difference": Loss(squared_difference, slow_squared_difference, logits(2), still=(1,)),
    "pi_model": Loss(fast_pi_model, slow_squared_difference, logits(2), still=(1,)),
    "mean_teacher": Loss(fast_mean_teacher, slow_squared_difference, logits(2), still=(1,)),
    "divergence": Loss(divergence, slow_divergence, logits(2), still=(0,)),
    "entropy": Loss(entropy, slow_entropy, logits(1)),
    "uda": Loss(
        fast_uda,
        slow_uda,
        at(at(logits(2), "tau", *THRESHOLDS), "T", 0.01, 0.4, 1.0),
        still=(0,),
    ),
    "uda (annealed)": Loss(
        annealed,
        slow_annealed,
        at(with_labels(), "most", 0.1, 0.3, 1.0)
        | {"none kept": (9 * torch.eye(4), torch.arange(4), 0.9)},
    ),
    "mixmatch (guess)": Loss(
        fast_guess, slow_guess, at(logits(3), "T", 0.01, 0.5, 1.0), still=(1, 2)
    ),
    "mixmatch (supervised)": Loss(fast_soft_labels, slow_soft_labels, soft_labels()),
    "flexmatch": Loss(fast_flexmatch, slow_flexmatch, at(logits(3), "tau", *THRESHOLDS)),
    "freematch": Loss(
        fast_freematch("consistency"),
        lambda *a: slow_freematch(*a)[0],
        at(logits(3), "decay", *DECAYS),
        still=(0, 1),
    ),
    "freematch (fairness)": Loss(
        fast_freematch("fairness"),
        lambda *a: slow_freematch(*a)[1],
        at(logits(3), "decay", *DECAYS),
        still=(0, 1),
    ),
    "fairness": Loss(
        lambda rows, sure, m, h: fairness(rows, sure.float(), m.float(), h.float()),
        slow_fairness,
        fairness_inputs(),
    ),
    "softmatch": Loss(
        fast_softmatch,
        slow_softmatch,
        at(at(logits(3), "decay", *DECAYS), "width", 1.0, 2.0),
        still=(0, 1),
    ),
    "adamatch": Loss(
        fast_adamatch,
        slow_adamatch,
        at(at(logits(5), "tau", *THRESHOLDS), "decay", *DECAYS),
        still=(0, 1, 2, 3),
    ),
}
