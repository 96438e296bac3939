"""When two configs count as equally good on a validation set."""

from __future__ import annotations

import math


def half_width(images: float) -> float:
    """Half-width of the 95 % interval of an accuracy measured on `images` images: sqrt(ln(40) / 2n).

    Hoeffding's bound, P(|mean - expected| >= t) <= 2 exp(-2 n t^2), set to 0.05. Two configs nearer
    than this are a tie. 0.096 for 200 images, 0.019 for 5,000; nan where their number is not known.
    """
    return math.sqrt(math.log(40) / (2 * images)) if images and images > 0 else math.nan


def at_chance(share: float, low: float, classes: int, images: int) -> bool:
    """Whether a mean-class accuracy is what guessing gives.

    Its interval reaches down to 1 / classes and it is not twice that, or it lies within two standard errors of that on
    so many images.
    """
    level = 1 / max(1, classes)
    spread = 2 * math.sqrt(level * (1 - level) / max(1, images))
    return (low <= level and share < 2 * level) or share <= level + spread
