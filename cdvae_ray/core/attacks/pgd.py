"""Projected gradient descent (Madry et al., 2018), Eq. (5)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.random import image_keys, keyed_uniform


def pgd_linf(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    num_steps: int,
    seed: int,
    image_ids: Tensor,
) -> Tensor:
    """Maximises the cross-entropy inside the L-infinity ball, Eqs. (4) and (5); last iterate.

    The step size is epsilon / sqrt(num_steps) and the start is uniform in the ball, as in the
    released code.

    Args:
        classify: images in [0, 1] to logits (N, classes).
        images: float, (N, 3, H, W), in [0, 1].
        labels: int64, (N,).
        epsilon: radius, in pixel units.
        num_steps: gradient steps.
        seed, image_ids: key the random start, (N,) ids; equal ids start equally in any batch.

    Returns:
        Adversarial images like `images`, in [0, 1] and within epsilon of them.
    """
    low, high = (images - epsilon).clamp(min=0.0), (images + epsilon).clamp(max=1.0)
    keys = image_keys(seed, "pgd", 0, image_ids).to(images.device)
    start = keyed_uniform(keys, images[0].numel()).view_as(images)
    adversarial = (images + epsilon * (2 * start - 1)).clamp(min=low, max=high)
    for _ in range(num_steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = F.cross_entropy(classify(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        step = epsilon / math.sqrt(num_steps) * gradient.sign()
        adversarial = (adversarial.detach() + step).clamp(min=low, max=high)
    return adversarial.detach()
