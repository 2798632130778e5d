"""Norm balls in pixel space: projection, steepest ascent, random starts, norms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cdvae_ray.core.random import image_keys, keyed_normal, keyed_uniform
from cdvae_ray.errors import ConfigError

Norm = Literal["linf", "l2"]


def check_norm(norm: str) -> None:
    """Raises ConfigError for anything but linf and l2."""
    if norm not in ("linf", "l2"):
        raise ConfigError("norm", got=repr(norm), expected="linf or l2", remedy="pass either")


def pixel_norm(perturbation: Tensor, norm: Norm) -> Tensor:
    """L-infinity or L2 norm of each perturbation (N, C, H, W): (N,)."""
    flat = perturbation.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    values: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return values


def project(points: Tensor, images: Tensor, *, norm: Norm, epsilon: float) -> Tensor:
    """The points of ball and box nearest to `points` (L2: first the ball, then the box)."""
    if norm == "linf":
        return torch.clamp(points, images - epsilon, images + epsilon).clamp_(0, 1)
    perturbation = points - images
    length = per_image(pixel_norm(perturbation, "l2"), points)
    # Clipping to the box moves towards the image, which lies in it, so the ball still holds it.
    return (images + perturbation * (epsilon / length.clamp(min=epsilon))).clamp_(0, 1)


def ascent_direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent of unit norm: the gradient's sign, or g / |g|; zero stays zero."""
    if norm == "linf":
        return gradient.sign()
    # Scaled by the largest entry first: |g| would underflow to 0 for a tiny g that is not zero.
    largest = per_image(pixel_norm(gradient, "linf"), gradient)
    scaled = gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = per_image(pixel_norm(scaled, "l2"), gradient)
    return scaled / length.clamp(min=1.0)


def random_start(
    images: Tensor, *, norm: Norm, epsilon: float, seed: int, restart: int, image_ids: Tensor
) -> Tensor:
    """Uniform in the ball, then clipped to the box.

    L2: direction of a normal vector, radius epsilon U^(1/d). An image's start depends on
    (seed, restart, image id) alone.
    """
    keys = image_keys(seed, "pgd", restart, image_ids).to(images.device)
    size = images[0].numel()
    if norm == "linf":
        uniform = keyed_uniform(keys, size).to(images.dtype).view_as(images)
        start = images + epsilon * (2 * uniform - 1)
    else:
        normal = keyed_normal(keys, size).to(images.dtype)
        # A draw of its own: the radius must not share its bits with the direction.
        radius_keys = image_keys(seed, "pgd.radius", restart, image_ids).to(images.device)
        radius = keyed_uniform(radius_keys, 1).to(images.dtype) ** (1 / size)
        direction = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
        start = images + (epsilon * radius * direction).view_as(images)
    return project(start, images, norm=norm, epsilon=epsilon)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values shaped to multiply a tensor (N, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
