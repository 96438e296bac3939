"""Coverage: how often the report's 95 % intervals hold the truth, and how its tests decide.

Samples of n seeds are drawn from distributions whose truth is known, and every interval and p-value
is computed by `analysis.numbers` as in a report. Read a coverage near 95 % and an error of at most
5 %. The paired t test decides; the sign-flip test, which decides nothing, stands beside it.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --samples 500 --seeds 3 10
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import special

from analysis.numbers import stats
from analysis.numbers.labels_saved import equivalent
from analysis.numbers.tables import not_worse

Floats = stats.Floats
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

SEEDS = (3, 4, 5, 6, 10, 20)
SAMPLES = 10_000
AT_ONCE = 100  # samples whose sign patterns are held in memory together
CONDITIONS = 4
CORRELATION = 0.3  # of one seed's scores under two conditions
COMPARISONS = 12  # in the table that Holm corrects: three methods under four conditions
GAIN = 2.0  # standard deviations of a method's scores, where the power is asked for
LEVEL = 2.0  # of a logit: an accuracy near 85 %
KINDS = ((0.1, 1.0), (0.1, 3.0), (0.5, 1.0))  # standard deviations of seeds' and of images' logits
IMAGES = 359  # of a test part, as that of digits
METHODS = (2, 4, 10)  # in a condition whose best are bold
COLLAPSE = 0.1  # the share of seeds that lose 30 points
DECIDES = "paired t"
TESTS: dict[str, Callable[[Floats], Floats]] = {
    DECIDES: stats.t_p_values,
    "sign flip": stats.sign_flip_p_values,
}


def collapsing(rng: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """Accuracies of 0.9 +- 0.02, of which one in ten is 0.6 +- 0.02."""
    scores = rng.normal(0.9, 0.02, size) - 0.3 * (rng.random(size) < COLLAPSE)
    return np.asarray(scores, dtype=float)


MEANS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "accuracy, beta(27, 3)": (lambda rng, size: rng.beta(27, 3, size=size), 0.9),
    "discrete, binomial(20, 0.9)": (lambda rng, size: rng.binomial(20, 0.9, size) / 20, 0.9),
    "heavy tail, t(3)": (lambda rng, size: rng.standard_t(3, size=size), 0.0),
    "skewed, lognormal(0.5)": (lambda rng, size: rng.lognormal(0, 0.5, size), np.exp(0.125)),
    "skewed, lognormal(1)": (lambda rng, size: rng.lognormal(0, 1, size), np.exp(0.5)),
    "one seed in ten collapses": (collapsing, 0.9 - 0.3 * COLLAPSE),
}
# Chances of a win, a tie and a loss in a pair.
PAIRS = {
    "P(A > B) = 0.5": (0.5, 0.0, 0.5),
    "P(A > B) = 0.8": (0.8, 0.0, 0.2),
    "P(A > B) = 0.95": (0.95, 0.0, 0.05),
    "P(A > B) = 0.65 with 30 % ties": (0.5, 0.3, 0.2),
}


def mean_coverage(draw: Draw, truth: float, n: int, samples: int, seed: int = 0) -> float:
    """The share of `mean_interval`s of n values that hold the mean."""
    rows = draw(np.random.default_rng(seed), (samples, n))
    return sum(stats.mean_interval(row).holds(truth) for row in rows) / samples


def difference_coverage(draw: Draw, n: int, samples: int, seed: int = 0) -> float:
    """The same for paired differences of two methods that do not differ."""
    return mean_coverage(lambda rng, size: draw(rng, size) - draw(rng, size), 0, n, samples, seed)


def probability_coverage(
    chances: tuple[float, float, float], n: int, samples: int, seed: int = 0
) -> float:
    """The share of `probability_of_improvement` intervals over n pairs that hold P(A > B)."""
    counts = np.random.default_rng(seed).multinomial(n, chances, size=samples)
    low, high = stats.share_bounds(counts[:, 0] + counts[:, 1] / 2, n)
    truth = chances[0] + chances[1] / 2
    return float(((low <= truth) & (truth <= high)).mean())


def crossed(
    rng: np.random.Generator, seeds: int, images: int, seed_std: float, image_std: float
) -> Floats:
    """Right (1) or not (0) of S seeds on N images: logits of a common level, a seed's and an image's own."""
    logits = LEVEL + seed_std * rng.normal(size=(seeds, 1)) + image_std * rng.normal(size=images)
    return (rng.random(logits.shape) < special.expit(logits)).astype(float)


def images_coverage(n: int, samples: int, kind: tuple[float, float], whole: bool) -> float:
    """The share of intervals, of n seeds on IMAGES images in 10 classes, that hold the mean over all of both.

    By `seeds_and_images` if `whole`, else over seeds alone.
    """
    rng = np.random.default_rng(0)
    truth = np.mean([crossed(rng, 50, 2_000, *kind).mean() for _ in range(60)])
    classes = np.arange(IMAGES) % 10
    held = 0
    for _ in range(samples):
        scores = crossed(rng, n, IMAGES, *kind)
        found = (
            stats.seeds_and_images(scores, classes)
            if whole
            else stats.mean_interval(scores.mean(axis=1))
        )
        held += found.holds(float(truth))
    return held / samples


def digits_coverage(n: int, samples: int, labels: int) -> tuple[float, float]:
    """The same of real models: logistic regression on `labels` of scikit-learn's digits, n seeds, 359 test images.

    Each sample draws its test images anew, each seed its labels from the rest. The truth is the mean
    accuracy on all images that were neither, over all samples. (over seeds alone, seeds and images)
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels_N = load_digits(return_X_y=True)
    images = images / 16
    rng = np.random.default_rng(0)
    found, beyond = [], []
    for _ in range(samples):
        order = rng.permutation(len(images))
        test, pool = order[:IMAGES], order[IMAGES:]
        scores = []
        for _ in range(n):
            mine = rng.permutation(pool)
            model = LogisticRegression(C=1.0, max_iter=200)
            model.fit(images[mine[:labels]], labels_N[mine[:labels]])
            scores.append(model.predict(images[test]) == labels_N[test])
            others = mine[labels:]
            right = model.predict(images[others]) == labels_N[others]
            beyond.append(np.mean([right[labels_N[others] == k].mean() for k in range(10)]))
        right_SN = np.array(scores, dtype=float)
        by_class = [right_SN[:, labels_N[test] == k].mean(axis=1) for k in range(10)]
        alone = stats.mean_interval(np.mean(by_class, axis=0))
        found.append((alone, stats.seeds_and_images(right_SN, labels_N[test])))
    truth = float(np.mean(beyond))
    alone, both = (np.mean([pair[i].holds(truth) for pair in found]) for i in (0, 1))
    return float(alone), float(both)


