"""The learning rate as a pure function of the epoch."""

from __future__ import annotations

import math

from cdvae_ray.config.training import TrainingConfig


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """The learning rate of an epoch (from 0).

    cosine: low + (high - low) (1 + cos(pi epoch / T)) / 2, which rises again past T, as in the
    released code (T = 50 of 300 epochs).
    """
    if config.schedule == "constant":
        return config.learning_rate
    low, high = config.minimum_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * epoch / config.cosine_period_epochs)) / 2
