"""The two aims of an attack on a detector: to fool the classifier, and to look harmless."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.attacks.balls import ascent_direction, per_image, pixel_norm
from cdvae_ray.core.attacks.inputs import Classify, check_classes, check_logits
from cdvae_ray.core.attacks.losses import margin
from cdvae_ray.core.attacks.outcome import Goal
from cdvae_ray.errors import DataError

Detect = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] to scores (N,), higher for what looks more adversarial."""

Strategy = Literal["orthogonal", "selective", "joint"]
"""selective: up the margin until the image fools, then down the score. orthogonal: the same,
without moving the other to first order. joint: both at once, weighted."""

_ROUNDING = 16
"""Unit vectors whose difference is this many machine epsilons long, or less, are parallel."""


class PairLook(NamedTuple):
    """Classifier and detector on a batch of images, detached."""

    fooled: Tensor
    """(N,) bool."""
    margin: Tensor
    """(N,) f = max_{k != y} z_k - z_y."""
    score: Tensor
    """(N,) g, the detector's, in its own dtype."""
    margin_gradient: Tensor | None
    """(N, 3, H, W) of f."""
    score_gradient: Tensor | None
    """(N, 3, H, W) of g."""


class Heading(NamedTuple):
    """Where the next step goes."""

    direction: Tensor
    """(N, 3, H, W), at least float32, of L2 norm 1, or 0 where there is nowhere to go."""
    zero: Tensor
    """(N,) bool: the gradient followed is zero, or nothing of it is left."""
    nonfinite: Tensor
    """(N,) bool: a gradient that the step needs holds NaN or infinity."""


class _Ascent(NamedTuple):
    """A gradient as a direction."""

    unit: Tensor
    """Of L2 norm 1; 0 where the gradient is zero or not finite."""
    zero: Tensor
    nonfinite: Tensor


def look_at_pair(
    classify: Classify,
    detect: Detect,
    images: Tensor,
    goal: Goal,
    *,
    need_gradient: bool,
    check_labels: bool,
) -> PairLook:
    """Evaluates classifier and detector, one forward pass each, with a gradient each if needed.

    Args:
        check_labels: compare the labels with the classes; once an attack is enough.

    Raises:
        DataError: logits, labels or scores are not as said, or the scores have no gradient.
    """
    with torch.set_grad_enabled(need_gradient):
        variable = images.detach().requires_grad_(need_gradient)
        logits = classify(variable)
        check_logits(logits, len(images))
        if check_labels:
            check_classes(goal.labels, logits.shape[1])
        margins = margin(logits, goal)
        # Each gradient by itself: in one of a sum, 0 times an infinite derivative of the other
        # would be NaN. And the classifier's graph is gone before the detector builds its own.
        margin_gradient = _gradient(margins, variable) if need_gradient else None
        scores = detect(variable)
        check_scores(scores, len(images))
        score_gradient = _gradient(scores, variable) if need_gradient else None
    if need_gradient and score_gradient is None:
        raise DataError(
            "the detector's scores",
            got="no gradient with respect to the images",
            expected="differentiable scores",
            remedy="compute them without detach, no_grad, argmax or NumPy",
        )
    if need_gradient and margin_gradient is None:
        margin_gradient = torch.zeros_like(images)
    return PairLook(
        fooled=goal.reached(logits.detach()),
        margin=margins.detach(),
        score=scores.detach(),
        margin_gradient=margin_gradient,
        score_gradient=score_gradient,
    )


def heading(seen: PairLook, *, strategy: Strategy, detector_weight: float) -> Heading:
    """The direction of the next step, from u = grad f / |grad f| and v = grad g / |grad g|.

    Where the image does not fool, and where it does:
    selective: u, and -v;
    orthogonal: u - (u.v) v, and -(v - (u.v) u), which are the projections of the gradients
    themselves, scaled;
    joint: u - detector_weight v.

    A gradient that is zero or not finite counts as zero: nothing is followed and nothing taken
    out along it.
    """
    assert seen.margin_gradient is not None and seen.score_gradient is not None
    up, down = _ascent(seen.margin_gradient), _ascent(seen.score_gradient)
    u, v = up.unit, down.unit
    fooled = per_image(seen.fooled, u)
    follows_margin, follows_score = ~seen.fooled, seen.fooled
    needs_margin, needs_score = follows_margin, follows_score
    if strategy == "selective":
        sought = torch.where(fooled, -v, u)
    elif strategy == "orthogonal":
        sought = torch.where(fooled, -_without(v, u), _without(u, v))
        needs_margin = needs_score = torch.ones_like(seen.fooled)
    else:
        # Scaled so that no finite weight overflows.
        scale = max(1.0, detector_weight)
        sought = u / scale - v * (detector_weight / scale)
        follows_margin = needs_margin = torch.ones_like(seen.fooled)
        follows_score = needs_score = torch.full_like(seen.fooled, detector_weight > 0)
    nonfinite = (needs_margin & up.nonfinite) | (needs_score & down.nonfinite)
    # What rounding leaves of parallel gradients is no direction.
    stuck = pixel_norm(sought, "l2") <= _ROUNDING * torch.finfo(sought.dtype).eps
    masked = (follows_margin & up.zero) | (follows_score & down.zero)
    return Heading(
        direction=ascent_direction(torch.where(per_image(stuck, sought), 0.0, sought), "l2"),
        zero=masked | (stuck & ~nonfinite),
        nonfinite=nonfinite,
    )


def check_scores(scores: Tensor, count: int) -> None:
    """Raises DataError unless these are finite floating-point scores (count,)."""
    if scores.shape != (count,) or not scores.is_floating_point():
        raise DataError(
            "the detector's scores",
            got=f"{scores.dtype} of shape {tuple(scores.shape)}",
            expected=f"floating point of shape ({count},)",
            remedy="pass a function from images to one score an image",
        )
    bad = int((~torch.isfinite(scores.detach())).sum())
    if bad:
        raise DataError(
            "the detector's scores",
            got=f"NaN or infinity for {bad} of {count} images",
            expected="finite scores",
            remedy="repair the detector, or bound its scores, before attacking it",
        )


def _gradient(values: Tensor, variable: Tensor) -> Tensor | None:
    """Of the sum over images, each of which has its own value; None where there is none."""
    if not values.requires_grad:
        return None
    gradient: Tensor | None
    (gradient,) = torch.autograd.grad(values.sum(), variable, allow_unused=True)
    return gradient


def _ascent(gradient: Tensor) -> _Ascent:
    """The gradient's direction, in float32 or wider: half precision has no digits to project."""
    largest = torch.linalg.vector_norm(gradient.flatten(1), math.inf, dim=1)
    finite = torch.isfinite(largest)  # NaN wherever one is
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    usable = torch.where(per_image(finite, wide), wide, 0.0)
    return _Ascent(ascent_direction(usable, "l2"), zero=largest == 0, nonfinite=~finite)


def _without(first: Tensor, second: Tensor) -> Tensor:
    """first - (first.second) second, of unit vectors or zeros (N, ...)."""
    for _ in range(2):  # once leaves the rounding of the product, which matters if little is left
        along = (first * second).flatten(1).sum(dim=1)
        first = first - per_image(along, second) * second
    return first
