"""How the terms of Eqs. (1)-(3) are reduced and weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import at_least, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Eq. (1): weight * reconstruction + beta * KL + gamma * cross-entropy."""

    gamma: float = 2.0
    """Weight of the classification of R(x), Eq. (1): >= 0."""
    beta: float = 0.2
    """Weight of the KL divergence, Eq. (2), or of a VQ-VAE's code-book loss: >= 0."""
    reconstruction_reduction: Literal["element_mean", "image_sum"] = "element_mean"
    """element_mean: squared error averaged over all elements of normalised pixels (released
    code). image_sum: half the squared error summed over an image, the unit-variance Gaussian
    -log p(x|z) of Eq. (2) up to its constant, averaged over the batch."""
    kl_reduction: Literal["channel_latent_mean", "image_sum"] = "channel_latent_mean"
    """channel_latent_mean: KL / (3 Z), averaged over the batch (released code). image_sum: the
    KL divergence of Eq. (2) in nats, averaged over the batch. Of a VQ-VAE: its code-book loss,
    averaged or summed over the numbers of the grid."""
    reconstruction_weights: tuple[tuple[int, float], ...] = ((0, 1.0),)
    """Curriculum of the reconstruction's weight: (first epoch, weight) pairs from epoch 0 on."""

    def __post_init__(self) -> None:
        at_least("objective.gamma", self.gamma, 0.0)
        at_least("objective.beta", self.beta, 0.0)
        starts = [start for start, _ in self.reconstruction_weights]
        require(
            bool(starts) and starts[0] == 0 and starts == sorted(set(starts)),
            "objective.reconstruction_weights",
            got=f"first epochs {starts}",
            expected="rising first epochs that begin with 0",
            remedy="give pairs such as 0 10.0 100 5.0 200 1.0",
        )
        for _, weight in self.reconstruction_weights:
            at_least("objective.reconstruction_weights", weight, 0.0)

    def reconstruction_weight(self, epoch: int) -> float:
        """The weight of the reconstruction in this epoch (counted from 0)."""
        return [weight for start, weight in self.reconstruction_weights if start <= epoch][-1]
