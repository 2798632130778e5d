"""The fast gradient sign method (Goodfellow et al., 2015), Eq. (4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cdvae_ray.core.attacks.inputs import Classify, attacking, check_keep, check_positive, prepare
from cdvae_ray.core.attacks.losses import cross_entropy
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.pixels import PixelSearch, pixel_result
from cdvae_ray.core.attacks.search import maximize
from cdvae_ray.errors import ConfigError


def fgsm(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    keep: Keep = "last",
    drop_fooled: bool | None = None,
    sign_of_zero: Literal[0, 1] = 0,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """x' = clip(x + epsilon sign(grad_x CE(classify(x), y)), 0, 1).

    Args:
        classify: images in [0, 1] to logits (N, classes).
        images: (N, 3, H, W) in [0, 1].
        labels: (N,) int64.
        epsilon: L-infinity radius, in pixel units, > 0.
        keep: last: x' (its one step leaves no choice). best: x itself where it has fooled already
            or has the higher loss.
        drop_fooled: with keep="best" only; None: as keep says.
        sign_of_zero: 1 moves pixels of zero gradient up, as the paper's detection attack does.
        targets: (N,) int64, classes to aim at; None: away from the labels.
        seed, image_ids: fix the draws of a stochastic classifier.

    Raises:
        ConfigError, DataError: an argument is not so.
    """
    check_positive("epsilon", epsilon)
    if sign_of_zero not in (0, 1):
        raise ConfigError("sign_of_zero", got=sign_of_zero, expected="0 or 1", remedy="pass either")
    drop = check_keep(keep, drop_fooled, classify)
    given = prepare(images, labels, targets=targets, image_ids=image_ids)
    search = PixelSearch(
        given.images, "linf", epsilon, step_size=epsilon, sign_of_zero=sign_of_zero
    )
    with attacking(classify, seed, given.images.device):
        found = maximize(
            classify,
            search,
            given.images,
            given.goal,
            loss=cross_entropy,
            num_steps=1,
            keep=keep,
            drop_fooled=drop,
        )
    return pixel_result(found, given.images, "linf")
