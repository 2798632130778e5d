"""The objective of adversarial fine-tuning, Eqs. (8)-(10), on adversarial examples x'.

Sums and counts, not means: the examples of Eq. (8) are not equally many on every rank, and the mean
over all of them is a sum over ranks divided by a count over ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.config.adversarial_objective import AdversarialObjectiveConfig
from cdvae_ray.core.cdvae import CdvaeOutput
from cdvae_ray.core.objective import (
    latent_elements,
    latent_loss_per_image,
    squared_error_per_image,
)
from cdvae_ray.errors import ConfigError


class AdversarialTerms(NamedTuple):
    """Terms of Eqs. (9) and (10) with the examples that each is over, (N,) each."""

    reconstruction: Tensor
    """Squared error averaged over the elements of normalised pixels."""
    latent: Tensor
    """KL(q(z|x') || p(z)) / (3 Z); of a VQ-VAE its code-book loss averaged over the grid."""
    redundant: Tensor
    """-log D_G(G(x'))[y], nats."""
    essential: Tensor
    """-log D(R(x'))[the wrong class], nats."""
    within_margin: Tensor
    """bool: the examples of Eq. (8), which D_G learns from."""
    counted: Tensor
    """bool: those that the other terms take."""


class AdversarialSums(NamedTuple):
    """What a rank adds to Eq. (8)."""

    within: Tensor
    """Sum of gamma * redundant over the examples within the margin, a scalar."""
    counted: Tensor
    """Sum of reconstruction + beta * latent + gamma * essential over the counted ones, a scalar."""
    num_within: Tensor
    """How many these are, float64 scalars without gradient."""
    num_counted: Tensor


def true_class_lead(logits: Tensor, labels: Tensor, *, on: str) -> Tensor:
    """D_G(G(x'))[y] - max_{y' != y} D_G(G(x'))[y'], of probabilities or of logits.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        on: "probabilities" or "logits".

    Returns:
        (N,); in [-1, 1] of probabilities.
    """
    values = logits.softmax(dim=1) if on == "probabilities" else logits
    own = values.gather(1, labels[:, None])[:, 0]
    others = values.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return own - others


def most_probable_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """argmax_{y' != y} of logits (N, C), as in Eq. (10): (N,) int64."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def adversarial_terms(
    output: CdvaeOutput,
    redundant_logits: Tensor,
    labels: Tensor,
    *,
    config: AdversarialObjectiveConfig,
    clean_images: Tensor | None = None,
    commitment: float = 0.25,
) -> AdversarialTerms:
    """The terms of Eqs. (9) and (10), and which examples Eq. (8) takes.

    Gradients reach G by the reconstruction, the latent's loss, D_G(G(x')) and D(R(x')), D by
    `essential` and D_G by `redundant`; none flows through the choice of examples and classes.

    Args:
        output: of the CD-VAE on x', with logits of D(R(x')).
        redundant_logits: of D_G on G(x'), (N, C).
        labels: (N,) int64, the true classes.
        config: margin and variants.
        clean_images: x in normalised pixels, (N, 3, S, S); needed for the target "clean" alone.
        commitment: of a VQ-VAE, see `objective.latent_loss_per_image`.

    Raises:
        ConfigError: the target is "clean" and there are no clean images.
    """
    # The sums run in float32: under autocast the terms may arrive in bfloat16.
    logits = redundant_logits.float()
    chosen = logits.detach()
    target = _target(output, config, clean_images).float()
    within = true_class_lead(chosen, labels, on=config.margin_on) <= config.margin
    wrong = (
        most_probable_wrong(chosen, labels)
        if config.essential_class == "most_probable_wrong"
        else chosen.argmax(dim=1)
    )
    elements, latents = target[0].numel(), latent_elements(output.latent, target.shape[1])
    return AdversarialTerms(
        reconstruction=squared_error_per_image(output.reconstruction.float(), target) / elements,
        latent=latent_loss_per_image(output.latent, commitment=commitment) / latents,
        redundant=F.cross_entropy(logits, labels, reduction="none"),
        essential=F.cross_entropy(output.logits.float(), wrong, reduction="none"),
        within_margin=within,
        counted=within if config.essential_examples == "within_margin" else torch.ones_like(within),
    )


def adversarial_sums(
    terms: AdversarialTerms, config: AdversarialObjectiveConfig
) -> AdversarialSums:
    """Sums over one rank's examples.

    Args:
        terms: of its part of the batch.
        config: weights.
    """
    others = terms.reconstruction + config.beta * terms.latent + config.gamma * terms.essential
    return AdversarialSums(
        within=(config.gamma * terms.redundant).where(terms.within_margin, 0.0).sum(),
        counted=others.where(terms.counted, 0.0).sum(),
        num_within=terms.within_margin.sum(dtype=torch.float64),
        num_counted=terms.counted.sum(dtype=torch.float64),
    )


def adversarial_loss(
    sums: AdversarialSums, *, num_within: Tensor, num_counted: Tensor, num_ranks: int
) -> Tensor:
    """Eq. (8) on one rank, such that the mean over ranks is the mean over the global batch.

    Args:
        sums: of this rank.
        num_within, num_counted: over all ranks; 0 leaves a loss of 0, with gradients of 0.
        num_ranks: whose gradients are averaged.
    """
    within = sums.within * (num_ranks / num_within.clamp(min=1))
    counted = sums.counted * (num_ranks / num_counted.clamp(min=1))
    total: Tensor = within + counted
    return total


def _target(
    output: CdvaeOutput, config: AdversarialObjectiveConfig, clean_images: Tensor | None
) -> Tensor:
    if config.reconstruction_target == "adversarial":
        return output.normalized_images
    if clean_images is None:
        raise ConfigError(
            "clean_images",
            got="none",
            expected="the clean images, which G(x') is to reconstruct",
            remedy="pass them, or choose the reconstruction target adversarial",
        )
    return clean_images
