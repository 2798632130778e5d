"""What attacks maximise: per-image losses of logits, to be raised whether targeted or not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.attacks.outcome import Goal

Loss = Callable[[Tensor, Goal], Tensor]
"""(logits (N, classes), goal) to (N,)."""


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """-log p_y, or log p_t for a target t: (N,)."""
    losses = F.cross_entropy(logits, goal.labels, reduction="none")
    return -losses if goal.targeted else losses


def margin(logits: Tensor, goal: Goal, *, confidence: float = math.inf) -> Tensor:
    """min(max_{k != y} z_k - z_y, confidence), or with a target t min(z_t - max_{k != t} z_k, ...).

    Carlini and Wagner (2017), f_6 without its rectifier. Positive: fooled. Above `confidence` it
    is flat, its gradient zero.

    Args:
        logits: (N, classes).
        goal: of the attack.
        confidence: kappa, how far beyond the boundary to push: >= 0.

    Returns:
        (N,).
    """
    own = logits.gather(1, goal.labels[:, None]).squeeze(1)
    # torch.scatter keeps the gradient of the others, and -inf takes the own class out of the race.
    others = logits.scatter(1, goal.labels[:, None], -torch.inf).amax(dim=1)
    difference = own - others if goal.targeted else others - own
    return difference if math.isinf(confidence) else difference.clamp(max=confidence)
