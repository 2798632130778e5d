"""Adversarial fine-tuning of a CD-VAE with D_G: Eqs. (7)-(10), mixed with Eqs. (1)-(3)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cdvae_ray.config.adversarial_objective import AdversarialObjectiveConfig
from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.adversarial_objective import (
    adversarial_loss,
    adversarial_sums,
    adversarial_terms,
)
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import classifier_input
from cdvae_ray.core.defenses import JointModel, JointOutput, RedundantDefense
from cdvae_ray.core.objective import cdvae_loss
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.training.distributed import all_reduce_sum, world_size
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.frozen_classifier import FrozenClassifier
from cdvae_ray.training.inner_attack import Autocast, adversarial_images
from cdvae_ray.training.state import load_weights
from cdvae_ray.training.task import BatchLoss, Replica, StepLoss, TrainBatch


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinetuneTask:
    """Trains G, D and D_G together, from trained ones."""

    checkpoint_kind: ClassVar[str] = "redundant-defense-checkpoint"
    metric_sums: ClassVar[tuple[str, ...]] = (
        "loss",
        "clean_loss",
        "adversarial_loss",
        "within_margin",
        "correct",
        "robust_accuracy",
    )

    cdvae: FrozenCdvae
    """Where G and D start."""
    classifier: FrozenClassifier
    """Where D_G starts: trained on x, as released, or on G(x)."""
    adversarial: AdversarialObjectiveConfig
    """Eq. (8), on x'."""
    clean: ObjectiveConfig
    """Eq. (1), on x."""
    clean_weight: float
    """Of Eq. (1) beside Eq. (8); 0 trains on x' alone."""
    attack: AttackConfig
    """Eq. (7)."""
    training: TrainingConfig
    augmentation: AugmentationConfig

    def build_model(self) -> JointModel:
        """The model that fine-tuning starts from."""
        frozen = self.cdvae
        cdvae = CDVAE(frozen.config, image_size=frozen.image_size, class_names=frozen.class_names)
        load_weights(cdvae, frozen.tensors)
        classifier = self.classifier.build(input_kind="class_redundant")
        return JointModel(RedundantDefense(cdvae, classifier))

    def model_facts(self) -> dict[str, Any]:
        """What a checkpoint says of its defence."""
        return {
            "cdvae_model": to_dict(self.cdvae.config),
            "classifier_model": to_dict(self.classifier.config),
            "image_size": self.cdvae.image_size,
            "class_names": list(self.cdvae.class_names),
            "trained_against": [self.attack.family],
        }

    def loss_on(self, device: torch.device) -> BatchLoss:
        """Eq. (1) on x and Eq. (8) on x'."""
        return functools.partial(_batch_loss, self)


def _batch_loss(task: FinetuneTask, replica: Replica, batch: TrainBatch) -> StepLoss:
    model = replica.model
    assert isinstance(model, JointModel)
    seed = task.training.seed
    adversarial = adversarial_images(
        Autocast(MeanPath(model), replica.autocast),
        batch,
        task.attack,
        seed=seed,
        only_correct=True,
    )
    clean_output, clean_loss = _clean(task, replica, batch)
    with replica.autocast():
        attacked: JointOutput = replica.module(
            adversarial, _noise(task, batch, "latent.adversarial")
        )
    assert attacked.redundant_logits is not None
    terms = adversarial_terms(
        attacked.cdvae,
        attacked.redundant_logits,
        batch.labels,
        config=task.adversarial,
        clean_images=(batch.images - model.cdvae.pixel_mean) / model.cdvae.pixel_std,
        commitment=task.cdvae.config.commitment,
    )
    sums = adversarial_sums(terms, task.adversarial)
    num_within, num_counted = all_reduce_sum(torch.stack([sums.num_within, sums.num_counted]))
    loss = adversarial_loss(
        sums, num_within=num_within, num_counted=num_counted, num_ranks=world_size()
    )
    total = loss if clean_loss is None else task.clean_weight * clean_loss + loss
    count = len(batch.labels)
    answers = attacked.cdvae.logits if clean_output is None else clean_output.cdvae.logits
    robust = attacked.redundant_logits.argmax(dim=1) == batch.labels
    return StepLoss(
        total,
        {
            "loss": total * count,
            "clean_loss": torch.zeros_like(total) if clean_loss is None else clean_loss * count,
            "adversarial_loss": loss * count,
            "within_margin": sums.num_within,
            "correct": (answers.argmax(dim=1) == batch.labels).sum(),
            "robust_accuracy": robust.sum(),
        },
    )


class MeanPath(nn.Module):
    """D_G(G(x)) through the posterior mean, whatever the model does in evaluation.

    What the inner attack follows: a sample would be drawn by an image's place in the batch, so that
    its attack would depend on the other images and on the number of workers.
    """

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.cdvae, self.classifier = model.cdvae, model.classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] to logits (N, classes)."""
        noise = None
        if self.cdvae.config.evaluation_latent == "sample":
            noise = images.new_zeros(len(images), self.cdvae.config.noise_size)
        logits: Tensor = self.classifier(
            classifier_input(images, "class_redundant", self.cdvae, noise=noise)
        )
        return logits


def _clean(
    task: FinetuneTask, replica: Replica, batch: TrainBatch
) -> tuple[JointOutput | None, Tensor | None]:
    """The output on x and Eq. (1); nothing where fine-tuning is on x' alone."""
    if task.clean_weight == 0:
        return None, None
    with replica.autocast():
        # D_G learns from x' alone, Eq. (10), and so do its running statistics.
        output: JointOutput = replica.module(
            batch.images, _noise(task, batch, "latent"), with_redundant=False
        )
    loss = cdvae_loss(
        output.cdvae,
        batch.labels,
        objective=task.clean,
        epoch=batch.epoch,
        commitment=task.cdvae.config.commitment,
    )
    return output, loss.total


def _noise(task: FinetuneTask, batch: TrainBatch, purpose: str) -> Tensor:
    keys = image_keys(task.training.seed, purpose, batch.epoch, batch.image_ids)
    return keyed_normal(keys, task.cdvae.config.noise_size)
