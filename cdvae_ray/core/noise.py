"""Gaussian noise of a given length: what a detector of adversarial images should let pass."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.errors import DataError

_MAX_STEPS = 64
_TOLERANCE = 1e-7
"""Of the squared length, relative: below what float32 pixels resolve."""


def matched_noise(images: Tensor, l2: Tensor, image_ids: Tensor, *, seed: int) -> Tensor:
    """Adds to each image Gaussian noise as long as its perturbation: clip(x + a z), z ~ N(0, I).

    a is chosen for each image such that |clip(x + a z) - x|_2 = l2 after clipping to [0, 1]. That
    is reached within rounding, except where l2 exceeds the length at which every pixel is 0 or 1:
    such an image gets that longest noise.

    Args:
        images: (N, 3, H, W) float in [0, 1].
        l2: (N,), lengths to match, pixels, at least 0 and finite.
        image_ids: (N,) int64; with the seed they decide z, whatever else is in the batch.
        seed: of the evaluation.

    Returns:
        (N, 3, H, W) float in [0, 1], of the dtype and device of the images.

    Raises:
        DataError: an image outside [0, 1], lengths that are not as above, or other numbers of rows.
    """
    _check(images, l2, image_ids)
    flat = images.flatten(1).double()
    keys = image_keys(seed, "noise.matched", 0, image_ids)
    normals = keyed_normal(keys, flat.shape[1]).double()
    # How far a pixel can go to the side that its noise points to.
    room = torch.where(normals > 0, 1 - flat, flat)
    squares, room_squares, target = normals**2, room**2, l2.double() ** 2
    # Newton's method on g(a^2) = sum_i min(a^2 z_i^2, room_i^2) = l2^2. g is concave and piecewise
    # linear: from the left it rises to the solution and arrives after finitely many steps.
    scale = target / squares.sum(dim=1)
    for _ in range(_MAX_STEPS):
        moved = scale[:, None] * squares
        free = moved < room_squares
        missing = target - torch.minimum(moved, room_squares).sum(dim=1)
        slope = (squares * free).sum(dim=1)
        open_ = (missing > _TOLERANCE * target) & (slope > 0)
        if not bool(open_.any()):
            break
        scale = torch.where(open_, scale + missing / slope.clamp_min(1e-300), scale)
    noisy = (flat + scale.sqrt()[:, None] * normals).clamp(0, 1)
    return noisy.view(images.shape).to(images.dtype)


def reference_noise(
    images: Tensor,
    image_ids: Tensor,
    *,
    std: float,
    pixel_mean: Tensor,
    pixel_std: Tensor,
    seed: int,
) -> Tensor:
    """The noise of Lee et al. (2018) and of the paper's code: N(0, s^2) on normalised pixels.

    Clipped to the least and the greatest normalised value of any channel, so that a pixel of
    another channel may leave [0, 1] a little: that is theirs.

    Args:
        images: (N, 3, H, W) float in [0, 1].
        image_ids: (N,) int64; with the seed they decide the noise, whatever else is in the batch.
        std: s > 0, in normalised units.
        pixel_mean, pixel_std: of the model's normalisation, (1, 3, 1, 1).
        seed: of the evaluation.

    Returns:
        (N, 3, H, W) in pixel units, of the dtype and device of the images.

    Raises:
        DataError: an image outside [0, 1], or another number of ids.
    """
    _check(images, torch.zeros(len(images), device=images.device), image_ids)
    keys = image_keys(seed, "noise.reference", 0, image_ids)
    normals = keyed_normal(keys, images[0].numel()).to(images.dtype).view(images.shape)
    black, white = -pixel_mean / pixel_std, (1 - pixel_mean) / pixel_std
    normalized = (images - pixel_mean) / pixel_std + std * normals
    clipped = normalized.clamp(float(black.amin()), float(white.amax()))
    return (clipped * pixel_std + pixel_mean).to(images.dtype)


def _check(images: Tensor, l2: Tensor, image_ids: Tensor) -> None:
    if images.dim() != 4 or not images.numel() or not images.is_floating_point():
        raise DataError(
            "images",
            got=f"{images.dtype} of shape {tuple(images.shape)}",
            expected="floating point (N, 3, H, W)",
            remedy="pass a batch of images",
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise DataError(
            "images",
            got="pixels outside [0, 1] or not finite",
            expected="pixels in [0, 1]",
            remedy="pass images before normalisation",
        )
    if l2.shape != (len(images),) or len(image_ids) != len(images):
        raise DataError(
            "lengths and ids of noise",
            got=f"shapes {tuple(l2.shape)} and {tuple(image_ids.shape)}",
            expected=f"({len(images)},)",
            remedy="pass one of each an image",
        )
    if not bool(((l2 >= 0) & l2.isfinite()).all()):
        raise DataError(
            "lengths of noise",
            got="negative or not finite ones",
            expected="0 or more",
            remedy="pass the L2 norms of perturbations",
        )
