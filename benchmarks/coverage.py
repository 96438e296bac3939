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
from scipy import stats as scipy_stats

from analysis.numbers import stats
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


def iqm_coverage(
    n: int, samples: int, correlation: float, together: bool, draws: int = 1_000, seed: int = 0
) -> float:
    """The share of `iqm_interval`s over four conditions and n seeds that hold the population's IQM.

    Scores are normal, with the means 0 to 3 and the standard deviations 1.5 to 0.75 of a learning
    curve; `correlation` is that of a seed's scores under two conditions.
    """
    rng = np.random.default_rng(seed)
    centres, widths = np.arange(CONDITIONS), np.linspace(1.5, 0.75, CONDITIONS)
    grid = (np.arange(20_000) + 0.5) / 20_000  # a quantile grid stands for the population
    population = centres[:, None] + widths[:, None] * scipy_stats.norm.ppf(grid)
    truth = stats.iqm(population)
    held = 0
    for _ in range(samples):
        shared = np.sqrt(correlation) * rng.normal(size=n)
        own = np.sqrt(1 - correlation) * rng.normal(size=(CONDITIONS, n))
        scores = centres[:, None] + widths[:, None] * (shared + own)
        held += stats.iqm_interval(scores, together=together, draws=draws).holds(truth)
    return held / samples


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

    print(f"{m:,} samples; {few:,} for the IQM, bold and the sign flip with Holm. In percent.\n")
    print(f"{'coverage of 95 % intervals; n =':52s}" + "".join(f"{n:8d}" for n in args.seeds))
    for name, (draw, truth) in MEANS.items():
        show(f"mean: {name}", lambda n, d=draw, t=truth: mean_coverage(d, t, n, m))  # type: ignore[misc]
    for name, (draw, _) in MEANS.items():
        show(f"paired difference: {name}", lambda n, d=draw: difference_coverage(d, n, m))  # type: ignore[misc]
    for name, chances in PAIRS.items():
        show(name, lambda n, c=chances: probability_coverage(c, n, m))  # type: ignore[misc]
    for correlation in (0.0, CORRELATION):
        for together in (False, True):
            kind = "whole seeds" if together else "stratified"
            title = f"IQM, {kind}, correlation {correlation}"
            show(title, lambda n, c=correlation, t=together: iqm_coverage(n, few, c, t))  # type: ignore[misc]
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
