"""Perceptual adversarial training (Laidlaw et al., 2021): a distance by the classifier itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.attacks.fast_lagrangian import fast_lagrangian
from cdvae_ray.core.attacks.inputs import attacking
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.perceptual_distance import perceptual_features
from cdvae_ray.core.random import derive_seed
from cdvae_ray.training.baselines.adversarial import step_loss, train_logits
from cdvae_ray.training.task import Replica, StepLoss, TrainBatch


@dataclass(frozen=True)
class PerceptualLoss:
    """-log D(x')[y], x' by the fast Lagrangian attack within a distance of D's own features.

    Args:
        bound: of the distance.
        num_steps: of the attack.
        seed: of the run.
    """

    bound: float
    num_steps: int
    seed: int

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""
        model = replica.model
        assert isinstance(model, ImageClassifier)
        key = derive_seed(self.seed, "inner attack", batch.epoch)
        with attacking(model, key, batch.images.device):
            images = fast_lagrangian(
                _look(model, replica.autocast),
                batch.images,
                batch.labels,
                bound=self.bound,
                num_steps=self.num_steps,
                seed=key,
                image_ids=batch.image_ids,
            )
        logits = train_logits(replica, images)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        return step_loss(losses, logits, batch.labels)


def _look(
    model: ImageClassifier, autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast():
            activations = model.network.activations((images - model.pixel_mean) / model.pixel_std)
        logits = activations["logits"].float()
        return logits, perceptual_features({k: v.float() for k, v in activations.items()})

    return look
