"""What an attack returns: images, and what became of each of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Keep = Literal["best", "last"]
"""best: an iterate that fools, among those the one of the highest loss. last: the last iterate,
as the paper's tables take it."""


class AttackResult(NamedTuple):
    """Adversarial images with one outcome an image, all detached."""

    images: Tensor
    """(N, 3, H, W) in [0, 1], dtype and device of the attacked images."""
    success: Tensor
    """(N,) bool: the classifier's answer to `images` is wrong (targeted: is the target)."""
    loss: Tensor
    """(N,) what the attack maximises, at `images`."""
    norm: Tensor
    """(N,) size of the perturbation in the attack's own measure, at most its epsilon."""
    zero_gradient: Tensor
    """(N,) bool: at some step the image was not yet fooled and its gradient was exactly zero, so
    that the attack could not know where to go. A sign of masked gradients, not of robustness."""
    nonfinite_gradient: Tensor
    """(N,) bool: at some step the gradient held NaN or infinity; such a step is left out."""


class Goal(NamedTuple):
    """What the attack wants the classifier to answer."""

    labels: Tensor
    """(N,) int64: the true classes or, if targeted, the classes aimed at."""
    targeted: bool

    def reached(self, logits: Tensor) -> Tensor:
        """(N,) bool: whether logits (N, classes) are the answer that the attack wants."""
        predicted = logits.argmax(dim=1)
        wanted = predicted == self.labels if self.targeted else predicted != self.labels
        return wanted & torch.isfinite(logits).all(dim=1)

    def select(self, rows: Tensor) -> Goal:
        """The same goal for some of the images."""
        return Goal(self.labels[rows], self.targeted)
