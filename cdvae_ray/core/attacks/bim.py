"""The basic iterative method (Kurakin et al., 2017)."""

from __future__ import annotations

from torch import Tensor

from cdvae_ray.core.attacks.inputs import Classify
from cdvae_ray.core.attacks.losses import cross_entropy
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.pixels import climb_pixels


def bim(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    num_steps: int,
    step_size: float | None = None,
    keep: Keep = "best",
    drop_fooled: bool | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """Eq. (5) in the L-infinity ball from the image itself: PGD without its random start.

    Args and errors: as `pgd`, whose random start, norm and restarts it lacks.
    """
    return climb_pixels(
        classify,
        images,
        labels,
        loss=cross_entropy,
        norm="linf",
        epsilon=epsilon,
        num_steps=num_steps,
        step_size=step_size,
        random=False,
        num_restarts=1,
        keep=keep,
        drop_fooled=drop_fooled,
        targets=targets,
        seed=seed,
        image_ids=image_ids,
    )
