"""Pure functions of progress in [0, 1]: how a learning rate falls and a loss weight rises."""

from __future__ import annotations

from math import cos, pi


def ramp_up(progress: float, length: float) -> float:
    """Cosine ramp-up: (1 - cos(pi * progress / length)) / 2 until `length`, then 1.

    >>> ramp_up(0.1, 0.2)
    0.5
    """
    if progress >= length:
        return 1.0
    return (1 - cos(pi * progress / length)) / 2


def learning_rate(progress: float, schedule: str, warmup: float = 0.0) -> float:
    """Factor of the base learning rate, in [0, 1].

    `cosine` falls to 0 (SGDR, arXiv 1608.03983), `cosine_7_16` is cos(7 pi progress / 16)
    (FixMatch, arXiv 2001.07685, section 2.3), `constant` stays 1. During the first `warmup` of the
    run the factor also rises linearly.

    >>> learning_rate(0.5, "cosine")
    0.5
    """
    rise = min(1.0, progress / warmup) if warmup > 0 else 1.0
    if schedule == "cosine":
        return rise * (1 + cos(pi * progress)) / 2
    if schedule == "cosine_7_16":
        return rise * cos(7 * pi * progress / 16)
    if schedule == "constant":
        return rise
    raise ValueError(f"schedule is {schedule!r}, but must be cosine, cosine_7_16 or constant")


def ema_decay(decay: float, steps: int, step: int) -> float:
    """The averaging decay at `step` of a run of `steps`: min(decay, 1 - 10 / steps, (1 + t) / (10 + t)), t = step.

    The second keeps a short run's average from being its random start; the third is the warm-up that lets an early
    average follow the weights (as in TensorFlow's ExponentialMovingAverage with num_updates). At least 0; a
    `decay` of 0 stays 0.

    >>> ema_decay(0.999, 10_000, 0)
    0.1
    """
    return max(0.0, min(decay, 1 - 10 / steps, (1 + step) / (10 + step)))
