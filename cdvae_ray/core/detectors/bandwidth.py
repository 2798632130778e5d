"""The bandwidth of the kernel density, by the likelihood of clean images held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.detectors.checks import check_features, check_labels
from cdvae_ray.core.detectors.kernel_density import (
    KernelSums,
    check_bandwidths,
    fit_kernel_density,
    log_kernel_sums,
)
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.errors import ConfigError, DataError


class BandwidthChoice(NamedTuple):
    """The candidate under which clean images held out are likeliest."""

    bandwidth: float
    """h, in units of the features; the first of equals."""
    log_likelihoods: tuple[float, ...]
    """Mean log p_y(f) over the images held out, nats, a candidate each."""


def choose_bandwidth(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    candidates: Sequence[float],
    *,
    holdout_fraction: float = 0.1,
    seed: int = 0,
) -> BandwidthChoice:
    """Fits densities of the true classes to a part of the images and scores the others.

    Clean training images suffice: no adversarial image and no test image takes part. A choice at
    either end of the candidates says that they do not reach far enough.

    Args:
        features: (N, d), floating point, of clean training images.
        labels: (N,) int64 in [0, num_classes), their true classes.
        num_classes: C.
        candidates: bandwidths h > 0 to choose from.
        holdout_fraction: share of each class that is held out, in (0, 1), at least one image.
        seed: decides, with an image's position, whether it is held out.

    Raises:
        ConfigError: no candidate, one that is not positive, or a fraction outside (0, 1).
        DataError: features or labels as `fit_kernel_density` refuses them, or a class with fewer
            than two images.
    """
    if not 0 < holdout_fraction < 1:
        raise ConfigError(
            "holdout_fraction", got=holdout_fraction, expected="in (0, 1)", remedy="pass 0.1"
        )
    check_bandwidths(candidates)
    check_features(features)
    check_labels(labels, len(features), num_classes)
    held_out = _held_out(labels, num_classes, holdout_fraction, seed)
    density = fit_kernel_density(
        features[~held_out], labels[~held_out], num_classes, bandwidth=candidates[0]
    )
    queries, classes = features[held_out].detach(), labels[held_out]
    counts = torch.tensor(density.counts, device=labels.device)[classes]
    likelihoods = []
    for bandwidth, log_sums in zip(
        candidates, log_kernel_sums(density, queries, classes, candidates), strict=True
    ):
        sums = KernelSums(log_sums=log_sums, counts=counts)
        scores = replace(density, bandwidth=bandwidth).score_of_sums(sums)
        likelihoods.append(-float(scores.mean()))
    best = max(range(len(candidates)), key=lambda index: likelihoods[index])
    return BandwidthChoice(candidates[best], tuple(likelihoods))


def _held_out(labels: Tensor, num_classes: int, fraction: float, seed: int) -> Tensor:
    """(N,) bool: of each class the share with the smallest keyed numbers, never all of it."""
    positions = torch.arange(len(labels), device=labels.device)
    draws = keyed_uniform(image_keys(seed, "detectors.holdout", 0, positions), 1)[:, 0]
    chosen = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in range(num_classes):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) < 2:
            raise DataError(
                "images to choose a bandwidth by",
                got=f"{len(rows)} of class {label}",
                expected="at least 2 of each class",
                remedy="pass more images",
            )
        count = min(max(1, math.floor(fraction * len(rows))), len(rows) - 1)
        chosen[rows[draws[rows].argsort(stable=True)[:count]]] = True
    return chosen
