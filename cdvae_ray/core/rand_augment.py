"""RandAugment in FixMatch's form, on whole batches and with PIL's arithmetic.

Cubuk et al., "RandAugment" (2020); Sohn et al., "FixMatch" (2020). Each operation works on
`levels`: float32 images (N, 3, H, W) whose values are the integers 0..255, where float32 represents
every intermediate result of PIL's integer arithmetic exactly. The images of a batch are sorted by
operation; the sorting happens on the CPU, so that a device is never waited for.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.random import keyed_uniform
from cdvae_ray.errors import ConfigError, DataError

MAX_STRENGTH = 10
"""The strength that a magnitude is counted out of."""
_WHITE = 255
_LEVELS = 256
_FIXED_POINT_BITS = 16


class Operation(IntEnum):
    """The pool; the operations that move pixels come last, to be sorted into one group."""

    AUTO_CONTRAST = 0
    BRIGHTNESS = 1
    COLOR = 2
    CONTRAST = 3
    EQUALIZE = 4
    IDENTITY = 5
    POSTERIZE = 6
    SHARPNESS = 7
    SOLARIZE = 8
    ROTATE = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13


_MOVING = tuple(code for code in Operation if code >= Operation.ROTATE)
_GROUPS = (*((code,) for code in Operation if code < Operation.ROTATE), _MOVING)


class RandAugmentPlan(NamedTuple):
    """What is done to each image: n operations one after the other; all tensors on the CPU."""

    operations: Tensor
    """(N, n) int64, codes of `Operation`; IDENTITY where the draw left the operation out."""
    strengths: Tensor
    """(N, n) int64, 1..10."""
    signs: Tensor
    """(N, n) int64, -1 or 1: the direction of the operations that move pixels."""


def plan_rand_augment(keys: Tensor, *, num_ops: int, magnitude: int) -> RandAugmentPlan:
    """Draw n operations an image with replacement, each left out with probability 1/2.

    Strengths are uniform in 1..m-1, signs fair (Sohn et al. 2020, released code).

    Args:
        keys: (N,) int64 on the CPU, one an image.
        num_ops: n, 0 or more.
        magnitude: m, in 2..11.

    Returns:
        The plan, on the CPU.

    Raises:
        ConfigError: `num_ops` or `magnitude` is out of range.
        DataError: `keys` is not a vector of int64.
    """
    if num_ops < 0 or not 2 <= magnitude <= MAX_STRENGTH + 1:
        raise ConfigError(
            "RandAugment's n and m",
            got=f"n={num_ops}, m={magnitude}",
            expected=f"n >= 0 and m in 2..{MAX_STRENGTH + 1}",
            remedy="use the released n=2, m=10",
        )
    draws = keyed_uniform(keys, 4 * num_ops).view(len(keys), num_ops, 4)
    operations = (draws[..., 0] * len(Operation)).long()
    left_out = draws[..., 1] >= 0.5
    return RandAugmentPlan(
        operations=operations.masked_fill(left_out, Operation.IDENTITY),
        strengths=(draws[..., 2] * (magnitude - 1)).long() + 1,
        signs=(draws[..., 3] * 2).long() * 2 - 1,
    )


def rand_augment(images: Tensor, plan: RandAugmentPlan) -> Tensor:
    """Apply a plan to a batch, as PIL would to each of its images.

    Args:
        images: (N, 3, H, W) float32 in [0, 1]; rounded to multiples of 1/255, unless the plan is
            empty.
        plan: from `plan_rand_augment`, for the same N images.

    Returns:
        (N, 3, H, W) float32, multiples of 1/255 in [0, 1], on the images' device.

    Raises:
        DataError: the plan is for another number of images.
    """
    if len(plan.operations) != len(images):
        raise DataError(
            "RandAugment's plan",
            got=f"{len(plan.operations)} rows for {len(images)} images",
            expected="one row an image",
            remedy="draw the plan from the keys of these images",
        )
    num_ops = plan.operations.shape[1]
    if num_ops == 0 or len(images) == 0:
        return images
    levels = images.mul(_WHITE).round_()
    for step in range(num_ops):
        levels = _apply_step(
            levels, plan.operations[:, step], plan.strengths[:, step], plan.signs[:, step]
        )
    return levels.div_(_WHITE)


def _apply_step(levels: Tensor, operations: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Apply one operation to each image; the last three arguments are (N,) on the CPU."""
    order = operations.argsort(stable=True)
    # Both permutations travel together: each transfer costs more than its few bytes.
    there, back = torch.stack([order, order.argsort()]).to(levels.device, non_blocking=True)
    levels = levels.index_select(0, there)
    operations, strengths, signs = operations[order], strengths[order], signs[order]
    counts = operations.bincount(minlength=len(Operation)).tolist()
    results, start = [], 0
    for codes in _GROUPS:
        stop = start + sum(counts[code] for code in codes)
        if stop > start:
            group = slice(start, stop)
            results.append(
                _apply_group(levels[group], operations[group], strengths[group], signs[group])
            )
        start = stop
    return torch.cat(results).index_select(0, back)


