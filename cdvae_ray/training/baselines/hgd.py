"""HGD (Liao et al., 2018): a denoiser led by what a trained classifier answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.hgd import guidance_loss
from cdvae_ray.training.baselines.adversarial import step_loss, train_logits
from cdvae_ray.training.inner_attack import Autocast, adversarial_images
from cdvae_ray.training.purifier_model import HgdModel
from cdvae_ray.training.task import Replica, StepLoss, TrainBatch


@dataclass(frozen=True)
class HgdLoss:
    """|D(P(x')) - D(x)| + |D(P(x)) - D(x)|, logits of a D that does not change.

    x' is made against D alone, as the denoiser's training set is in the paper, which holds clean
    images as well.

    Args:
        attack: on D.
        seed: of the run.
    """

    attack: AttackConfig
    seed: int

    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""
        model = replica.model
        assert isinstance(model, HgdModel)
        classify = Autocast(model.classifier, replica.autocast)
        adversarial = adversarial_images(classify, batch, self.attack, seed=self.seed)
        with torch.no_grad():
            target: Tensor = classify(batch.images)
        attacked = train_logits(replica, adversarial)
        clean = train_logits(replica, batch.images)
        losses = guidance_loss(attacked, target) + guidance_loss(clean, target)
        return step_loss(losses, attacked, batch.labels)
