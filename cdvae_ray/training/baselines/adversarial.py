"""Adversarial training (Madry et al., 2018), on any attack: cross-entropy of D(x')."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.training.inner_attack import Autocast, adversarial_images
from cdvae_ray.training.task import Replica, StepLoss, TrainBatch


@dataclass(frozen=True)
class AdversarialLoss:
    """min E max_{x' around x} -log D(x')[y]; the maximum is an attack's on D in eval mode.

    Args:
        attack: on D, which keeps its last iterate.
        seed: of the run.
    """

    attack: AttackConfig
    seed: int

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""
        classify = Autocast(replica.model, replica.autocast)
        images = adversarial_images(classify, batch, self.attack, seed=self.seed)
        logits = train_logits(replica, images)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        return step_loss(losses, logits, batch.labels)


def train_logits(replica: Replica, images: Tensor) -> Tensor:
    """Float32 logits (N, classes) of the training pass."""
    with replica.autocast():
        logits: Tensor = replica.module(images)
    return logits.float()


def step_loss(losses: Tensor, logits: Tensor, labels: Tensor) -> StepLoss:
    """The mean of per-image losses (N,), with the images whose logits are right."""
    sums = {"loss": losses.sum(), "correct": (logits.argmax(dim=1) == labels).sum()}
    return StepLoss(losses.mean(), {name: value.to(torch.float64) for name, value in sums.items()})
