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
from cdvae_ray.core.pretrained import Pretrained, start_from
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.core.vq_vae import Quantized, code_counts, perplexity
from cdvae_ray.training.distributed import all_reduce_sum
from cdvae_ray.training.task import BatchLoss, Replica, StatefulLoss, StepLoss, TrainBatch

_LATENT_LOSS = {"conv_vae": "kl", "vq_vae": "codebook"}
"""What the metrics call the loss of G's latent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CdvaeTask:
    """Trains G and D together."""

    checkpoint_kind: ClassVar[str] = "cdvae-checkpoint"
    model: ModelConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    image_size: int
    class_names: tuple[str, ...]
    pretrained: Pretrained | None = None
    """Where D starts."""

    @property
    def metric_sums(self) -> tuple[str, ...]:
        """The terms of Eq. (1), and what D has right."""
        latent = _LATENT_LOSS[self.model.generator]
        return ("loss", "reconstruction", latent, "classification", "correct")

    def build_model(self) -> CDVAE:
        """A fresh CD-VAE of this run's seed, with D as it starts.

        Raises:
            CheckpointError: the weights to start from are of another network.
        """
        cdvae = build_cdvae(
            self.model,
            image_size=self.image_size,
            class_names=self.class_names,
            seed=self.training.seed,
        )
        if self.pretrained is not None:
            start_from(cdvae.classifier, self.pretrained)
        return cdvae

    def model_facts(self) -> dict[str, Any]:
        """What a checkpoint says of its CD-VAE."""
        return {
            "model": to_dict(self.model),
            "image_size": self.image_size,
            "class_names": list(self.class_names),
        }

    def loss_on(self, device: torch.device) -> BatchLoss:
        """Eq. (1) of a batch; of a VQ-VAE it counts the codes of an epoch."""
        if self.model.generator == "vq_vae":
            return CountingCodes(self, device)
        return functools.partial(_batch_loss, self)


class CountingCodes(StatefulLoss):
    """Eq. (1) with a VQ-VAE, and how its code book is used over an epoch and all ranks."""

    def __init__(self, task: CdvaeTask, device: torch.device) -> None:
        # Nothing outlives an epoch, so nothing is kept with a checkpoint.
        super().__init__({})
        self._task = task
        self._counts = torch.zeros(task.model.codebook_size, dtype=torch.float64, device=device)

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""
        output = _output(self._task, replica, batch)
        assert isinstance(output.latent, Quantized)
        self._counts += code_counts(output.latent.codes, len(self._counts))
        return _step_loss(self._task, output, batch)

    def end_epoch(self, replica: Replica, *, epoch: int, is_last: bool) -> dict[str, float]:
        """Perplexity of the codes that training images had, and how many codes had any."""
        counts = all_reduce_sum(self._counts)
        self._counts = torch.zeros_like(counts)
        return {
            "train_codebook_perplexity": perplexity(counts),
            "train_codes_used": float((counts > 0).sum()),
        }


def _batch_loss(task: CdvaeTask, replica: Replica, batch: TrainBatch) -> StepLoss:
    return _step_loss(task, _output(task, replica, batch), batch)


def _output(task: CdvaeTask, replica: Replica, batch: TrainBatch) -> CdvaeOutput:
    keys = image_keys(task.training.seed, "latent", batch.epoch, batch.image_ids)
    noise = keyed_normal(keys, task.model.noise_size)
    with replica.autocast():
        output: CdvaeOutput = replica.module(batch.images, noise)
    return output


def _step_loss(task: CdvaeTask, output: CdvaeOutput, batch: TrainBatch) -> StepLoss:
    loss = cdvae_loss(
        output,
        batch.labels,
        objective=task.objective,
        epoch=batch.epoch,
        partner_labels=batch.partner_labels,
        mixup_weight=batch.mixup_weight,
        commitment=task.model.commitment,
    )
    count = len(batch.labels)
    sums = {
        "loss": loss.total * count,
        "reconstruction": loss.reconstruction * count,
        _LATENT_LOSS[task.model.generator]: loss.latent * count,
        "classification": loss.classification * count,
        "correct": (output.logits.argmax(dim=1) == batch.labels).sum(),
    }
    return StepLoss(loss.total, sums)
