"""Attacks that know the detector: PGD on classifier and detector (Bryniarski et al., 2022)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.attacks.balls import (
    Norm,
    check_norm,
    per_image,
    pixel_norm,
    project,
    random_start,
)
from cdvae_ray.core.attacks.inputs import (
    Classify,
    attacking,
    check_positive,
    check_steps,
    prepare,
)
from cdvae_ray.core.attacks.objective_pair import (
    Detect,
    PairLook,
    Strategy,
    heading,
    look_at_pair,
)
from cdvae_ray.errors import ConfigError


class DetectorAttackResult(NamedTuple):
    """Images that are to fool a classifier and to pass its detector, all detached."""

    images: Tensor
    """(N, 3, H, W) in [0, 1], dtype and device of the attacked images."""
    fooled: Tensor
    """(N,) bool: the classifier's answer to `images` is wrong."""
    detector_score: Tensor
    """(N,) the detector's score at `images`, in the detector's own dtype."""
    norm: Tensor
    """(N,) size of the perturbation, at most epsilon; 0 where the clean image was kept."""
    zero_gradient: Tensor
    """(N,) bool: at some step the gradient that the strategy follows was exactly zero, or nothing
    of it was left. A sign of masked gradients, or of a score that is at its minimum."""
    nonfinite_gradient: Tensor
    """(N,) bool: at some step a gradient that the strategy needs held NaN or infinity; it was
    taken for zero."""

    def evades(self, threshold: float) -> Tensor:
        """(N,) bool: fooled, by an image that a detector with this threshold lets pass.

        Since the lowest score was kept, one attack answers for every threshold.

        Args:
            threshold: images with a score above it are rejected, in units of the score.

        Raises:
            ConfigError: the threshold is NaN.
        """
        if math.isnan(threshold):
            raise ConfigError(
                "threshold", got=threshold, expected="a number", remedy="pass one, such as inf"
            )
        # In float64: a float32 score must not round the threshold to itself.
        return self.fooled & (self.detector_score.double() <= threshold)


def detector_pgd(
    classify: Classify,
    detect: Detect,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    num_steps: int,
    strategy: Strategy,
    norm: Norm = "linf",
    step_size: float | None = None,
    detector_weight: float = 1.0,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> DetectorAttackResult:
    """Projected gradient steps that raise f = max_{k != y} z_k - z_y and lower g = detect(x).

    Bryniarski et al., "Evading Adversarial Example Detection Defenses with Orthogonal Projected
    Gradient Descent" (ICLR 2022), Eqs. (4) to (6), from a random start. Of the clean image, the
    start and all iterates the one that fools with the lowest score is kept; where none fools, the
    one of the highest margin.

    Departs from the released code, which takes the sign of the direction for L-infinity: signs are
    no longer orthogonal to anything. Here a step goes along the direction itself.

    No strategy is the strongest everywhere: orthogonal steps do not go deeper into another class,
    where a detector may score lowest. Take the best of all three, and of larger steps, per image.

    Args:
        classify: images in [0, 1] to logits (N, classes). Modules run in eval mode.
        detect: images in [0, 1] to finite scores (N,), higher is more adversarial, differentiable.
            Modules run in eval mode.
        images: (N, 3, H, W), floating point, in [0, 1].
        labels: (N,) int64, the true classes.
        epsilon: radius of the ball, in pixel units, > 0.
        num_steps: gradient steps, >= 1.
        strategy: selective: along grad f while the image does not fool, else along -grad g.
            orthogonal: the same, less what lies along the other gradient. joint: along
            grad f / |grad f| - detector_weight grad g / |grad g|.
        norm: of the ball, linf or l2.
        step_size: > 0, in pixel units: linf: root mean square over pixel values of a step; l2:
            its length; both before projection. None: 2.5 epsilon / num_steps (Madry et al., 2018).
        detector_weight: with joint alone, finite, >= 0.
        seed, image_ids: key the random start, that of `pgd`, so that an image starts equally in
            any batch; ids default to the positions in the batch.

    Raises:
        ConfigError: a setting outside its range, or a weight where the strategy takes none.
        DataError: images, labels, the classifier's or the detector's answer are not as said.
    """
    _check_strategy(strategy, detector_weight)
    check_norm(norm)
    check_positive("epsilon", epsilon)
    check_steps(num_steps)
    size = 2.5 * epsilon / num_steps if step_size is None else step_size
    check_positive("step_size", size)
    given = prepare(images, labels, image_ids=image_ids)
    clean, goal, device = given.images, given.goal, given.images.device
    length = size * math.sqrt(clean[0].numel()) if norm == "linf" else size
    zero = torch.zeros(len(clean), dtype=torch.bool, device=device)
    nonfinite = zero.clone()
    with attacking(classify, seed, device), attacking(detect, seed, device):
        seen = look_at_pair(classify, detect, clean, goal, need_gradient=False, check_labels=True)
        kept = _Kept.of(clean, seen)
        points = random_start(
            clean, norm=norm, epsilon=epsilon, seed=seed, restart=0, image_ids=given.image_ids
        )
        for _ in range(num_steps):
            seen = look_at_pair(
                classify, detect, points, goal, need_gradient=True, check_labels=False
            )
            kept = kept.or_better(_Kept.of(points, seen))
            to = heading(seen, strategy=strategy, detector_weight=detector_weight)
            zero, nonfinite = zero | to.zero, nonfinite | to.nonfinite
            moved = torch.add(points, to.direction.to(points.dtype), alpha=length)
            points = project(moved, clean, norm=norm, epsilon=epsilon)
        seen = look_at_pair(classify, detect, points, goal, need_gradient=False, check_labels=False)
        kept = kept.or_better(_Kept.of(points, seen))
    return DetectorAttackResult(
        images=kept.images,
        fooled=kept.fooled,
        detector_score=kept.score,
        norm=pixel_norm(kept.images - clean, norm),
        zero_gradient=zero,
        nonfinite_gradient=nonfinite,
    )


class _Kept(NamedTuple):
    """One image of each that was seen so far."""

    images: Tensor
    fooled: Tensor
    margin: Tensor
    score: Tensor

    @staticmethod
    def of(images: Tensor, seen: PairLook) -> _Kept:
        """What was seen."""
        return _Kept(images, seen.fooled, seen.margin, seen.score)

    def or_better(self, other: _Kept) -> _Kept:
        """The one that fools, of two that do that of lower score, of none of higher margin."""
        better = torch.where(
            self.fooled & other.fooled, other.score < self.score, other.margin > self.margin
        )
        better = torch.where(self.fooled == other.fooled, better, other.fooled)
        return _Kept(
            *(
                torch.where(per_image(better, new), new, old)
                for old, new in zip(self, other, strict=True)
            )
        )


def _check_strategy(strategy: str, detector_weight: float) -> None:
    if strategy not in ("orthogonal", "selective", "joint"):
        raise ConfigError(
            "strategy",
            got=repr(strategy),
            expected="orthogonal, selective or joint",
            remedy="pass one of them",
        )
    if not (math.isfinite(detector_weight) and detector_weight >= 0):
        raise ConfigError(
            "detector_weight",
            got=detector_weight,
            expected="a finite number >= 0",
            remedy="pass such a number",
        )
    if strategy != "joint" and detector_weight != 1:
        raise ConfigError(
            "detector_weight",
            got=f"{detector_weight} with strategy={strategy!r}",
            expected="none (only joint weighs its objectives)",
            remedy="leave detector_weight out, or pass strategy='joint'",
        )
