"""Two detectors that a CD-VAE gives away: what G leaves over, and whether two classifiers agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdvae_ray.errors import DataError


def residual_l2(images: Tensor, class_redundant: Tensor) -> Tensor:
    """|x - G(x)|_2 = |R(x)|_2 an image; higher is more adversarial.

    Args:
        images, class_redundant: (N, ...) twice, floating point, in one unit.

    Returns:
        (N,) in that unit, at least 0; differentiable, with gradient 0 at 0.

    Raises:
        DataError: the shapes differ, or there is no image.
    """
    _check_pair(images, class_redundant, "images and reconstructions")
    norms: Tensor = torch.linalg.vector_norm((images - class_redundant).flatten(1), dim=1)
    return norms


def residual_linf(images: Tensor, class_redundant: Tensor) -> Tensor:
    """max |x - G(x)| = |R(x)|_inf an image; higher is more adversarial.

    Args, Returns, Raises: as `residual_l2`.
    """
    _check_pair(images, class_redundant, "images and reconstructions")
    return (images - class_redundant).abs().flatten(1).amax(dim=1)


def disagreement(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence between two predictions: 0 where they agree.

    JS = 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, of p and q the softmax of either logits,
    such as those of a classifier on x and one on G(x).

    Args:
        first_logits, second_logits: (N, C), floating point, finite.

    Returns:
        (N,), nats, in [0, log 2]; symmetric and differentiable; higher is more adversarial.

    Raises:
        DataError: the shapes differ, there is no image, or the logits are not finite.
    """
    _check_pair(first_logits, second_logits, "logits of two classifiers")
    if first_logits.dim() != 2 or not bool((first_logits + second_logits).isfinite().all()):
        raise DataError(
            "logits of two classifiers",
            got=f"shape {tuple(first_logits.shape)}, or numbers that are not finite",
            expected="finite numbers of shape (N, C)",
            remedy="check the classifiers for overflow",
        )
    first, second = first_logits.log_softmax(dim=1), second_logits.log_softmax(dim=1)
    divergence = 0.5 * (_to_mixture(first, second) + _to_mixture(second, first))
    # Rounding may leave the interval by an ulp.
    return divergence.clamp(0.0, math.log(2))


def _to_mixture(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || (p + q) / 2) = sum_c p (log 2 - log(1 + q / p)): (N, C) twice to (N,)."""
    log_ratio = torch.logaddexp(torch.zeros_like(log_p), log_q - log_p)
    return (log_p.exp() * (math.log(2) - log_ratio)).sum(dim=1)


def _check_pair(first: Tensor, second: Tensor, what: str) -> None:
    floating = first.is_floating_point() and second.is_floating_point()
    if first.shape != second.shape or first.dim() < 2 or not first.numel() or not floating:
        raise DataError(
            what,
            got=f"{first.dtype} of shape {tuple(first.shape)} and "
            f"{second.dtype} of shape {tuple(second.shape)}",
            expected="floating point of one shape, at least one image",
            remedy="pass two tensors of the same images",
        )
