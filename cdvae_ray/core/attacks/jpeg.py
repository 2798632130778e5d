"""JPEG-L-infinity: perturbed quantisation of cosine coefficients (Kang et al., 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.attacks.inputs import (
    Classify,
    check_keep,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.jpeg_codec import BLOCK, decode_blocks, decoding_matrices, subsampled
from cdvae_ray.core.attacks.losses import cross_entropy
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.perceptual import check_colors, climb_perturbations
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.errors import DataError


def jpeg(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.125,
    num_steps: int = 100,
    step_size: float | None = None,
    keep: Keep = "best",
    drop_fooled: bool | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """Adds 0.5 Q c to the coefficients of JPEG at quality 50, raising the cross-entropy.

    Projected sign steps on |c| <= epsilon from a uniform random start. Nothing is rounded, which
    makes decoding differentiable; colors are subsampled 4:2:0 whatever epsilon, see
    `jpeg_identity`.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        images: (N, 3, H, W), floating point, in [0, 1]. Where 16 does not divide H or W, the last
            pixels are repeated for the blocks at the border, as encoders do.
        labels: (N,) int64, the true classes.
        epsilon: bound on each c, > 0; 1 is half a quantisation step, what rounding may do.
        num_steps: gradient steps, >= 1.
        step_size: > 0, in units of c; None: epsilon / sqrt(num_steps), as released.
        keep: best: an iterate that fools, among equals the one of highest loss. last: the last.
        drop_fooled: stop an image at its first iterate that fools. None: with keep="best".
        targets: (N,) int64, classes to aim at; None: away from the labels.
        seed, image_ids: key the random start, so that an image starts equally in any batch; ids
            default to the positions in the batch.

    Returns:
        The outcome; its norm is max |c|.

    Raises:
        ConfigError: a setting outside its range.
        DataError: images, labels or the classifier's answer are not as said.
    """
    check_positive("epsilon", epsilon)
    check_steps(num_steps)
    size = epsilon / math.sqrt(num_steps) if step_size is None else step_size
    check_positive("step_size", size)
    drop = check_keep(keep, drop_fooled, classify)
    given = prepare(images, labels, targets=targets, image_ids=image_ids)
    blocks = _whole_blocks(given.images)
    search = CoefficientSearch(
        subsampled(blocks),
        decoding_matrices(blocks),
        epsilon=epsilon,
        step_size=size,
        height=images.shape[2],
        width=images.shape[3],
    )
    return climb_perturbations(
        classify,
        search,
        random_coefficients(blocks, epsilon=epsilon, seed=seed, image_ids=given.image_ids),
        given,
        loss=cross_entropy,
        num_steps=num_steps,
        keep=keep,
        drop_fooled=drop,
        seed=seed,
    )


def jpeg_identity(images: Tensor) -> Tensor:
    """The images at zero strength, c = 0: what the subsampling of colors leaves of them.

    Args:
        images: (N, 3, H, W), floating point, in [0, 1]. Where 16 does not divide H or W, the last
            pixels are repeated for the blocks at the border, as encoders do.

    Returns:
        Like images, in [0, 1].

    Raises:
        DataError: they are of another shape.
    """
    height, width = images.shape[-2:]
    return subsampled(_whole_blocks(images))[..., :height, :width].clamp(0, 1)


@dataclass(frozen=True)
class CoefficientSearch:
    """Points are perturbations c of cosine coefficients, (N, B, 64), see `decode_blocks`."""

    unperturbed: Tensor
    """(N, 3, H', W'): the images in whole blocks at c = 0, not clipped."""
    matrices: tuple[Tensor, Tensor]
    epsilon: float
    step_size: float
    height: int
    """H of the images, at most H'."""
    width: int
    """W of the images, at most W'."""

    def render(self, points: Tensor) -> Tensor:
        """The decoded images. Decoding is linear: c adds to what decoding makes of the image."""
        _, _, height, width = self.unperturbed.shape
        change = decode_blocks(0.5 * points, self.matrices, (height, width))
        return (self.unperturbed + change)[..., : self.height, : self.width].clamp(0, 1)

    def penalty(self, points: Tensor) -> Tensor | None:
        """None."""
        return None

    def advance(self, points: Tensor, gradient: Tensor) -> Tensor:
        """One projected step along the gradient's sign."""
        moved = torch.add(points, gradient.sign(), alpha=self.step_size)
        return moved.clamp_(-self.epsilon, self.epsilon)

    def select(self, rows: Tensor) -> CoefficientSearch:
        """The search for some of the images."""
        return replace(self, unperturbed=self.unperturbed[rows])


def random_coefficients(images: Tensor, *, epsilon: float, seed: int, image_ids: Tensor) -> Tensor:
    """Uniform in [-epsilon, epsilon], a function of (seed, image id) alone: (N, B, 64)."""
    keys = image_keys(seed, "jpeg", 0, image_ids).to(images.device)
    # Half a number for Cb and Cr of each pixel, and one for Y.
    uniform = keyed_uniform(keys, 3 * images[0, 0].numel() // 2).to(images.dtype)
    return (epsilon * (2 * uniform - 1)).view(len(images), -1, BLOCK**2)


def _whole_blocks(images: Tensor) -> Tensor:
    """The images padded by their last pixels to whole blocks of 16 x 16 (8 x 8 of color)."""
    check_colors(images)
    height, width = images.shape[2:]
    if not height or not width:
        raise DataError(
            "images",
            got=f"{height} x {width} pixels",
            expected="at least one pixel",
            remedy="leave such images out",
        )
    side = 2 * BLOCK
    if height % side == 0 and width % side == 0:
        return images
    return F.pad(images, (0, -width % side, 0, -height % side), mode="replicate")
