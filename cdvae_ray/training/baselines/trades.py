"""TRADES (Zhang et al., 2019): the answer to x, and how far the answer to x' may move from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.attacks.balls import ascent_direction, project
from cdvae_ray.core.attacks.inputs import attacking
from cdvae_ray.core.random import derive_seed, image_keys, keyed_normal
from cdvae_ray.training.baselines.adversarial import step_loss, train_logits
from cdvae_ray.training.inner_attack import Autocast
from cdvae_ray.training.task import Replica, StepLoss, TrainBatch

START_STD = 0.001
"""Of the normal noise from which the inner attack starts: at x itself the gradient is zero."""


@dataclass(frozen=True)
class TradesLoss:
    """-log D(x)[y] + weight max_{x'} KL(D(x) || D(x')).

    Args:
        attack: radius, steps and step size of the maximisation, L-infinity.
        weight: the paper's 1 / lambda.
        seed: of the run.
    """

    attack: AttackConfig
    weight: float
    seed: int

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""
        adversarial = most_divergent(replica, batch, self.attack, seed=self.seed)
        clean = train_logits(replica, batch.images)
        attacked = train_logits(replica, adversarial)
        losses = F.cross_entropy(clean, batch.labels, reduction="none")
        losses = losses + self.weight * divergence(clean, attacked)
        return step_loss(losses, attacked, batch.labels)


def divergence(clean_logits: Tensor, attacked_logits: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(attacked)) of logits (N, classes): (N,), nats."""
    clean, attacked = clean_logits.log_softmax(dim=1), attacked_logits.log_softmax(dim=1)
    return (clean.exp() * (clean - attacked)).sum(dim=1)


def most_divergent(
    replica: Replica, batch: TrainBatch, attack: AttackConfig, *, seed: int
) -> Tensor:
    """argmax_{|x' - x|_inf <= epsilon} KL(D(x) || D(x')), by projected sign steps, D in eval mode.

    Returns:
        (N, 3, S, S) in [0, 1], detached; an image's own by (seed, epoch, image id) alone.
    """
    assert attack.epsilon is not None
    assert attack.num_steps is not None
    assert attack.step_size is not None
    classify: Callable[[Tensor], Tensor] = Autocast(replica.model, replica.autocast)
    key = derive_seed(seed, "inner attack", batch.epoch)
    images = batch.images
    keys = image_keys(key, "trades", 0, batch.image_ids)
    noise = keyed_normal(keys, images[0].numel()).view_as(images)
    points = (images + START_STD * noise).clamp(0, 1)
    with attacking(classify, key, images.device):
        with torch.no_grad():
            clean = classify(images)
        for _ in range(attack.num_steps):
            points.requires_grad_(True)
            (gradient,) = torch.autograd.grad(divergence(clean, classify(points)).sum(), points)
            moved = points.detach() + attack.step_size * ascent_direction(gradient, "linf")
            points = project(moved, images, norm="linf", epsilon=attack.epsilon)
    return points.detach()
