"""StAdv: spatially transformed images (Xiao et al., 2018), bounded as in Laidlaw et al. (2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.attacks.adam import Adam
from cdvae_ray.core.attacks.inputs import (
    Classify,
    check_keep,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.perceptual import climb_perturbations
from cdvae_ray.core.attacks.smoothness import check_smoothness, total_variation


def stadv(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.05,
    num_steps: int = 100,
    step_size: float = 0.01,
    smoothness: float | None = None,
    keep: Keep = "best",
    drop_fooled: bool | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """Moves pixels along a flow f: maximises margin - smoothness TV(f) with |f| <= epsilon.

    Adam from zero flow, without a random start. Each pixel takes its color, bilinearly, from its
    own place moved by f; no place outside the image is looked at.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        images: (N, C, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        epsilon: bound on each component of the flow, in units in which the image spans [-1, 1]:
            epsilon W / 2 pixels along a row, epsilon H / 2 along a column. > 0.
        num_steps: gradient steps, >= 1.
        step_size: Adam's, in units of the flow, > 0.
        smoothness: weight of the total variation, >= 0; None: 0.0025 / epsilon, as released.
        keep: best: an iterate that fools, among equals the one of highest loss. last: the last.
        drop_fooled: stop an image at its first iterate that fools. None: with keep="best".
        targets: (N,) int64, classes to aim at; None: away from the labels.
        seed: of a classifier that answers at random; the attack itself draws nothing.
        image_ids: checked, and without effect.

    Returns:
        The outcome; its norm is max |f|.

    Raises:
        ConfigError: a setting outside its range.
        DataError: images, labels or the classifier's answer are not as said.
    """
    check_positive("epsilon", epsilon)
    check_steps(num_steps)
    check_positive("step_size", step_size)
    weight = 0.0025 / epsilon if smoothness is None else smoothness
    check_smoothness(weight)
    drop = check_keep(keep, drop_fooled, classify)
    given = prepare(images, labels, targets=targets, image_ids=image_ids)
    count, _, height, width = images.shape
    start = given.images.new_zeros(count, 2, height, width)
    search = FlowSearch(
        given.images,
        identity_grid(given.images),
        epsilon=epsilon,
        smoothness=weight,
        adam=Adam.like(start, step_size=step_size),
    )
    return climb_perturbations(
        classify,
        search,
        start,
        given,
        loss=margin,
        num_steps=num_steps,
        keep=keep,
        drop_fooled=drop,
        seed=seed,
    )


@dataclass(frozen=True)
class FlowSearch:
    """Points are flows (N, 2, H, W), along a row and along a column."""

    images: Tensor
    identity: Tensor
    """(2, H, W): where the pixels are."""
    epsilon: float
    smoothness: float
    adam: Adam

    def render(self, points: Tensor) -> Tensor:
        """The images as the flows bend them."""
        grid = (self.identity + points).movedim(1, -1)
        bent = F.grid_sample(
            self.images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        # The four weights add up to 1 but for rounding, which is no reason to stop a gradient.
        with torch.no_grad():
            bent.clamp_(0, 1)
        return bent

    def penalty(self, points: Tensor) -> Tensor | None:
        """smoothness TV(f)."""
        return self.smoothness * total_variation(points)

    def advance(self, points: Tensor, gradient: Tensor) -> Tensor:
        """One step of Adam, then back into the ball and the image."""
        moved = self.adam.ascend(points, gradient)
        low = (-1 - self.identity).clamp_(min=-self.epsilon)
        high = (1 - self.identity).clamp_(max=self.epsilon)
        return torch.clamp(moved, low, high)

    def select(self, rows: Tensor) -> FlowSearch:
        """The search for some of the images."""
        return replace(self, images=self.images[rows], adam=self.adam.select(rows))


def identity_grid(images: Tensor) -> Tensor:
    """The centers (2 i + 1) / size - 1 of the pixels of images (N, C, H, W): (2, H, W), x first."""
    y, x = (
        (2 * torch.arange(size, dtype=images.dtype, device=images.device) + 1) / size - 1
        for size in images.shape[2:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
