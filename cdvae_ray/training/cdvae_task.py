"""Training of a CD-VAE: Eqs. (1)-(3)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.cdvae import CDVAE, CdvaeOutput, build_cdvae
from cdvae_ray.core.objective import cdvae_loss
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.training.task import BatchLoss, Replica, StepLoss, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CdvaeTask:
    """Trains G and D together."""

    checkpoint_kind: ClassVar[str] = "cdvae-checkpoint"
    metric_sums: ClassVar[tuple[str, ...]] = (
        "loss",
        "reconstruction",
        "kl",
        "classification",
        "correct",
    )

    model: ModelConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    image_size: int
    class_names: tuple[str, ...]

    def build_model(self) -> CDVAE:
        """A fresh CD-VAE of this run's seed."""
        return build_cdvae(
            self.model,
            image_size=self.image_size,
            class_names=self.class_names,
            seed=self.training.seed,
        )

    def model_facts(self) -> dict[str, Any]:
        """What a checkpoint says of its CD-VAE."""
        return {
            "model": to_dict(self.model),
            "image_size": self.image_size,
            "class_names": list(self.class_names),
        }

    def loss_on(self, device: torch.device) -> BatchLoss:
        """Eq. (1) of a batch."""
        return functools.partial(_batch_loss, self)


def _batch_loss(task: CdvaeTask, replica: Replica, batch: TrainBatch) -> StepLoss:
    keys = image_keys(task.training.seed, "latent", batch.epoch, batch.image_ids)
    noise = keyed_normal(keys, task.model.latent_size)
    with replica.autocast():
        output: CdvaeOutput = replica.module(batch.images, noise)
    loss = cdvae_loss(
        output,
        batch.labels,
        objective=task.objective,
        epoch=batch.epoch,
        partner_labels=batch.partner_labels,
        mixup_weight=batch.mixup_weight,
    )
    count = len(batch.labels)
    sums = {
        "loss": loss.total * count,
        "reconstruction": loss.reconstruction * count,
        "kl": loss.kl * count,
        "classification": loss.classification * count,
        "correct": (output.logits.argmax(dim=1) == batch.labels).sum(),
    }
    return StepLoss(loss.total, sums)
