"""Projected gradient descent (Madry et al., 2018), Eq. (5)."""

from __future__ import annotations

from torch import Tensor

from cdvae_ray.core.attacks.balls import Norm
from cdvae_ray.core.attacks.inputs import Classify
from cdvae_ray.core.attacks.losses import cross_entropy
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.pixels import climb_pixels


def pgd(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    num_steps: int,
    norm: Norm = "linf",
    step_size: float | None = None,
    num_restarts: int = 1,
    keep: Keep = "best",
    drop_fooled: bool | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """Projected gradient ascent on the cross-entropy, Eqs. (4) and (5), from a random start.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        images: (N, 3, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        epsilon: radius of the ball, in pixel units, > 0.
        num_steps: gradient steps, >= 1.
        norm: linf: steps along the gradient's sign. l2: along the normalised gradient.
        step_size: > 0, in pixel units; None: epsilon / sqrt(num_steps), as released.
        num_restarts: random starts, of which the best outcome is kept (keep="best" only).
        keep: best: an iterate that fools, among equals the one of highest loss. last: the last.
        drop_fooled: stop an image at its first iterate that fools. None: with keep="best". False
            goes on to a higher loss, which an attack that is to transfer needs.
        targets: (N,) int64, classes to aim at; None: away from the labels.
        seed, image_ids: key the random start, so that an image starts equally in any batch; ids
            default to the positions in the batch.

    Raises:
        ConfigError: a setting outside its range.
        DataError: images, labels or the classifier's answer are not as said.
    """
    return climb_pixels(
        classify,
        images,
        labels,
        loss=cross_entropy,
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
