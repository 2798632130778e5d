"""The learning rate as a pure function of the epoch."""

from __future__ import annotations

import math

from cdvae_ray.config.training import TrainingConfig


def learning_rate(config: TrainingConfig, epoch: int) -> float:
    """The learning rate of an epoch (from 0).

    cosine: low + (high - low) (1 + cos(pi epoch / T)) / 2, which rises again past T, as in the
    released code (T = 50 of 300 epochs). steps: a tenth from each of the step epochs on. Epoch e of
    w warm-up epochs has (e + 1) / (w + 1) of that.
    """
    rate = _scheduled(config, epoch)
    if epoch < config.warmup_epochs:
        return rate * (epoch + 1) / (config.warmup_epochs + 1)
    return rate


def _scheduled(config: TrainingConfig, epoch: int) -> float:
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "steps":
        return config.learning_rate * 0.1 ** sum(epoch >= step for step in config.step_epochs)
    low, high = config.minimum_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * epoch / config.cosine_period_epochs)) / 2
