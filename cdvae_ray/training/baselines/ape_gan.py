"""APE-GAN (Shen et al., 2017): a generator of clean images, and a discriminator to please."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.ape_gan import discriminator_losses, generator_losses
from cdvae_ray.training.baselines.adversarial import step_loss
from cdvae_ray.training.inner_attack import Autocast, adversarial_images
from cdvae_ray.training.purifier_model import ApeGanModel, ApeGanOutput
from cdvae_ray.training.task import Replica, StepLoss, TrainBatch


@dataclass(frozen=True)
class ApeGanLoss:
    """The generator's loss and the discriminator's in one step, each on its own weights.

    The paper alternates between the two; here both move at once, from the same images.

    Args:
        attack: on the classifier alone.
        pixel_weight: of the squared error between P(x') and x.
        adversarial_weight: of the discriminator's answer to P(x').
        seed: of the run.
    """

    attack: AttackConfig
    pixel_weight: float
    adversarial_weight: float
    seed: int

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""
        model = replica.model
        assert isinstance(model, ApeGanModel)
        classify = Autocast(model.classifier, replica.autocast)
        adversarial = adversarial_images(classify, batch, self.attack, seed=self.seed)
        with replica.autocast():
            output: ApeGanOutput = replica.module(adversarial, batch.images)
        purified = output.purified.float()
        losses = generator_losses(
            purified,
            batch.images,
            output.fake_logits_for_generator.float(),
            pixel_weight=self.pixel_weight,
            adversarial_weight=self.adversarial_weight,
        ) + discriminator_losses(output.real_logits.float(), output.fake_logits.float())
        with torch.no_grad():
            logits = classify(purified)
        return step_loss(losses, logits, batch.labels)
