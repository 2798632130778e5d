"""The paired bootstrap by image: how far a number would move with other images.

Images are drawn with replacement (Efron, 1979) and all that belongs to an image goes with it: its
clean, noisy and adversarial scores, by every method. The detectors stay as they were fitted, so
that the intervals hold what other test images would change and not what other training would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import ConfigError
from cdvae_ray.evaluation.detection_metrics import FloatArray, IntArray
from cdvae_ray.evaluation.intervals import Interval

NUM_RESAMPLES = 1000
_BLOCK_ELEMENTS = 1 << 19
"""Weights a block of resamples: intermediate results stay in a CPU's cache."""

Statistic = Callable[[IntArray], FloatArray]
"""From weights (B, I), how often each image counts, to M numbers a weighting, (B, M)."""


class Estimate(NamedTuple):
    """A number of the sample with its interval."""

    value: float
    low: float
    high: float


def resamples(num_images: int, num_resamples: int, *, seed: int) -> Iterator[IntArray]:
    """Yields blocks (b, I) of how often each image was drawn; all rows sum to I.

    The draws depend on the seed and the number of images alone, so that two methods on the same
    images meet the same resamples.

    Args:
        num_images: I >= 1.
        num_resamples: >= 1.
        seed: of the evaluation.

    Raises:
        ConfigError: no image or no resample.
    """
    for what, count in (("images to resample", num_images), ("num_resamples", num_resamples)):
        if count < 1:
            raise ConfigError(what, got=count, expected="1 or more", remedy="pass some")
    generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "bootstrap", num_images)))
    size = max(1, _BLOCK_ELEMENTS // num_images)
    for start in range(0, num_resamples, size):
        yield np.stack(
            [
                np.bincount(
                    generator.integers(0, num_images, size=num_images), minlength=num_images
                ).astype(np.int64)
                for _ in range(start, min(start + size, num_resamples))
            ]
        )


def bootstrap(
    statistic: Statistic, num_images: int, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> list[Estimate]:
    """Numbers of the sample with their 95 % percentile intervals.

    Args:
        statistic: from weights of images to M numbers; a difference of two methods is paired if it
            weights the images of both alike.
        num_images: I.
        seed: of the evaluation.
        num_resamples: resamples behind the intervals.

    Returns:
        M estimates in the statistic's order.

    Raises:
        ConfigError: no image or no resample.
    """
    drawn = np.concatenate(
        [statistic(block) for block in resamples(num_images, num_resamples, seed=seed)]
    )
    values = statistic(np.ones((1, num_images), dtype=np.int64))[0]
    return [
        Estimate(float(value), *percentile_interval(column))
        for value, column in zip(values, drawn.T, strict=True)
    ]


def percentile_interval(samples: FloatArray, *, level: float = 0.95) -> Interval:
    """The central interval that holds `level` of the resampled numbers.

    Args:
        samples: (B,).
        level: in (0, 1).
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
