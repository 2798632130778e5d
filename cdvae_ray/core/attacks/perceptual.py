"""What the attacks share whose points are perturbations in a space of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.core.attacks.inputs import Classify, Prepared, attacking
from cdvae_ray.core.attacks.losses import Loss
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.search import Search, maximize
from cdvae_ray.errors import DataError


def climb_perturbations(
    classify: Classify,
    search: Search,
    start: Tensor,
    given: Prepared,
    *,
    loss: Loss,
    num_steps: int,
    keep: Keep,
    drop_fooled: bool,
    seed: int,
) -> AttackResult:
    """Climbs the loss over points (N, ...) that are zero where nothing is perturbed.

    The norm is each point's largest magnitude.
    """
    with attacking(classify, seed, given.images.device):
        found = maximize(
            classify,
            search,
            start,
            given.goal,
            loss=loss,
            num_steps=num_steps,
            keep=keep,
            drop_fooled=drop_fooled,
        )
    with torch.no_grad():
        images = search.render(found.points)
    return AttackResult(
        images=images,
        success=found.success,
        loss=found.loss,
        norm=found.points.flatten(1).abs().amax(dim=1),
        zero_gradient=found.zero_gradient,
        nonfinite_gradient=found.nonfinite_gradient,
    )


def check_colors(images: Tensor) -> None:
    """Raises DataError unless images are (N, 3, H, W): what is not has no such colors."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise DataError(
            "images",
            got=f"shape {tuple(images.shape)}",
            expected="red, green and blue: shape (N, 3, H, W)",
            remedy="repeat a gray channel three times",
        )
