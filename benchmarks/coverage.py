"""Coverage: how often the report's 95 % intervals hold the truth, and how often its tests cry wolf.

Samples of n seeds are drawn from distributions whose truth is known, and every interval and p-value
is computed by `analysis.stats` as in a report. Read a coverage near 95 % and an error of at most
5 %; below n = 6 no interval of a mean can reach 95 % (`stats.coverage_limit`, the row `limit`).

    python -m benchmarks.coverage
    python -m benchmarks.coverage --samples 500 --seeds 3 10
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy import stats as scipy_stats

from analysis.numbers import stats

Floats = stats.Floats
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

SEEDS = (3, 5, 6, 10, 20)
SAMPLES = 1_000
AT_ONCE = 100  # samples whose bootstrap distributions are held in memory together
CONDITIONS = 4
CORRELATION = 0.3  # of one seed's scores under two conditions
COMPARISONS = 12  # in the table that Holm corrects: three methods under four conditions
MEANS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "accuracy, beta(27, 3)": (lambda rng, size: rng.beta(27, 3, size=size), 0.9),
    "discrete, binomial(20, 0.9)": (lambda rng, size: rng.binomial(20, 0.9, size) / 20, 0.9),
    "heavy tail, t(3)": (lambda rng, size: rng.standard_t(3, size=size), 0.0),
    "skewed, lognormal(0.5)": (lambda rng, size: rng.lognormal(0, 0.5, size), np.exp(0.125)),
    "skewed, lognormal(1)": (lambda rng, size: rng.lognormal(0, 1, size), np.exp(0.5)),
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
    rng = np.random.default_rng(seed)
    held = 0
    for start in range(0, samples, AT_ONCE):
        x = draw(rng, (min(AT_ONCE, samples - start), n))
        low, high = stats.mean_bounds(x)
        same = np.ptp(x, axis=1) == 0  # then the interval is that value, without a bootstrap
        low, high = np.where(same, x[:, 0], low), np.where(same, x[:, 0], high)
        held += int(((low <= truth) & (truth <= high)).sum())
    return held / samples


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


def type_one_error(draw: Draw, truth: float, n: int, samples: int, seed: int = 0) -> float:
    """How often `paired_p_value` of n differences with the mean `truth` - `truth` is below 0.05."""
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, samples, AT_ONCE):
        differences = draw(rng, (min(AT_ONCE, samples - start), n)) - truth
        hits += int((stats.sign_flip_p_values(differences) < 0.05).sum())
    return hits / samples


def holm_error(n: int, samples: int, seed: int = 0) -> float:
    """How often any of 12 corrected p-values is below 0.05 where no method differs.

    Three methods under four conditions against one baseline, whose scores they share.
    """
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(samples):
        scores = rng.normal(size=(CONDITIONS, COMPARISONS // CONDITIONS, n))
        differences = (scores - rng.normal(size=(CONDITIONS, 1, n))).reshape(COMPARISONS, n)
        hits += min(stats.holm(list(stats.sign_flip_p_values(differences)))) < 0.05
    return hits / samples


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    args = parser.parse_args()
    start, m = time.perf_counter(), args.samples
    few = max(m // 4, 1)  # the slow ones

    def show(title: str, rate: Callable[[int], float]) -> None:
        cells = "".join(f"{100 * rate(n):8.1f}" for n in args.seeds)
        print(f"{title:52s}{cells}", flush=True)

    print(f"{m:,} samples; {few:,} for the IQM and Holm. In percent.\n")
    print(f"{'coverage of 95 % intervals; n =':52s}" + "".join(f"{n:8d}" for n in args.seeds))
    show("limit", stats.coverage_limit)
    for name, (draw, truth) in MEANS.items():
        show(f"mean: {name}", lambda n, d=draw, t=truth: mean_coverage(d, t, n, m))  # type: ignore[misc]
    for name, (draw, _) in MEANS.items():
        show(f"paired difference: {name}", lambda n, d=draw: difference_coverage(d, n, m))  # type: ignore[misc]
    for name, chances in PAIRS.items():
        show(name, lambda n, c=chances: probability_coverage(c, n, 10 * m))  # type: ignore[misc]
    for correlation in (0.0, CORRELATION):
        for together in (False, True):
            kind = "whole seeds" if together else "stratified"
            title = f"IQM, {kind}, correlation {correlation}"
            show(title, lambda n, c=correlation, t=together: iqm_coverage(n, few, c, t))  # type: ignore[misc]
    print("\ntype-I error at 0.05")
    for name, (draw, truth) in MEANS.items():
        show(
            f"paired test, differences {name}",
            lambda n, d=draw, t=truth: type_one_error(d, t, n, m),
        )  # type: ignore[misc]
    show(f"Holm, any of {COMPARISONS}, normal", lambda n: holm_error(n, few))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
