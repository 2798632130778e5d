"""What a plain classifier answers to clean test images, to their G(x) and to their R(x)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cdvae_ray.config.classifier import INPUT_KINDS, InputKind
from cdvae_ray.config.classifier_job import TOP_K
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier, classifier_input
from cdvae_ray.core.metrics import Tally
from cdvae_ray.data.batches import Batch
from cdvae_ray.training.frozen_cdvae import latent_noise


def kinds_of_input(cdvae: CDVAE | None) -> tuple[InputKind, ...]:
    """The inputs that can be made: all three with a CD-VAE, else images alone."""
    return INPUT_KINDS if cdvae is not None else ("images",)


def classification_sums(kinds: Sequence[InputKind]) -> tuple[str, ...]:
    """The names of `evaluate_classifier`'s sums."""
    return tuple(f"{name}_on_{kind}" for kind in kinds for name in ("accuracy", "top5_accuracy"))


def evaluate_classifier(
    model: ImageClassifier, batches: Iterable[Batch], device: torch.device, *, cdvae: CDVAE | None
) -> Tally:
    """Top-1 and top-5 accuracy on x and, with a CD-VAE, on G(x) and R(x): a row of Table 3.

    The classifier stays as it was trained; what it is shown is normalised as what it is.

    Args:
        model: in eval mode, on `device`.
        batches: uint8 images with labels; this rank's share of them.
        device: where to compute.
        cdvae: in eval mode, on `device`; makes G(x) and R(x).

    Returns:
        The sums `classification_sums(kinds_of_input(cdvae))` over this rank's images.
    """
    tally = Tally(device)
    with torch.inference_mode():
        for batch in batches:
            images, labels = batch.on(device)
            noise = None
            if cdvae is not None:
                ids = batch.image_ids.to(device, non_blocking=True)
                noise = latent_noise(cdvae, ids, purpose="evaluate.latent", seed=0, epoch=0)
            sums = {}
            for kind in kinds_of_input(cdvae):
                logits = model.classify(classifier_input(images, kind, cdvae, noise=noise), kind)
                sums[f"accuracy_on_{kind}"] = top_k_correct(logits, labels, 1)
                sums[f"top5_accuracy_on_{kind}"] = top_k_correct(logits, labels, TOP_K)
            tally.add(sums, len(labels))
    return tally


def top_k_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many labels are among the k largest logits; with fewer than k classes, all of them.

    Args:
        logits: (N, classes).
        labels: (N,) int64.

    Returns:
        A scalar, int64.
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels.unsqueeze(1)).sum()
