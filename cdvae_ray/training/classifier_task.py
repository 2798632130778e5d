"""Training of a plain classifier on x, on G(x) or on R(x), behind a frozen CD-VAE."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdvae_ray.config.classifier import ClassifierConfig, InputKind
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier, build_classifier, classifier_input
from cdvae_ray.core.objective import cross_entropy_per_image
from cdvae_ray.core.pretrained import Pretrained, start_from
from cdvae_ray.training.frozen_cdvae import FrozenCdvae, latent_noise
from cdvae_ray.training.state import memory_format_of
from cdvae_ray.training.task import BatchLoss, Replica, StepLoss, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassifierTask:
    """Trains a classifier with cross-entropy, mixup's if there is mixup."""

    checkpoint_kind: ClassVar[str] = "classifier-checkpoint"
    metric_sums: ClassVar[tuple[str, ...]] = ("loss", "correct")

    input_kind: InputKind
    cdvae: FrozenCdvae | None
    """Makes G(x) and R(x); None for a classifier of images."""
    model: ClassifierConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    image_size: int
    class_names: tuple[str, ...]
    pretrained: Pretrained | None = None
    """Where it starts."""

    def build_model(self) -> ImageClassifier:
        """A fresh classifier of this run's seed, or as it starts.

        Raises:
            CheckpointError: the weights to start from are of another network.
        """
        classifier = build_classifier(
            self.model,
            input_kind=self.input_kind,
            image_size=self.image_size,
            class_names=self.class_names,
            seed=self.training.seed,
            cdvae_digest=self.cdvae.digest if self.cdvae else None,
        )
        if self.pretrained is not None:
            start_from(classifier.network, self.pretrained)
        return classifier

    def model_facts(self) -> dict[str, Any]:
        """What a checkpoint says of its classifier."""
        return {
            "model": to_dict(self.model),
            "image_size": self.image_size,
            "class_names": list(self.class_names),
            "input_kind": self.input_kind,
            "cdvae_digest": self.cdvae.digest if self.cdvae else None,
        }

    def loss_on(self, device: torch.device) -> BatchLoss:
        """Cross-entropy of a batch; the frozen CD-VAE is put on the device."""
        return functools.partial(_batch_loss, self, self.frozen_cdvae(device))

    def frozen_cdvae(self, device: torch.device) -> CDVAE | None:
        """The CD-VAE on a device, laid out in memory like the classifier; None for images."""
        if self.cdvae is None:
            return None
        return self.cdvae.build(device, memory_format=memory_format_of(self.training))


def _batch_loss(
    task: ClassifierTask, cdvae: CDVAE | None, replica: Replica, batch: TrainBatch
) -> StepLoss:
    inputs = _inputs(task, cdvae, batch)
    with replica.autocast():
        logits: Tensor = replica.module(inputs)
    loss = cross_entropy_per_image(
        logits.float(), batch.labels, batch.partner_labels, batch.mixup_weight
    ).mean()
    sums = {
        "loss": loss * len(batch.labels),
        "correct": (logits.argmax(dim=1) == batch.labels).sum(),
    }
    return StepLoss(loss, sums)


@torch.no_grad()
def _inputs(task: ClassifierTask, cdvae: CDVAE | None, batch: TrainBatch) -> Tensor:
    # Outside autocast: bfloat16 would round G(x) to steps as large as those of 8-bit pixels.
    noise = None
    if cdvae is not None:
        noise = latent_noise(
            cdvae,
            batch.image_ids,
            purpose="classifier.latent",
            seed=task.training.seed,
            epoch=batch.epoch,
        )
    return classifier_input(batch.images, task.input_kind, cdvae, noise=noise)
