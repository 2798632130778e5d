"""ReColorAdv: one smooth change of colors over an image (Laidlaw and Feizi, 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.attacks.adam import Adam
from cdvae_ray.core.attacks.cache import cache_slices
from cdvae_ray.core.attacks.color import gamut_round_trip, luv_from_rgb, rgb_from_luv
from cdvae_ray.core.attacks.inputs import (
    Classify,
    check_keep,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.perceptual import check_colors, climb_perturbations
from cdvae_ray.core.attacks.smoothness import check_smoothness, total_variation
from cdvae_ray.errors import ConfigError


def recolor(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.06,
    num_steps: int = 100,
    step_size: float = 0.001,
    smoothness: float | None = None,
    resolution: tuple[int, int, int] = (16, 32, 32),
    keep: Keep = "best",
    drop_fooled: bool | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """Maps colors c to c + s(c), maximising margin - smoothness TV(s) with |s| <= epsilon.

    s lives on a grid over L*u*v* (stored scale of `color`), one for each image, and is interpolated
    trilinearly. Adam from no shift, without a random start. Before every look grid colors outside
    [0, 1] or sRGB's gamut go back to it, as far as epsilon lets them: an image of saturated colors
    changes even at the first look, see `recolor_identity`.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        images: (N, 3, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        epsilon: bound on each component of the shift; 1 spans L's 100, and 200 of u and of v. > 0.
        num_steps: gradient steps, >= 1.
        step_size: Adam's, in units of the shift, > 0.
        smoothness: weight of the total variation, >= 0; None: 0.0036 / epsilon, as released.
        resolution: grid points along L, u and v, >= 2 each.
        keep: best: an iterate that fools, among equals the one of highest loss. last: the last.
        drop_fooled: stop an image at its first iterate that fools. None: with keep="best".
        targets: (N,) int64, classes to aim at; None: away from the labels.
        seed: of a classifier that answers at random; the attack itself draws nothing.
        image_ids: checked, and without effect.

    Returns:
        The outcome; its norm is max |s| over the grid, colors that no pixel has included.

    Raises:
        ConfigError: a setting outside its range.
        DataError: images, labels or the classifier's answer are not as said.
    """
    check_positive("epsilon", epsilon)
    check_steps(num_steps)
    check_positive("step_size", step_size)
    weight = 0.0036 / epsilon if smoothness is None else smoothness
    check_smoothness(weight)
    _check_resolution(resolution)
    drop = check_keep(keep, drop_fooled, classify)
    given = prepare(images, labels, targets=targets, image_ids=image_ids)
    check_colors(images)
    identity = identity_colors(resolution, given.images)
    start = allowed_shifts(torch.zeros_like(identity)[None], identity, epsilon=epsilon)
    start = start.repeat(len(images), 1, 1, 1, 1)
    search = ColorSearch(
        luv_from_rgb(given.images).clamp_(0, 1),
        identity,
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


def recolor_identity(images: Tensor) -> Tensor:
    """The images at zero strength: what `recolor` makes of them as epsilon goes to 0.

    Colors whose u or v leaves the grid are clipped to it: pure red moves by 0.35. The baseline
    against which to read a robust accuracy.

    Args:
        images: (N, 3, H, W), floating point, in [0, 1].

    Returns:
        Like images, in [0, 1].

    Raises:
        DataError: they have not three channels.
    """
    check_colors(images)
    return rgb_from_luv(luv_from_rgb(images).clamp(0, 1))


@dataclass(frozen=True)
class ColorSearch:
    """Points are shifts of the grid's colors, (N, 3, L, U, V)."""

    colors: Tensor
    """(N, 3, H, W): the images in L*u*v*, clipped to the grid."""
    identity: Tensor
    """(3, L, U, V): the colors of the grid."""
    epsilon: float
    smoothness: float
    adam: Adam

    def render(self, points: Tensor) -> Tensor:
        """The images with every color shifted as its grid cell's corners are."""
        # grid_sample names the last axis first, and calls [0, 1] [-1, 1].
        places = (2 * self.colors - 1).flip(1).movedim(1, -1)[:, None]
        shifts = F.grid_sample(
            points, places, mode="bilinear", padding_mode="border", align_corners=True
        )
        # Interpolating the identity gives the color itself: only shifts need to be looked up.
        return rgb_from_luv(self.colors + shifts[:, :, 0])

    def penalty(self, points: Tensor) -> Tensor | None:
        """smoothness TV(s)."""
        return self.smoothness * total_variation(points)

    def advance(self, points: Tensor, gradient: Tensor) -> Tensor:
        """One step of Adam, then back into the gamut and the ball."""
        moved = self.adam.ascend(points, gradient)
        return allowed_shifts(moved, self.identity, epsilon=self.epsilon)

    def select(self, rows: Tensor) -> ColorSearch:
        """The search for some of the images."""
        return replace(self, colors=self.colors[rows], adam=self.adam.select(rows))


def identity_colors(resolution: tuple[int, int, int], like: Tensor) -> Tensor:
    """The grid's own colors i / (size - 1): (3, L, U, V), dtype and device of `like`."""
    axes = [
        torch.arange(size, dtype=like.dtype, device=like.device) / (size - 1) for size in resolution
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def allowed_shifts(shifts: Tensor, identity: Tensor, *, epsilon: float) -> Tensor:
    """Shifts (N, 3, L, U, V) clipped to [0, 1], sent through sRGB's gamut, clipped to epsilon."""
    allowed = torch.empty_like(shifts)
    for rows in cache_slices(shifts):
        colors = gamut_round_trip((identity + shifts[rows]).clamp_(0, 1))
        torch.clamp(colors.sub_(identity), -epsilon, epsilon, out=allowed[rows])
    return allowed


def _check_resolution(resolution: tuple[int, int, int]) -> None:
    if len(resolution) != 3 or min(resolution) < 2:
        raise ConfigError(
            "resolution",
            got=resolution,
            expected="three numbers >= 2",
            remedy="pass the grid's points along L, u and v",
        )
