"""The L2 attack of Carlini and Wagner (2017), which looks for the least perturbation that fools."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.attacks.adam import Adam
from cdvae_ray.core.attacks.balls import per_image, pixel_norm
from cdvae_ray.core.attacks.inputs import (
    Classify,
    attacking,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import AttackResult, Goal
from cdvae_ray.core.attacks.pixels import PixelSearch
from cdvae_ray.core.attacks.search import look
from cdvae_ray.errors import ConfigError

INSIDE = 0.999999
"""What draws [-1, 1] in before atanh, which is infinite at the ends."""
PROGRESS = 0.9999
"""An image whose loss has not fallen to this part of itself since the last check is done."""


def carlini_wagner_l2(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | None = None,
    num_steps: int = 1000,
    step_size: float = 0.01,
    confidence: float = 0.0,
    initial_constant: float = 1e-3,
    num_searches: int = 9,
    abort_early: bool = True,
    targets: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> AttackResult:
    """min_w |x'(w) - x|_2^2 + c max(confidence - margin(x'(w)), 0), x'(w) = (tanh w + 1) / 2.

    Adam in w, from x; c is searched for each image: ten times as much until something fools, then
    bisection. Of all iterates the nearest that fools is returned, and the image itself where it
    fools already. Departs from the paper in that images stop one by one, not as a batch.

    Under `eot`, a confidence above 0 has to be reached in every draw.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        images: (N, 3, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        epsilon: L2 radius, in pixel units, > 0: an image whose perturbation would be larger comes
            back unchanged and without success, as one that was never fooled does. None: no bound.
        num_steps: Adam's steps a constant, >= 1.
        step_size: Adam's, in units of w, > 0.
        confidence: kappa, finite and >= 0: the margin of the logits that counts as fooled.
        initial_constant: the first c, > 0.
        num_searches: constants tried, >= 1.
        abort_early: look ten times a constant whether an image's loss has fallen by a factor of
            PROGRESS, and stop the image if not.
        targets: (N,) int64, classes to aim at; None: away from the labels.
        seed, image_ids: fix the draws of a stochastic classifier; nothing else is random.

    Returns:
        `loss` is the margin, unbounded, and `norm` the L2 norm, both at the returned images. Each
        was classified once more, in a batch of all images, before it was taken for a success.

    Raises:
        ConfigError: a setting outside its range.
        DataError: images, labels or the classifier's answer are not as said.
    """
    if epsilon is not None:
        check_positive("epsilon", epsilon)
    check_steps(num_steps)
    check_positive("step_size", step_size)
    check_positive("initial_constant", initial_constant)
    if not (math.isfinite(confidence) and confidence >= 0):
        raise ConfigError(
            "confidence", got=confidence, expected="a finite number >= 0", remedy="pass such one"
        )
    if num_searches < 1:
        raise ConfigError(
            "num_searches", got=num_searches, expected=">= 1", remedy="pass such a number"
        )
    given = prepare(images, labels, targets=targets, image_ids=image_ids)
    with attacking(classify, seed, given.images.device):
        nearest = _Nearest(classify, given.images, given.goal)
        rows = (~nearest.success).nonzero().squeeze(1)
        constants = _Constants.start(len(rows), initial_constant, given.images)
        for _ in range(num_searches if len(rows) > 0 else 0):
            found = _descend(
                classify,
                _TanhSearch.start(given.images[rows], constants.now, step_size),
                given.goal.select(rows),
                num_steps=num_steps,
                confidence=confidence,
                abort_early=abort_early,
            )
            nearest.propose(rows, found)
            constants = constants.narrowed(torch.isfinite(found.norm))
    return nearest.close(math.inf if epsilon is None else epsilon)


@dataclass
class _TanhSearch:
    """Points are images; Adam moves the variable behind them.

    The gradient of the distance is added here, not through `penalty`, so that a gradient of zero
    from the classifier stays visible.
    """

    images: Tensor
    constants: Tensor
    """(N,) c, of the classifier's term."""
    variable: Tensor
    """w."""
    adam: Adam

    @staticmethod
    def start(images: Tensor, constants: Tensor, step_size: float) -> _TanhSearch:
        """At the images."""
        # In half precision INSIDE would be 1.
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        variable = torch.atanh((2 * wide - 1) * INSIDE)
        return _TanhSearch(images, constants, variable, Adam.like(variable, step_size=step_size))

    def points(self) -> Tensor:
        """(tanh w + 1) / 2, in [0, 1] exactly."""
        return torch.tanh(self.variable).add_(1).mul_(0.5).to(self.images.dtype)

    def render(self, points: Tensor) -> Tensor:
        """The points themselves."""
        return points

    def penalty(self, points: Tensor) -> Tensor | None:
        """None: see the class."""
        return None

    def advance(self, points: Tensor, gradient: Tensor) -> Tensor:
        """A step of Adam up loss - |x' - x|^2, with dx'/dw = 2 x' (1 - x')."""
        ascent = torch.sub(gradient, points - self.images, alpha=2).mul_(points * (1 - points))
        self.variable = self.adam.ascend(self.variable, ascent.mul_(2).to(self.variable.dtype))
        return self.points()

    def select(self, rows: Tensor) -> _TanhSearch:
        """The search, where it is now, for some of the images."""
        return _TanhSearch(
            self.images[rows], self.constants[rows], self.variable[rows], self.adam.select(rows)
        )


class _Found(NamedTuple):
    """What one constant an image led to, (N, ...)."""

    images: Tensor
    norm: Tensor
    """Infinite where no iterate fooled."""
    zero_gradient: Tensor
    nonfinite_gradient: Tensor


def _descend(
    classify: Classify,
    search: _TanhSearch,
    goal: Goal,
    *,
    num_steps: int,
    confidence: float,
    abort_early: bool,
) -> _Found:
    """The nearest of num_steps iterates that fools, for each image with its constant."""
    images, points = search.images, search.points()
    found = _Found(
        images.clone(),
        images.new_full((len(images),), torch.inf),
        torch.zeros(len(images), dtype=torch.bool, device=images.device),
        torch.zeros(len(images), dtype=torch.bool, device=images.device),
    )
    rows = torch.arange(len(images), device=images.device)
    last_check = torch.full_like(found.norm, torch.inf)
    for step in range(num_steps):
        seen = look(
            classify,
            search,
            points,
            goal,
            loss=functools.partial(_classifier_term, search.constants, confidence),
            need_gradient=True,
            check_labels=False,
        )
        assert seen.gradient is not None
        # The loss is zero where the margin is at least the confidence, which may itself be zero.
        fooled = seen.reached & (seen.loss == 0) if confidence > 0 else seen.reached
        distance = pixel_norm(points - search.images, "l2")
        closer = (fooled & (distance < found.norm[rows])).nonzero().squeeze(1)
        found.images[rows[closer]] = points[closer]
        found.norm[rows[closer]] = distance[closer]
        largest = seen.gradient.flatten(1).abs().amax(dim=1)  # NaN wherever one is
        finite = torch.isfinite(largest)
        found.zero_gradient[rows] |= (largest == 0) & ~fooled
        found.nonfinite_gradient[rows] |= ~finite
        gradient = torch.where(per_image(finite, seen.gradient), seen.gradient, 0.0)
        if abort_early and step % math.ceil(num_steps / 10) == 0:
            total = distance**2 - seen.loss
            going = (total <= PROGRESS * last_check).nonzero().squeeze(1)
            if len(going) == 0:
                break
            last_check = total
            if len(going) < len(rows):
                search, goal, rows = search.select(going), goal.select(going), rows[going]
                points, gradient, last_check = points[going], gradient[going], total[going]
        points = search.advance(points, gradient)
    return found


def _classifier_term(constants: Tensor, confidence: float, logits: Tensor, goal: Goal) -> Tensor:
    """-c max(confidence - margin, 0), (N,), to be raised."""
    return -constants * (confidence - margin(logits, goal)).clamp(min=0)


class _Constants(NamedTuple):
    """The search for each image's c, all (N,)."""

    now: Tensor
    failed: Tensor
    """The largest that did not fool."""
    fooled: Tensor
    """The smallest that did."""

    @staticmethod
    def start(count: int, initial: float, images: Tensor) -> _Constants:
        """The first constant of each image."""
        now = images.new_full((count,), initial)
        return _Constants(now, torch.zeros_like(now), torch.full_like(now, torch.inf))

    def narrowed(self, success: Tensor) -> _Constants:
        """The constants to try next."""
        failed = torch.where(success, self.failed, self.now)
        fooled = torch.where(success, self.now, self.fooled)
        now = torch.where(torch.isinf(fooled), 10 * self.now, (failed + fooled) / 2)
        return _Constants(now, failed, fooled)


class _Nearest:
    """The nearest image that fools of each image, classified in a batch of all of them.

    Rounding depends on the shape of a batch, and these images lie close to the boundary: what
    fooled among few images must fool among all before it counts.
    """

    def __init__(self, classify: Classify, images: Tensor, goal: Goal) -> None:
        self.classify, self.clean, self.goal = classify, images, goal
        self.success, self.clean_loss = self._look(images)
        self.images, self.loss = images.clone(), self.clean_loss.clone()
        self.norm = torch.where(self.success, images.new_zeros(()), torch.inf)
        self.zero_gradient = torch.zeros_like(self.success)
        self.nonfinite_gradient = torch.zeros_like(self.success)

    def propose(self, rows: Tensor, found: _Found) -> None:
        """Takes what was found for the images at these rows where it is nearer."""
        self.zero_gradient[rows] |= found.zero_gradient
        self.nonfinite_gradient[rows] |= found.nonfinite_gradient
        nearer = found.norm < self.norm[rows]
        if not bool(nearer.any()):
            return
        norm, proposed = self.norm.clone(), self.images.clone()
        norm[rows[nearer]], proposed[rows[nearer]] = found.norm[nearer], found.images[nearer]
        fools, loss = self._look(proposed)
        take = fools & (norm < self.norm)
        self.images = torch.where(per_image(take, proposed), proposed, self.images)
        self.norm, self.loss = (
            torch.where(take, norm, self.norm),
            torch.where(take, loss, self.loss),
        )
        self.success = self.success | take

    def close(self, epsilon: float) -> AttackResult:
        """The result, with clean images where nothing within epsilon fools."""
        success = self.success & (self.norm <= epsilon)
        return AttackResult(
            images=torch.where(per_image(success, self.images), self.images, self.clean),
            success=success,
            loss=torch.where(success, self.loss, self.clean_loss),
            norm=torch.where(success, self.norm, 0.0),
            zero_gradient=self.zero_gradient,
            nonfinite_gradient=self.nonfinite_gradient,
        )

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which images fool, and their margins."""
        as_they_are = PixelSearch(self.clean, "l2", epsilon=math.inf, step_size=0.0)
        seen = look(self.classify, as_they_are, images, self.goal, loss=margin, need_gradient=False)
        return seen.reached, seen.loss
