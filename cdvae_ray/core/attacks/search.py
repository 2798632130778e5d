"""The loop that all first-order attacks share.

An attack says how a point of its search space becomes an image, how a gradient moves the point
and what it may not leave (a `Search`); `maximize` evaluates, remembers, and drops what is done.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cdvae_ray.core.attacks.balls import per_image
from cdvae_ray.core.attacks.eot import Eot, log_mean_probability
from cdvae_ray.core.attacks.inputs import Classify, check_classes, check_logits
from cdvae_ray.core.attacks.losses import Loss
from cdvae_ray.core.attacks.outcome import Goal, Keep

Rows = Tensor | slice
_EVERY: Rows = slice(None)
"""All images: a slice, so that reading them copies nothing."""


class Search(Protocol):
    """A parametrisation of adversarial images around given ones, for a batch."""

    def render(self, points: Tensor) -> Tensor:
        """Points (N, ...) to images (N, 3, H, W) in [0, 1], differentiable."""

    def penalty(self, points: Tensor) -> Tensor | None:
        """What is taken off each image's loss, (N,), differentiable; None: nothing."""

    def advance(self, points: Tensor, gradient: Tensor) -> Tensor:
        """The next points, allowed ones, along the gradient of loss less penalty."""

    def select(self, rows: Tensor) -> Search:
        """The same search, at its present state, for the images at these rows."""


class Found(NamedTuple):
    """What `maximize` kept of each image, (N, ...)."""

    points: Tensor
    success: Tensor
    loss: Tensor
    zero_gradient: Tensor
    nonfinite_gradient: Tensor


class Look(NamedTuple):
    """A classifier's view of a batch of points."""

    reached: Tensor
    """(N,) bool: the goal is reached."""
    loss: Tensor
    """(N,) without the penalty."""
    gradient: Tensor | None
    """Of loss less penalty, like the points."""


def maximize(
    classify: Classify,
    search: Search,
    start: Tensor,
    goal: Goal,
    *,
    loss: Loss,
    num_steps: int,
    keep: Keep,
    drop_fooled: bool,
) -> Found:
    """Climbs the loss from `start` by num_steps gradients, and takes one last look.

    Args:
        classify: images in [0, 1] to logits.
        search: of the attack, for the whole batch.
        start: allowed points, (N, ...).
        goal: of the attack.
        loss: what to maximise.
        num_steps: gradients of an image that is not dropped.
        keep: best: a point that fools, and among equals the one of highest loss. last: the last.
        drop_fooled: an image that is fooled keeps that point and costs nothing more.

    Raises:
        DataError: the classifier does not answer with logits, or a label is none of its classes.
    """
    book = _Book(start)
    points, rows = start, _EVERY
    for step in range(num_steps):
        seen = look(
            classify, search, points, goal, loss=loss, need_gradient=True, check_labels=step == 0
        )
        if keep == "best":
            book.keep_better(rows, points, seen)
        points = search.advance(points, book.usable_gradient(rows, seen))
        if drop_fooled and bool(seen.reached.any()):
            stay = (~seen.reached).nonzero().squeeze(1)
            if len(stay) == 0:
                return book.close()
            points, rows = points[stay], stay if isinstance(rows, slice) else rows[stay]
            search, goal = search.select(stay), goal.select(stay)
    seen = look(classify, search, points, goal, loss=loss, need_gradient=False, check_labels=False)
    if keep == "best":
        book.keep_better(rows, points, seen)
    else:
        book.keep(rows, points, seen)
    return book.close()


def look(
    classify: Classify,
    search: Search,
    points: Tensor,
    goal: Goal,
    *,
    loss: Loss,
    need_gradient: bool,
    check_labels: bool = True,
) -> Look:
    """Evaluates points; under `eot` the loss and its gradient are means over draws.

    check_labels: compare the labels with the classes, which waits for the device; once an attack
    is enough.
    """
    draws = classify.num_samples if isinstance(classify, Eot) else 1
    ask = classify.draw if isinstance(classify, Eot) else classify
    answers: list[Tensor] = []
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    with torch.set_grad_enabled(need_gradient):
        for _ in range(draws):
            variable = points.detach().requires_grad_(need_gradient)
            logits = ask(search.render(variable))
            if not answers:
                check_logits(logits, len(goal.labels))
                if check_labels:
                    check_classes(goal.labels, logits.shape[1])
            values = loss(logits, goal)
            answers.append(logits.detach())
            losses.append(values.detach())
            if need_gradient:
                gradients.append(_gradient(values, search.penalty(variable), variable))
    return Look(
        reached=goal.reached(log_mean_probability(answers)),
        loss=_mean(losses),
        gradient=_mean(gradients) if need_gradient else None,
    )


def _gradient(losses: Tensor, penalty: Tensor | None, variable: Tensor) -> Tensor:
    """Of the sum over images, each of which depends on its own point alone."""
    total = losses.sum() if penalty is None else (losses - penalty).sum()
    if not total.requires_grad:
        return torch.zeros_like(variable)
    (gradient,) = torch.autograd.grad(total, variable, allow_unused=True)
    return torch.zeros_like(variable) if gradient is None else gradient


def _mean(values: list[Tensor]) -> Tensor:
    """The mean, exactly the value where all are equal."""
    first = values[0]
    if len(values) == 1:
        return first
    return first + torch.stack([each - first for each in values[1:]]).sum(dim=0) / len(values)


class _Book:
    """What is known of every image so far."""

    def __init__(self, start: Tensor) -> None:
        count, device = len(start), start.device
        self.points = start.clone()
        self.reached = torch.zeros(count, dtype=torch.bool, device=device)
        self.loss = torch.full((count,), -torch.inf, dtype=start.dtype, device=device)
        self.zero, self.nonfinite = self.reached.clone(), self.reached.clone()

    def keep(self, rows: Rows, points: Tensor, seen: Look) -> None:
        """Takes what was seen."""
        self.points[rows], self.reached[rows], self.loss[rows] = (
            points,
            seen.reached,
            seen.loss.to(self.loss.dtype),
        )

    def keep_better(self, rows: Rows, points: Tensor, seen: Look) -> None:
        """Takes what fools where nothing did yet, and what has the higher loss among equals."""
        reached, loss = self.reached[rows], self.loss[rows]
        better = (seen.reached & ~reached) | ((seen.reached == reached) & (seen.loss > loss))
        self.points[rows] = torch.where(per_image(better, points), points, self.points[rows])
        self.reached[rows] = reached | seen.reached
        self.loss[rows] = torch.where(better, seen.loss.to(loss.dtype), loss)

    def usable_gradient(self, rows: Rows, seen: Look) -> Tensor:
        """The gradient with zeros for an image where it is not finite; notes such and zero ones."""
        assert seen.gradient is not None
        largest = torch.linalg.vector_norm(seen.gradient.flatten(1), math.inf, dim=1)
        finite = torch.isfinite(largest)  # NaN wherever one is
        self.zero[rows] |= (largest == 0) & ~seen.reached
        self.nonfinite[rows] |= ~finite
        return torch.where(per_image(finite, seen.gradient), seen.gradient, 0.0)

    def close(self) -> Found:
        return Found(self.points, self.reached, self.loss, self.zero, self.nonfinite)