def labels_coverage(n: int, samples: int, seed: int = 0) -> float:
    """The share of `labels_saved` intervals that hold 40 labels, which the method is exactly worth.

    Seeds move both curves together (2 points), and each point has its own noise (1 point).
    """
    rng = np.random.default_rng(seed)
    curve = {10.0: 0.70, 20.0: 0.80, 80.0: 0.90}
    held = 0
    for _ in range(samples):
        levels = rng.normal(0, 0.02, n)
        noisy = {
            count: {s: mean + levels[s] + rng.normal(0, 0.01) for s in range(n)}
            for count, mean in curve.items()
        }
        ours = {s: 0.85 + levels[s] + rng.normal(0, 0.01) for s in range(n)}
        found = equivalent(ours, noisy)
        held += found["low"] <= 40 <= found["high"]
    return held / samples


def gain_coverage(n: int, samples: int, seed: int = 0) -> float:
    """The share of mean gains over CONDITIONS, whole seeds as units, whose interval holds the true one.

    A seed's differences under two conditions have the correlation CORRELATION.
    """
    rng = np.random.default_rng(seed)
    shared = np.sqrt(CORRELATION) * rng.normal(size=(samples, 1, n))
    own = np.sqrt(1 - CORRELATION) * rng.normal(size=(samples, CONDITIONS, n))
    means = (shared + own).mean(axis=1)
    return sum(stats.mean_interval(row).holds(0.0) for row in means) / samples


def outlier_rates(n: int, samples: int, seed: int = 0) -> tuple[float, float]:
    """How often a normal sample has a seed called outlying, and how often one of them that lost 30 points is."""
    rng = np.random.default_rng(seed)
    false = found = 0
    for _ in range(samples):
        scores = rng.normal(0.9, 0.02, n)
        false += bool(stats.outlying(scores.tolist(), least=0))
        scores[0] -= 0.3
        found += 0 in stats.outlying(scores.tolist())
    return false / samples, found / samples


def type_one_error(
    draw: Draw, truth: float, n: int, samples: int, test: str, seed: int = 0
) -> float:
    """How often the p of n differences with the mean `truth` - `truth` is below 0.05."""
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, samples, AT_ONCE):
        differences = draw(rng, (min(AT_ONCE, samples - start), n)) - truth
        hits += int((TESTS[test](differences) < stats.ALPHA).sum())
    return hits / samples


