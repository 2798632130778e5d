"""Fast Lagrangian perceptual attack (Laidlaw et al., ICLR 2021, appendix), for training against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdvae_ray.core.attacks.balls import ascent_direction, per_image, pixel_norm
from cdvae_ray.core.attacks.inputs import (
    Prepared,
    check_classes,
    check_logits,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import Goal
from cdvae_ray.core.perceptual_distance import perceptual_distance
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.errors import DataError

LookPerceptually = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (N, 3, H, W) in [0, 1] to logits (N, classes) and perceptual features (N, D)."""

START_DEVIATION = 0.01
"""Standard deviation of the random start, in pixel units, as in the paper."""
PROBE_LENGTH = 0.1
"""h: L2 length, in pixel units, of the finite difference; as released."""
SMALLEST_SLOPE = 1e-4
"""Perceptual distance per pixel unit below which a direction has no length to measure it by. The
released code adds this number to every slope, and so steps thousands of pixel units at zero."""


def fast_lagrangian(
    look: LookPerceptually,
    images: Tensor,
    labels: Tensor,
    *,
    bound: float,
    num_steps: int = 10,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> Tensor:
    """Ascends margin(x') - lambda max(0, d(x', x) - bound) by steps of a given perceptual length.

    From x' = x + 0.01 N(0, I), for t = 1, ..., T = num_steps:

        lambda_t = 10^(t / T), so from 10^(1 / T) up to 10
        g = normalised gradient of margin(x') - lambda_t max(0, d(x', x) - bound)
        eta_t = bound 0.1^(t / T), so down to bound / 10
        m = d(x', x' + h g) / h, with h = 0.1
        x' = clamp(x' + eta_t / m g, 0, 1)

    as in the paper's algorithm; the released code has the same with t = 0, ..., T - 1. Nothing
    projects the result, as in perceptual adversarial training: d(x', x) may exceed the bound, so
    these are images to train on and not to measure robustness with.

    Departs from both: the start is clamped to [0, 1]; an image does not move where the gradient is
    zero or not finite, or where m is too small to divide by.

    Args:
        look: of the attacked network, differentiable. The images of the finite difference may
            leave [0, 1] by h. Its modes are the caller's: eval mode, for images to be attacked one
            by one. No parameter is given a gradient.
        images: (N, 3, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        bound: of the perceptual distance, > 0; 0.5 where the authors train on CIFAR-10.
        num_steps: T, >= 1; 10 where the authors train.
        seed, image_ids: key the random start, so that an image starts equally in any batch; ids
            default to the positions in the batch.

    Returns:
        Adversarial images in [0, 1], like the given ones, detached.

    Raises:
        ConfigError: bound or num_steps is outside its range.
        DataError: images, labels or what `look` answers are not as said.
    """
    check_positive("bound", bound)
    check_steps(num_steps)
    given = prepare(images, labels, image_ids=image_ids)
    with torch.no_grad():
        logits, clean = look(given.images)
    check_logits(logits, len(images))
    check_classes(given.goal.labels, logits.shape[1])
    _check_features(clean, len(images))
    points = _start(given, seed)
    for step in range(1, num_steps + 1):
        weight = 10 ** (step / num_steps)
        length = bound * 0.1 ** (step / num_steps)
        gradient, features = _gradient(look, points, clean, given.goal, bound=bound, weight=weight)
        direction = ascent_direction(gradient, "l2")
        with torch.no_grad():
            _, nearby = look(points + PROBE_LENGTH * direction)
            slope = perceptual_distance(nearby, features) / PROBE_LENGTH
            size = torch.where(slope > SMALLEST_SLOPE, length / slope, 0.0).to(points.dtype)
            points = (points + per_image(size, points) * direction).clamp_(0, 1)
    return points


def _start(given: Prepared, seed: int) -> Tensor:
    """Each image with noise that depends on (seed, image id) alone."""
    keys = image_keys(seed, "fast_lagrangian", 0, given.image_ids).to(given.images.device)
    noise = keyed_normal(keys, given.images[0].numel()).to(given.images.dtype)
    return (given.images + START_DEVIATION * noise.view_as(given.images)).clamp_(0, 1)


def _gradient(
    look: LookPerceptually,
    points: Tensor,
    clean: Tensor,
    goal: Goal,
    *,
    bound: float,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Of the Lagrangian, zero for an image where it is not finite; and the points' features."""
    with torch.enable_grad():
        variable = points.detach().requires_grad_()
        logits, features = look(variable)
        excess = (perceptual_distance(features, clean) - bound).relu()
        total = (margin(logits, goal) - weight * excess).sum()
        if not total.requires_grad:
            return torch.zeros_like(points), features
        (gradient,) = torch.autograd.grad(total, variable, allow_unused=True)
    if gradient is None:
        return torch.zeros_like(points), features.detach()
    finite = torch.isfinite(pixel_norm(gradient, "linf"))
    return torch.where(per_image(finite, gradient), gradient, 0.0), features.detach()


def _check_features(features: Tensor, count: int) -> None:
    if features.dim() != 2 or len(features) != count or not features.is_floating_point():
        raise DataError(
            "the perceptual features",
            got=f"{features.dtype} of shape {tuple(features.shape)}",
            expected=f"floating point of shape ({count}, D)",
            remedy="answer with what perceptual_features makes of the activations",
        )
