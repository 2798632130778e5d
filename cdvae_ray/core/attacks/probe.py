"""Whether a classifier answers at random."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.core.attacks.inputs import (
    Classify,
    attacking,
    check_logits,
    check_positive,
    prepare,
)
from cdvae_ray.errors import ConfigError, DataError


def is_stochastic(
    classify: Classify, images: Tensor, *, num_forwards: int = 5, threshold: float = 1e-4
) -> bool:
    """max over images and pairs of forwards of |z_i / |z_i| - z_j / |z_j||_2 > threshold.

    The check of AutoAttack (Croce and Hein, 2020) for randomised defences, which gradient attacks
    have to meet under `eot`. Modules run in eval mode; the generators are those of an attack, go
    on from one forward to the next, and are as before afterwards.

    Args:
        classify: images in [0, 1] to logits (N, classes).
        images: (N, 3, H, W) in [0, 1].
        num_forwards: answers to compare, >= 2.
        threshold: > 0; above the rounding of a deterministic classifier.

    Raises:
        ConfigError: a setting outside its range.
        DataError: images or the classifier's answer are not as said, or logits are not finite.
    """
    if num_forwards < 2:
        raise ConfigError(
            "num_forwards", got=num_forwards, expected=">= 2", remedy="pass such a number"
        )
    check_positive("threshold", threshold)
    any_class = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    given = prepare(images, any_class)
    answers: list[Tensor] = []
    with attacking(classify, 0, given.images.device), torch.no_grad():
        for _ in range(num_forwards):
            logits = classify(given.images)
            check_logits(logits, len(images))
            if not bool(torch.isfinite(logits).all()):
                raise DataError(
                    "the classifier's answer",
                    got="NaN or infinity",
                    expected="finite logits",
                    remedy="repair the classifier before attacking it",
                )
            answers.append(_normalised(logits))
    differences = torch.cdist(torch.stack(answers, dim=1), torch.stack(answers, dim=1))
    return bool(differences.max() > threshold)


def _normalised(logits: Tensor) -> Tensor:
    """z / |z|_2 of each image, in double precision."""
    wide = logits.double()
    length: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return wide / length.clamp(min=1e-10)
