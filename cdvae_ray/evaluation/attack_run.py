"""One shard of an adversarial set: attack, then look at the very images that are stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.attacks.balls import pixel_norm
from cdvae_ray.core.attacks.eot import Eot, eot
from cdvae_ray.core.attacks.run import run_attack
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.answers import answering, predictions
from cdvae_ray.storage.adversarial_set import AdversarialImages


def attack_images(
    model: nn.Module,
    image_set: ImageSet,
    image_ids: range,
    config: AttackConfig,
    *,
    seed: int,
    eot_samples: int,
    batch_size: int,
    device: torch.device,
    channels_last: bool,
) -> AdversarialImages:
    """Attacks images [start, stop) of a set and gathers one row an image.

    Args:
        model: images in [0, 1] to logits, in eval mode on `device`.
        image_set: the clean images.
        image_ids: which of them.
        config: the attack.
        seed: keys random starts together with the ids.
        eot_samples: draws a gradient; 1: no expectation.
        batch_size: images attacked at once.
        device: where to compute.
        channels_last: memory format of the images.
    """
    classify: nn.Module | Eot = model
    if eot_samples > 1:
        classify = eot(model, num_samples=eot_samples)
    parts: list[dict[str, Tensor]] = []
    for first in range(image_ids.start, image_ids.stop, batch_size):
        ids = torch.arange(first, min(first + batch_size, image_ids.stop))
        images = _floats(image_set.images[ids], device, channels_last=channels_last)
        labels = image_set.labels[ids].to(device)
        result = run_attack(config, classify, images, labels, seed=seed, image_ids=ids)
        # Draws of their own, not those among which the attack has found its luck.
        with torch.inference_mode(), answering(seed, first, device=device):
            clean, answers = predictions(classify(images)), predictions(classify(result.images))
        perturbation = result.images - images
        part = {
            "image_ids": ids,
            "images": result.images.contiguous(),
            "labels": labels,
            "clean_predictions": clean,
            "predictions": answers,
            "success": result.success,
            "loss": result.loss,
            "norm": result.norm,
            "linf": pixel_norm(perturbation, "linf"),
            "l2": pixel_norm(perturbation, "l2"),
            "zero_gradient": result.zero_gradient,
            "nonfinite_gradient": result.nonfinite_gradient,
        }
        parts.append({name: values.cpu() for name, values in part.items()})
    return AdversarialImages(
        **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    )


def _floats(images: Tensor, device: torch.device, *, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(device).to(torch.float32, memory_format=layout).div_(255)
