"""Test images and their adversarial twins, batch by batch on one device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cdvae_ray.attacks import run_attack
from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.attacks.balls import pixel_norm
from cdvae_ray.data.images import ImageSet

SEED = 0
"""Of random starts, noise, splits and resamples."""


class Shown(NamedTuple):
    """The first test images on the device, float32 in [0, 1]."""

    images: Tensor
    labels: Tensor
    image_ids: Tensor


class AttackedImages(NamedTuple):
    """What an attack made of images; equal rows belong together."""

    images: Tensor
    """x', (N, 3, S, S)."""
    success: Tensor
    """(N,) bool: the attacked function is wrong on x'."""
    l2: Tensor
    """(N,), of the perturbation, pixels."""
    zero_gradient: int
    """Images whose gradient was exactly zero before they were fooled."""
    nonfinite_gradient: int
    """Images that met NaN or infinity."""


def first_images(image_set: ImageSet, count: int, device: torch.device) -> Shown:
    """The first `count` images; all of them if there are fewer."""
    kept = min(count, len(image_set))
    images = image_set.images[:kept].to(device).float() / 255
    ids = torch.arange(kept, device=device)
    return Shown(images, image_set.labels[:kept].to(device), ids)


def attack_images(
    attack: AttackConfig, attacked: nn.Module, shown: Shown, *, batch_size: int
) -> AttackedImages:
    """Runs an attack with its suite's settings on all images."""
    results = [
        run_attack(attack, attacked, images, labels, seed=SEED, image_ids=ids)
        for images, labels, ids in zip(
            *(torch.split(each, batch_size) for each in shown), strict=True
        )
    ]
    images = torch.cat([each.images for each in results])
    return AttackedImages(
        images=images,
        success=torch.cat([each.success for each in results]),
        l2=pixel_norm(images - shown.images, "l2"),
        zero_gradient=sum(int(each.zero_gradient.sum()) for each in results),
        nonfinite_gradient=sum(int(each.nonfinite_gradient.sum()) for each in results),
    )


def predictions(model: nn.Module, images: Tensor, *, batch_size: int) -> Tensor:
    """Classes, (N,)."""
    with torch.no_grad():
        parts = [model(batch).argmax(dim=1) for batch in torch.split(images, batch_size)]
    return torch.cat(parts)
