"""Projected gradient ascent on the margin of the logits: the paper's "C&W" rows."""

from __future__ import annotations

import functools
import math

from torch import Tensor

from cdvae_ray.core.attacks.balls import Norm
from cdvae_ray.core.attacks.inputs import Classify
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.pixels import climb_pixels
from cdvae_ray.errors import ConfigError


def margin_pgd(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    num_steps: int,
    norm: Norm = "linf",
    step_size: float | None = None,
    confidence: float = math.inf,
    num_restarts: int = 1,
    keep: Keep = "best",
    drop_fooled: bool | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """PGD on min(max_{k != y} z_k - z_y, confidence), the loss of Carlini and Wagner (2017).

    Args:
        confidence: kappa >= 0: the loss is flat above it, so that an image stays where it is.
            The paper's detection uses 1000, its training attack 10. The released code divides
            0 by 0 there and puts the clean image in place of NaN; here the step is zero.
        others, errors: as `pgd`.
    """
    if not confidence >= 0:
        raise ConfigError(
            "confidence", got=confidence, expected="a number >= 0", remedy="pass such a number"
        )
    return climb_pixels(
        classify,
        images,
        labels,
        loss=functools.partial(margin, confidence=confidence),
        norm=norm,
        epsilon=epsilon,
        num_steps=num_steps,
        step_size=step_size,
        random=True,
        num_restarts=num_restarts,
        keep=keep,
        drop_fooled=drop_fooled,
        targets=targets,
        seed=seed,
        image_ids=image_ids,
    )
