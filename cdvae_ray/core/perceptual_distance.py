"""Perceptual distance in a classifier's own activations (Laidlaw et al., ICLR 2021).

It is the square root of LPIPS (Zhang et al., 2018) without learnt weights. "Self-bounded" in the
paper's words: the network that is attacked also measures how far an image has moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cdvae_ray.core.features import pooled_layers
from cdvae_ray.errors import DataError


def perceptual_features(activations: Mapping[str, Tensor]) -> Tensor:
    """phi(x): a_l / (|a_l| sqrt(width_l height_l)), of all layers, one after the other.

    |a_l| is the norm over channels at each position; where it is zero, so is the feature.

    Args:
        activations: `pooled_layers` among them, (N, planes, height, width) each, as a network's
            `activations` gives them.

    Returns:
        (N, D), at least float32; differentiable. Its norm is at most sqrt(number of layers).

    Raises:
        DataError: a layer is absent, or not of that shape.
    """
    layers = pooled_layers(activations)
    return torch.cat([_layer(name, activations.get(name)) for name in layers], dim=1)


def perceptual_distance(a: Tensor, b: Tensor) -> Tensor:
    """d(x, x') = |phi(x) - phi(x')|_2, with a gradient of zero where it is zero.

    Args:
        a, b: perceptual features of two batches of images, (N, D) each.

    Returns:
        (N,), in [0, 2 sqrt(number of layers)].
    """
    # At zero PyTorch takes the subgradient 0 of this norm; the root of a sum of squares has NaN.
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=1)
    return distance


def _layer(name: str, activation: Tensor | None) -> Tensor:
    if activation is None or activation.dim() != 4:
        raise DataError(
            f"activation {name}",
            got="none" if activation is None else f"shape {tuple(activation.shape)}",
            expected="shape (N, planes, height, width)",
            remedy="pass what a network's activations returns",
        )
    # Under autocast activations may arrive in bfloat16, too coarse for differences of neighbours.
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    # Not length + 1e-10, as released: the gradient where it is zero would be 1e10.
    unit = wide / torch.where(length > 0, length, 1.0)
    return (unit / math.sqrt(unit.shape[2] * unit.shape[3])).flatten(1)
