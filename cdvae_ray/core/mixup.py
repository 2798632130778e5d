"""Mixup: convex pairs of images and of their losses."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import ConfigError


class MixedBatch(NamedTuple):
    """Mixed images; their loss is weight CE(labels) + (1 - weight) CE(partner_labels)."""

    images: Tensor
    """(N, C, H, W), in the range of the images that were mixed."""
    labels: Tensor
    """(N,), the labels of the images themselves."""
    partner_labels: Tensor
    """(N,), the labels of the images that were mixed in."""
    weight: float
    """lambda in [0, 1], the share of the images themselves."""


def mixup(
    images: Tensor, labels: Tensor, *, alpha: float, seed: int, epoch: int, batch_index: int
) -> MixedBatch:
    """Mix each image with its neighbour: lambda x_i + (1 - lambda) x_(i XOR 1), Zhang et al. 2018.

    lambda ~ Beta(alpha, alpha) is one number for the whole global batch. Departs from the paper's
    random permutation: neighbours in a shuffled order are a uniformly random pairing already, and
    they stay on one worker wherever a batch is split at even positions. An odd last image mixes
    with itself.

    Args:
        images: (N, C, H, W) float, in a shuffled order.
        labels: (N,) classes.
        alpha: the Beta distribution's parameter; 0 turns mixup off.
        seed: the run's seed.
        epoch: the epoch, counted from 0.
        batch_index: the global batch's index in the epoch, the same on every worker.

    Returns:
        The mixed batch on the images' device; with alpha 0 the arguments themselves and weight 1.

    Raises:
        ConfigError: `alpha` is negative.
    """
    if alpha < 0:
        raise ConfigError("mixup alpha", got=alpha, expected="0 or more", remedy="use 0 for none")
    if alpha == 0:
        return MixedBatch(images, labels, labels, 1.0)
    generator = random.Random(derive_seed(seed, "mixup", epoch, batch_index))
    weight = generator.betavariate(alpha, alpha)
    positions = torch.arange(len(images), device=images.device)
    # XOR sends an odd last position past the end: the clamp brings it back to itself.
    partners = positions.bitwise_xor(1).clamp_(max=len(images) - 1)
    mixed = torch.lerp(images, images.index_select(0, partners), 1.0 - weight)
    return MixedBatch(mixed, labels, labels.index_select(0, partners), weight)
