"""The CD-VAE objective, Eqs. (1)-(3), with every reduction named."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.core.cdvae import CdvaeOutput, Latent
from cdvae_ray.core.vae import Posterior
from cdvae_ray.core.vq_vae import codebook_loss_per_image


class CdvaeLoss(NamedTuple):
    """Eq. (1) and its three terms, each a batch mean before its weight is applied."""

    total: Tensor
    """weight * reconstruction + beta * latent + gamma * classification."""
    reconstruction: Tensor
    """-log p(x|z) of Eq. (2) in the chosen reduction, a scalar."""
    latent: Tensor
    """D_KL(q(z|x) || p(z)) of Eq. (2) in the chosen reduction; of a VQ-VAE, whose KL divergence is
    constant, its code-book and commitment loss in its place; a scalar."""
    classification: Tensor
    """-log D(R(x))[y] of Eq. (3), nats, a scalar."""


def kl_per_image(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, I)) of Eq. (2).

    Args:
        mean, log_var: (N, Z).

    Returns:
        (N,), nats.
    """
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(dim=1)


def latent_loss_per_image(latent: Latent, *, commitment: float) -> Tensor:
    """What G pays for its latent: KL in nats, or the code-book loss summed over the grid: (N,)."""
    if isinstance(latent, Posterior):
        return kl_per_image(latent.mean.float(), latent.log_var.float())
    return codebook_loss_per_image(latent, commitment=commitment)


def latent_elements(latent: Latent, num_channels: int) -> int:
    """What channel_latent_mean divides by: 3 Z as released, or the d h w numbers of the grid."""
    elements = latent.vector.shape[1]
    return num_channels * elements if isinstance(latent, Posterior) else elements


def squared_error_per_image(reconstruction: Tensor, images: Tensor) -> Tensor:
    """|x - G(x)|^2 summed over each image: (N, ...) twice to (N,)."""
    return (reconstruction - images).square().flatten(1).sum(dim=1)


def cross_entropy_per_image(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, weight: float
) -> Tensor:
    """-log D(R(x))[y] of Eq. (3), under mixup a blend for both labels: (N,), nats."""
    loss = F.cross_entropy(logits, labels, reduction="none")
    if weight == 1.0:
        return loss
    partner_loss = F.cross_entropy(logits, partner_labels, reduction="none")
    return weight * loss + (1 - weight) * partner_loss


def cdvae_loss(
    output: CdvaeOutput,
    labels: Tensor,
    *,
    objective: ObjectiveConfig,
    epoch: int,
    partner_labels: Tensor | None = None,
    mixup_weight: float = 1.0,
    commitment: float = 0.25,
) -> CdvaeLoss:
    """Eq. (1): weight(epoch) * reconstruction + beta * KL + gamma * cross-entropy.

    Args:
        output: what CDVAE returned for N images; its normalised pixels are compared.
        labels: (N,), int64.
        objective: weights and reductions.
        epoch: selects the reconstruction's weight in the curriculum.
        partner_labels: the labels of the images mixed in, (N,), with mixup.
        mixup_weight: the share of `labels` in [0, 1].
        commitment: of a VQ-VAE, see `latent_loss_per_image`.
    """
    # The sums run in float32: under autocast the terms may arrive in bfloat16.
    images = output.normalized_images.float()
    squared_error = squared_error_per_image(output.reconstruction.float(), images)
    latent = latent_loss_per_image(output.latent, commitment=commitment)
    classification = cross_entropy_per_image(
        output.logits.float(),
        labels,
        labels if partner_labels is None else partner_labels,
        mixup_weight,
    ).mean()
    match objective.reconstruction_reduction:
        case "element_mean":
            reconstruction = squared_error.mean() / images[0].numel()
        case "image_sum":
            reconstruction = 0.5 * squared_error.mean()
    match objective.kl_reduction:
        case "channel_latent_mean":
            latent_term = latent.mean() / latent_elements(output.latent, images.shape[1])
        case "image_sum":
            latent_term = latent.mean()
    total = (
        objective.reconstruction_weight(epoch) * reconstruction
        + objective.beta * latent_term
        + objective.gamma * classification
    )
    return CdvaeLoss(total, reconstruction, latent_term, classification)


def reconstruction_accuracy_per_image(reconstruction: Tensor, images: Tensor) -> Tensor:
    """1 - |x - G(x)|_2 / |x|_2 of section 4.1, on the paper's normalised pixels: (N,).

    The released code squares the ratio (see docs/departures.md).
    """
    error = torch.linalg.vector_norm((images - reconstruction).flatten(1), dim=1)
    accuracy: Tensor = 1 - error / torch.linalg.vector_norm(images.flatten(1), dim=1)
    return accuracy