def holm_rejections(
    draw: Draw, n: int, samples: int, test: str, gain: float = 0.0, seed: int = 0
) -> tuple[float, float]:
    """(how often any of 12 corrected p-values is below 0.05, how many of them on average).

    Three methods under four conditions against one baseline, whose scores they share. Each is
    better by `gain`: without one the first share is the family-wise error, else the second the power.
    """
    rng = np.random.default_rng(seed)
    methods = COMPARISONS // CONDITIONS
    found = []
    for start in range(0, samples, AT_ONCE):
        many = min(AT_ONCE, samples - start)
        scores = draw(rng, (many, CONDITIONS, methods, n)) + gain
        differences = scores - draw(rng, (many, CONDITIONS, 1, n))
        p_values = TESTS[test](differences.reshape(-1, n)).reshape(many, COMPARISONS)
        found += [np.array(stats.holm(row.tolist())) < stats.ALPHA for row in p_values]
    return float(np.any(found, axis=1).mean()), float(np.mean(found))


def unbolded(draw: Draw, n: int, samples: int, methods: int, seed: int = 0) -> float:
    """How often some of equal methods is not bold in a condition."""
    rng = np.random.default_rng(seed)
    lost = 0
    for _ in range(samples):
        scores = draw(rng, (methods, n))
        tables = [pd.DataFrame({"value": own, "split": "same"}) for own in scores]
        lost += not all(not_worse(tables))
    return lost / samples


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    args = parser.parse_args()
    start, m = time.perf_counter(), args.samples
    few = max(m // 20, 1)  # the slow ones

    def show(title: str, rate: Callable[[int], float]) -> None:
        cells = "".join(f"{100 * rate(n):8.1f}" for n in args.seeds)
        print(f"{title:52s}{cells}", flush=True)

    print(
        f"A share of 95 % has a Monte Carlo standard error of {100 * (0.05 * 0.95 / m) ** 0.5:.2f} with {m:,} samples, "
        f"of {100 * (0.05 * 0.95 / few) ** 0.5:.2f} with {few:,}."
    )
    print(f"{m:,} samples; {few:,} for what is slow. In percent.\n")
    print(f"{'coverage of 95 % intervals; n =':52s}" + "".join(f"{n:8d}" for n in args.seeds))
    for name, (draw, truth) in MEANS.items():
        show(f"mean: {name}", lambda n, d=draw, t=truth: mean_coverage(d, t, n, m))  # type: ignore[misc]
    for name, (draw, _) in MEANS.items():
        show(f"paired difference: {name}", lambda n, d=draw: difference_coverage(d, n, m))  # type: ignore[misc]
    for name, chances in PAIRS.items():
        show(name, lambda n, c=chances: probability_coverage(c, n, m))  # type: ignore[misc]
    show(
        f"mean gain over {CONDITIONS} conditions, correlation {CORRELATION}",
        lambda n: gain_coverage(n, m),
    )
    show("labels saved, 40 of 10 to 80", lambda n: labels_coverage(n, few))
    for kind in KINDS:
        for whole in (False, True):
            title = "seeds and images" if whole else "seeds alone, read as of other images"
            show(
                f"{title}, seeds {kind[0]}, images {kind[1]}",
                lambda n, k=kind, w=whole: images_coverage(n, few, k, w),  # type: ignore[misc]
            )
    show("outlying: a normal seed is called so", lambda n: outlier_rates(n, few)[0])
    show("outlying: a seed that lost 30 points is", lambda n: outlier_rates(n, few)[1])
    for labels in (200, 400):
        alone, both = digits_coverage(10, min(few, 200), labels)
        print(
            f"digits, logistic regression, {labels} labels, 10 seeds, {min(few, 200)} samples: "
            f"seeds alone {100 * alone:.1f}, seeds and images {100 * both:.1f}",
            flush=True,
        )
    normal = MEANS["normal"][0]
    for test in TESTS:
        decides = test == DECIDES
        many = m if decides else few
        print(f"\n{test}, at {stats.ALPHA}")
        for name, (draw, truth) in MEANS.items():
            show(
                f"error, differences {name}",
                lambda n, d=draw, t=truth, k=test: type_one_error(d, t, n, m, k),  # type: ignore[misc]
            )
        for name in MEANS if decides else ("normal",):
            show(
                f"Holm, any of {COMPARISONS}, {name}",
                lambda n, d=MEANS[name][0], c=many, k=test: holm_rejections(d, n, c, k)[0],  # type: ignore[misc]
            )
        show(
            f"Holm, power for a gain of {GAIN} std, normal",
            lambda n, c=many, k=test: holm_rejections(normal, n, c, k, GAIN)[1],  # type: ignore[misc]
        )
    print("\nbold")
    for methods in METHODS:
        show(
            f"any of {methods} equal methods not, normal",
            lambda n, k=methods: unbolded(normal, n, few, k),  # type: ignore[misc]
        )
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
