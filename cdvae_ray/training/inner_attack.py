"""Adversarial examples of a training batch: the inner maximisation of adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.attacks.inputs import attacking
from cdvae_ray.core.attacks.run import run_attack
from cdvae_ray.core.attacks.search import Rows
from cdvae_ray.core.random import derive_seed
from cdvae_ray.training.task import TrainBatch


class Autocast(nn.Module):
    """A model in the run's precision, which attacks can still put into eval mode.

    Args:
        model: images in [0, 1] to logits.
        autocast: the context of a forward pass.
    """

    def __init__(
        self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, images: Tensor) -> Tensor:
        """Float32 logits (N, classes) of images (N, 3, S, S)."""
        with self.autocast():
            logits: Tensor = self.model(images)
        return logits.float()


def adversarial_images(
    classify: nn.Module,
    batch: TrainBatch,
    attack: AttackConfig,
    *,
    seed: int,
    only_correct: bool = False,
) -> Tensor:
    """x' of a batch, each image's by (seed, epoch, image id) alone.

    The classifier runs in eval mode, so that an image's attack depends on no other image, and is
    left in the mode it was in; no weight takes a gradient.

    Args:
        classify: images in [0, 1] to logits.
        batch: images and their labels.
        attack: with its settings.
        seed: of the run.
        only_correct: leave an image as it is that is answered wrongly without an attack.

    Returns:
        (N, 3, S, S) in [0, 1], detached, in the images' layout.
    """
    key = derive_seed(seed, "inner attack", batch.epoch)
    if not only_correct:
        return _attacked(classify, batch, slice(None), attack, seed=key)
    with attacking(classify, key, batch.images.device), torch.no_grad():
        right = classify(batch.images).argmax(dim=1) == batch.labels
    rows = right.nonzero().squeeze(1)
    adversarial = batch.images.clone()
    if len(rows) > 0:
        adversarial[rows] = _attacked(classify, batch, rows, attack, seed=key)
    return adversarial


def _attacked(
    classify: nn.Module, batch: TrainBatch, rows: Rows, attack: AttackConfig, *, seed: int
) -> Tensor:
    return run_attack(
        attack,
        classify,
        batch.images[rows],
        batch.labels[rows],
        seed=seed,
        image_ids=batch.image_ids[rows],
    ).images
