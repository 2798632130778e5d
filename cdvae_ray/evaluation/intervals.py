"""Confidence intervals of counted things."""

from __future__ import annotations

import math
from typing import NamedTuple

NORMAL_975 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: 95 % lie within +- it."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """The 95 % interval of a proportion, Wilson (1927): holds its level also near 0 and 1.

    Args:
        successes: in [0, count].
        count: >= 1.
    """
    assert 0 <= successes <= count and count >= 1, f"{successes} of {count}"
    z2 = NORMAL_975**2
    p = successes / count
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_975 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # At the ends the interval holds the end itself, which rounding would miss.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == count else centre + half
    return Interval(low, high)
