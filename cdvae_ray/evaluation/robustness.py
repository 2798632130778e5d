"""A first look at a defence after training: clean accuracy, and a short white-box PGD."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cdvae_ray.config.training import DefenseEvaluationConfig
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.metrics import Tally
from cdvae_ray.data.batches import Batch
from cdvae_ray.evaluation.answers import predictions

CLEAN_ACCURACY_SUMS = ("accuracy",)
ROBUSTNESS_SUMS = ("attacked_clean_accuracy", "attacked_accuracy")


def accuracy(defense: nn.Module, batches: Iterable[Batch], device: torch.device) -> Tally:
    """How many clean images are right: the sums CLEAN_ACCURACY_SUMS.

    Args:
        defense: images in [0, 1] to logits, in eval mode, on `device`.
        batches: uint8 images with labels; this rank's share of them.
        device: where to compute.
    """
    tally = Tally(device)
    with torch.inference_mode():
        for batch in batches:
            images, labels = batch.on(device)
            right = predictions(defense(images)) == labels
            tally.add({"accuracy": right.sum()}, len(labels))
    return tally


def robustness(
    defense: nn.Module,
    batches: Iterable[Batch],
    config: DefenseEvaluationConfig,
    device: torch.device,
) -> Tally:
    """How many are right before, and before and after, L-infinity PGD: the sums ROBUSTNESS_SUMS.

    Threat model: white-box, through all of the defence; a look, and no claim of robustness.
    """
    tally = Tally(device)
    for batch in batches:
        images, labels = batch.on(device)
        result = pgd(
            defense,
            images,
            labels,
            epsilon=config.attack_epsilon,
            num_steps=config.attack_num_steps,
            seed=0,
            image_ids=batch.image_ids,
        )
        with torch.inference_mode():
            right = predictions(defense(images)) == labels
            held = right & (predictions(defense(result.images)) == labels)
        tally.add(
            {"attacked_clean_accuracy": right.sum(), "attacked_accuracy": held.sum()}, len(labels)
        )
    return tally