def _apply_group(levels: Tensor, operations: Tensor, strengths: Tensor, signs: Tensor) -> Tensor:
    """Apply one operation, or any that move pixels, to all these images."""
    operation, device = Operation(int(operations[0])), levels.device
    if operation >= Operation.ROTATE:
        height, width = levels.shape[2:]
        matrices = affine_matrices(operations, strengths * signs, height=height, width=width)
        return affine(levels, matrices.to(device, non_blocking=True))
    match operation:
        case Operation.AUTO_CONTRAST:
            return auto_contrast(levels)
        case Operation.EQUALIZE:
            return equalize(levels)
        case Operation.IDENTITY:
            return levels
        case Operation.POSTERIZE:
            bits = 4 + 4 * strengths // MAX_STRENGTH
            return posterize(levels, bits.to(device, non_blocking=True))
        case Operation.SOLARIZE:
            thresholds = _LEVELS - _LEVELS * strengths // MAX_STRENGTH
            return solarize(levels, thresholds.to(device, non_blocking=True))
    # Computed in float64, as PIL's callers do, and rounded once.
    factors = (0.05 + 0.9 * strengths.double() / MAX_STRENGTH).float()
    return _ENHANCEMENTS[operation](levels, factors.to(device, non_blocking=True))


def brightness(levels: Tensor, factors: Tensor) -> Tensor:
    """Blend with black, as PIL's ImageEnhance.Brightness: floor(factor x).

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.
        factors: (N,) float32 in [0, 1]; 1 keeps the image.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    return (levels * _per_image(factors)).floor_()


def color(levels: Tensor, factors: Tensor) -> Tensor:
    """Blend with the luma of each pixel, as PIL's ImageEnhance.Color.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.
        factors: (N,) float32 in [0, 1]; 1 keeps the image.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    return _blend(_luma(levels), levels, factors)


def contrast(levels: Tensor, factors: Tensor) -> Tensor:
    """Blend with the rounded mean luma of the image, as PIL's ImageEnhance.Contrast.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.
        factors: (N,) float32 in [0, 1]; 1 keeps the image.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    num_pixels = levels.shape[2] * levels.shape[3]
    total = _luma(levels).sum(dim=(1, 2, 3), dtype=torch.int64)
    # floor(mean + 1/2) in integers: a float32 sum of a large image would not be exact.
    mean = (2 * total + num_pixels).div_(2 * num_pixels, rounding_mode="floor")
    return _blend(_per_image(mean.float()), levels, factors)


def sharpness(levels: Tensor, factors: Tensor) -> Tensor:
    """Blend with the 3x3 smoothed image, borders kept, as PIL's ImageEnhance.Sharpness.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.
        factors: (N,) float32 in [0, 1]; 1 keeps the image.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    # PIL's ImageFilter.SMOOTH: ones around a five, over thirteen; 13 being odd, nothing ties.
    smoothed = levels.clone()
    smoothed[:, :, 1:-1, 1:-1] = box.add_(levels[:, :, 1:-1, 1:-1], alpha=4).div_(13).round_()
    return _blend(smoothed, levels, factors)


