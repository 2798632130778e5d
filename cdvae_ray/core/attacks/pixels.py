"""Attacks that move pixels inside a norm ball, which differ in start, loss and steps alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cdvae_ray.core.attacks.balls import (
    Norm,
    ascent_direction,
    check_norm,
    pixel_norm,
    project,
    random_start,
)
from cdvae_ray.core.attacks.inputs import (
    Classify,
    attacking,
    check_keep,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.losses import Loss
from cdvae_ray.core.attacks.outcome import AttackResult, Keep
from cdvae_ray.core.attacks.search import Found, maximize
from cdvae_ray.errors import ConfigError


@dataclass(frozen=True)
class PixelSearch:
    """Points are images; steepest ascent, then projection onto ball and box."""

    images: Tensor
    norm: Norm
    epsilon: float
    step_size: float
    sign_of_zero: int = 0

    def render(self, points: Tensor) -> Tensor:
        """The points themselves."""
        return points

    def penalty(self, points: Tensor) -> Tensor | None:
        """None."""
        return None

    def advance(self, points: Tensor, gradient: Tensor) -> Tensor:
        """One projected step, Eq. (5)."""
        direction = ascent_direction(gradient, self.norm)
        if self.sign_of_zero:
            direction = torch.where(gradient == 0, float(self.sign_of_zero), direction)
        moved = torch.add(points, direction, alpha=self.step_size)
        if self.norm == "linf":
            low, high = self._bounds
            return torch.clamp_(moved, low, high)
        return project(moved, self.images, norm=self.norm, epsilon=self.epsilon)

    def select(self, rows: Tensor) -> PixelSearch:
        """The search for some of the images."""
        return replace(self, images=self.images[rows])

    @functools.cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Ball and box in one, made once and not at every step."""
        return (self.images - self.epsilon).clamp_(min=0), (self.images + self.epsilon).clamp_(
            max=1
        )


def climb_pixels(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss,
    norm: Norm,
    epsilon: float,
    num_steps: int,
    step_size: float | None,
    random: bool,
    num_restarts: int,
    keep: Keep,
    drop_fooled: bool | None,
    targets: Tensor | None,
    seed: int,
    image_ids: Tensor | None,
) -> AttackResult:
    """Projected gradient ascent in pixel space: what BIM, PGD and margin PGD share.

    Restarts keep the better of two outcomes; with drop_fooled only images that still resist
    start again.
    """
    check_norm(norm)
    check_positive("epsilon", epsilon)
    check_steps(num_steps)
    size = epsilon / math.sqrt(num_steps) if step_size is None else step_size
    check_positive("step_size", size)
    _check_restarts(num_restarts, keep)
    drop = check_keep(keep, drop_fooled, classify)
    given = prepare(images, labels, targets=targets, image_ids=image_ids)
    whole = PixelSearch(given.images, norm, epsilon, size)
    found: Found | None = None
    with attacking(classify, seed, given.images.device):
        for restart in range(num_restarts):
            rows = torch.arange(len(images), device=given.images.device)
            if found is not None and drop:
                rows = (~found.success).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
            start = given.images[rows]
            if random:
                start = random_start(
                    start,
                    norm=norm,
                    epsilon=epsilon,
                    seed=seed,
                    restart=restart,
                    image_ids=given.image_ids[rows.cpu()],
                )
            again = maximize(
                classify,
                whole.select(rows),
                start,
                given.goal.select(rows),
                loss=loss,
                num_steps=num_steps,
                keep=keep,
                drop_fooled=drop,
            )
            found = again if found is None else _better(found, again, rows)
    assert found is not None
    return pixel_result(found, given.images, norm)


def pixel_result(found: Found, images: Tensor, norm: Norm) -> AttackResult:
    """The result of points that are images."""
    return AttackResult(
        images=found.points,
        success=found.success,
        loss=found.loss,
        norm=pixel_norm(found.points - images, norm),
        zero_gradient=found.zero_gradient,
        nonfinite_gradient=found.nonfinite_gradient,
    )


def _better(found: Found, again: Found, rows: Tensor) -> Found:
    """`found` with the outcomes of another try at `rows` where they are better."""
    success, loss = found.success[rows], found.loss[rows]
    better = (again.success & ~success) | ((again.success == success) & (again.loss > loss))
    take = rows[better]
    for kept, new in zip(found[:3], again[:3], strict=True):
        kept[take] = new[better]
    found.zero_gradient[rows] |= again.zero_gradient
    found.nonfinite_gradient[rows] |= again.nonfinite_gradient
    return found


def _check_restarts(num_restarts: int, keep: Keep) -> None:
    if num_restarts < 1 or (num_restarts > 1 and keep == "last"):
        raise ConfigError(
            "num_restarts",
            got=f"{num_restarts} with keep={keep!r}",
            expected=">= 1, and 1 with keep='last'",
            remedy="keep the best iterate to use restarts",
        )
