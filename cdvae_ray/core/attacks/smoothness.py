"""Total variation of a field of displacements: the flow loss of StAdv, in two and in three axes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdvae_ray.core.attacks.balls import per_image
from cdvae_ray.core.attacks.cache import cache_slices
from cdvae_ray.errors import ConfigError

_OFFSET = 1e-10


def total_variation(field: Tensor) -> Tensor:
    """sum over points p, axes and both neighbours q of sqrt(|d_p - d_q|^2 + 1e-10).

    Xiao et al. (2018), Eq. (4), with the root's offset of the released code. A point at an edge is
    its own neighbour there.

    Args:
        field: d, (N, C, ...): vectors of C numbers on a grid of one axis or more.

    Returns:
        (N,), differentiable once.
    """
    values: Tensor = _TotalVariation.apply(field)
    return values


def check_smoothness(smoothness: float) -> None:
    """Raises ConfigError unless the weight is finite and not negative."""
    if not (math.isfinite(smoothness) and smoothness >= 0):
        raise ConfigError(
            "smoothness",
            got=smoothness,
            expected="a finite number >= 0",
            remedy="pass such a number",
        )


class _TotalVariation(torch.autograd.Function):
    """Value and gradient in one go: autograd would visit every difference several times more."""

    @staticmethod
    def forward(ctx: Any, field: Tensor) -> Tensor:
        values = field.new_full((len(field),), edge_terms(field))
        gradient = torch.zeros_like(field) if ctx.needs_input_grad[0] else None
        for rows in cache_slices(field):
            for axis in range(2, field.dim()):
                part = None if gradient is None else gradient[rows]
                values[rows] += _along(field[rows], axis, part)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        gradient: Tensor = ctx.saved_tensors[0]
        return gradient * per_image(outer, gradient)


def edge_terms(field: Tensor) -> float:
    """What the points at the edges add, each a constant for being its own neighbour."""
    num_points = math.prod(field.shape[2:])
    num_edges = sum(2 * num_points // size for size in field.shape[2:])
    return num_edges * math.sqrt(_OFFSET)


def _along(field: Tensor, axis: int, gradient: Tensor | None) -> Tensor:
    """The terms of one axis but its edges, (N,); adds their gradient to `gradient`."""
    size = field.shape[axis] - 1
    if size == 0:
        return field.new_zeros(len(field))
    difference = field.narrow(axis, 1, size) - field.narrow(axis, 0, size)
    squared = difference.square().sum(dim=1, keepdim=True).add_(_OFFSET)
    # A pair of neighbours counts twice, once from either side.
    inverse = squared.rsqrt().mul_(2)
    if gradient is not None:
        difference.mul_(inverse)
        gradient.narrow(axis, 1, size).add_(difference)
        gradient.narrow(axis, 0, size).sub_(difference)
    return squared.mul_(inverse).flatten(1).sum(dim=1)