def auto_contrast(levels: Tensor) -> Tensor:
    """Stretch each channel to 0..255, as PIL's ImageOps.autocontrast; a flat channel is kept.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    low, high = levels.amin(dim=(2, 3), keepdim=True), levels.amax(dim=(2, 3), keepdim=True)
    # float64 and this order of operations, as in PIL: truncation would show another rounding, such
    # as that of 255 / tensor, which torch computes as a reciprocal times 255.
    span = (high - low).clamp_(min=1).double()
    scale = torch.full_like(span, _WHITE).div_(span)
    stretched = levels.double().mul_(scale).add_(-low.double() * scale)
    return torch.where(high > low, stretched.clamp_(0, _WHITE).floor_().float(), levels)


def equalize(levels: Tensor) -> Tensor:
    """Flatten each channel's histogram, as PIL's ImageOps.equalize.

    With h the histogram, step = (sum(h) - h[max]) // 255 and level i becomes
    (step // 2 + sum(h[:i])) // step, at most 255; step 0 keeps the channel.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    indices = levels.flatten(2).long()
    histogram = indices.new_zeros(*indices.shape[:2], _LEVELS)
    histogram.scatter_add_(2, indices, torch.ones_like(indices))
    cumulative = histogram.cumsum(2)
    highest = histogram.gather(2, indices.amax(2, keepdim=True))
    step = (indices.shape[2] - highest).div_(_WHITE, rounding_mode="floor")
    table = (cumulative - histogram + step // 2) // step.clamp(min=1)
    equalized = table.clamp_(max=_WHITE).gather(2, indices)
    return torch.where(step > 0, equalized, indices).float().view(levels.shape)


def posterize(levels: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each level, as PIL's ImageOps.posterize.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.
        bits: (N,) int64 in 1..8.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    step = _per_image(torch.ones_like(bits).bitwise_left_shift_(8 - bits))
    return (levels / step).floor_().mul_(step)


def solarize(levels: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the levels from a threshold on, as PIL's ImageOps.solarize.

    Args:
        levels: (N, 3, H, W) float32, integers in 0..255.
        thresholds: (N,) int64 in 0..256; 256 keeps the image.

    Returns:
        (N, 3, H, W) float32, integers in 0..255.
    """
    return torch.where(levels >= _per_image(thresholds), _WHITE - levels, levels)


def affine_matrices(operations: Tensor, strengths: Tensor, *, height: int, width: int) -> Tensor:
    """Build PIL's inverse maps, from output (x, y) to input (a x + b y + c, d x + e y + f).

    For a strength v: rotation by 30 v/10 degrees about the centre, in whole degrees; shear by
    0.3 v/10 about the upper left corner; translation by 0.3 v/10 of the side, in whole pixels.

    Args:
        operations: (N,) int64, codes of `Operation` from ROTATE on.
        strengths: (N,) int64 in -10..10, signed.
        height: the images' height, in pixels.
        width: the images' width, in pixels.

    Returns:
        (N, 2, 3) float64, rows (a, b, c) and (d, e, f), on the device of `operations`.
    """
    fraction = 0.3 * strengths.double() / MAX_STRENGTH
    degrees = (30 * strengths).div(MAX_STRENGTH, rounding_mode="trunc")
    angle = torch.where(operations == Operation.ROTATE, -degrees.double() * (math.pi / 180), 0.0)
    cosine, sine = angle.cos(), angle.sin()
    a, b, d, e = cosine, sine, -sine, cosine
    centre_x, centre_y = width / 2, height / 2
    c = centre_x - a * centre_x - b * centre_y
    f = centre_y - d * centre_x - e * centre_y
    b = b + torch.where(operations == Operation.SHEAR_X, fraction, 0.0)
    d = d + torch.where(operations == Operation.SHEAR_Y, fraction, 0.0)
    c = c + torch.where(operations == Operation.TRANSLATE_X, (fraction * width).trunc(), 0.0)
    f = f + torch.where(operations == Operation.TRANSLATE_Y, (fraction * height).trunc(), 0.0)
    return torch.stack([a, b, c, d, e, f], dim=1).view(-1, 2, 3)


def affine(levels: Tensor, matrices: Tensor) -> Tensor:
    """Resample at the nearest pixel with zeros outside, as PIL's Image.transform(AFFINE).

    The positions are PIL's own 16.16 fixed-point numbers, so that ties fall alike on every device.

    Args:
        levels: (N, C, H, W) float32.
        matrices: (N, 2, 3) float64 inverse maps in pixels, from `affine_matrices`.

    Returns:
        (N, C, H, W) float32.
    """
    height, width = levels.shape[2:]
    at_centres = matrices.clone()
    at_centres[..., 2] += (matrices[..., 0] + matrices[..., 1]) * 0.5
    fixed = at_centres.mul_(1 << _FIXED_POINT_BITS).add_(0.5).floor_().long()
    along_x, along_y, origin = fixed[..., None, None].unbind(2)
    x = torch.arange(width, device=levels.device)
    y = torch.arange(height, device=levels.device)[:, None]
    source = (along_x * x + along_y * y + origin).bitwise_right_shift_(_FIXED_POINT_BITS)
    source_x, source_y = source.unbind(1)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    outside = ~inside
    indices = (source_y * width + source_x).masked_fill_(outside, 0).flatten(1)[:, None]
    moved = levels.flatten(2).gather(2, indices.expand(-1, levels.shape[1], -1))
    return moved.view(levels.shape).masked_fill_(outside[:, None], 0.0)


_ENHANCEMENTS = {
    Operation.BRIGHTNESS: brightness,
    Operation.COLOR: color,
    Operation.CONTRAST: contrast,
    Operation.SHARPNESS: sharpness,
}


def _luma(levels: Tensor) -> Tensor:
    """ITU-R 601 luma in PIL's 16-bit fixed point, (N, 1, H, W): sums stay below 2**24."""
    red, green, blue = levels[:, 0:1], levels[:, 1:2], levels[:, 2:3]
    weighted = red * 19595 + green * 38470 + blue * 7471
    return weighted.add_(1 << 15).mul_(2.0**-16).floor_()


def _blend(degenerate: Tensor, levels: Tensor, factors: Tensor) -> Tensor:
    # Two roundings and a truncation, as in PIL's C code; lerp would fuse the roundings.
    scaled = (levels - degenerate).mul_(_per_image(factors))
    return scaled.add_(degenerate).floor_()


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
