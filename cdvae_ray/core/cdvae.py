"""The class-disentangled VAE: x = G(x) + R(x), with D classifying R(x)."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.build_network import build_network
from cdvae_ray.core.inputs import register_pixel_units, require_dataset, require_images
from cdvae_ray.core.vae import ConvVae, Posterior
from cdvae_ray.core.vq_vae import Quantized, VqVae
from cdvae_ray.errors import ConfigError

Latent: TypeAlias = Posterior | Quantized
"""What G knows of images: q(z|x) of a convolutional VAE, or the codes of a VQ-VAE."""


class CdvaeOutput(NamedTuple):
    """What the objective needs, in the networks' own units (normalised pixels)."""

    normalized_images: Tensor
    """x, (N, 3, S, S)."""
    reconstruction: Tensor
    """G(x), (N, 3, S, S)."""
    latent: Latent
    """q(z|x) or codes."""
    logits: Tensor
    """D(R(x)), (N, classes)."""


class Decomposition(NamedTuple):
    """x = G(x) + R(x) in pixel units: images == class_redundant + class_essential."""

    class_redundant: Tensor
    """G(x), (N, 3, S, S), in pixel units; it may leave [0, 1] slightly."""
    class_essential: Tensor
    """R(x) = x - G(x), (N, 3, S, S), in pixel units."""
    latent: Latent
    """q(z|x) or codes."""
    logits: Tensor
    """D(R(x)), (N, classes)."""

    @property
    def mean(self) -> Tensor:
        """Mean of q(z|x), (N, Z).

        Raises:
            ConfigError: the generator is a VQ-VAE, which has codes instead.
        """
        return self._posterior().mean

    @property
    def log_var(self) -> Tensor:
        """Log-variance of q(z|x), (N, Z).

        Raises:
            ConfigError: the generator is a VQ-VAE, which has codes instead.
        """
        return self._posterior().log_var

    def _posterior(self) -> Posterior:
        if not isinstance(self.latent, Posterior):
            raise ConfigError(
                "q(z|x)",
                got="the codes of a VQ-VAE",
                expected="the Gaussian of a convolutional VAE",
                remedy="read them from latent",
            )
        return self.latent


class CDVAE(nn.Module):
    """G and D together, on images in [0, 1]; the normalisation is inside.

    In eval mode the model is deterministic unless `config.evaluation_latent` is "sample".

    Args:
        config: the networks.
        image_size: side S of the images, at least 8; a multiple of 4 for a convolutional VAE.
        class_names: one name a class; their number is the number of logits.

    Raises:
        ConfigError: an image size or a number of classes that the networks cannot have.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, config: ModelConfig, *, image_size: int, class_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        require_dataset(image_size, class_names, multiple_of=_SIDES[config.generator])
        self.config = config
        self.image_size = image_size
        self.class_names = class_names
        self.generator = _build_generator(config, image_size)
        self.classifier = build_network(
            config.classifier_network,
            depth=config.classifier_depth,
            widen_factor=config.classifier_widen_factor,
            dropout=config.classifier_dropout,
            num_classes=len(class_names),
        )
        register_pixel_units(self, config.pixel_mean, config.pixel_std)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> CdvaeOutput:
        """All terms of Eqs. (1)-(3) for images (N, 3, S, S) in [0, 1].

        Args:
            images: float, (N, 3, S, S), in [0, 1].
            noise: the N(0, I) of the reparameterisation, (N, Z). Without it G decodes the mean
                in eval mode (or a fresh sample if the config says so), and a fresh sample in
                train mode. A VQ-VAE takes none: Z is 0.
        """
        normalized = (images - self.pixel_mean) / self.pixel_std
        reconstruction, latent = self.reconstruct(normalized, noise)
        logits = self.classifier(normalized - reconstruction)
        return CdvaeOutput(
            normalized_images=normalized,
            reconstruction=reconstruction,
            latent=latent,
            logits=logits,
        )

    def reconstruct(self, normalized: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Latent]:
        """G of normalised images (N, 3, S, S), in the same units, and what it knows of them.

        Args:
            normalized: (images - pixel_mean) / pixel_std.
            noise: as for `forward`.
        """
        sample = self.training or self.config.evaluation_latent == "sample"
        found: tuple[Tensor, Latent] = self.generator(normalized, noise, sample=sample)
        return found

    def decompose(self, images: Tensor) -> Decomposition:
        """Splits images into class-redundant and class-essential parts, in pixel units.

        Args:
            images: float, (N, 3, S, S), in [0, 1].

        Raises:
            DataError: the images do not have the model's shape.
        """
        require_images(images, self.image_size, what="images", units="[0, 1]")
        output: CdvaeOutput = self(images)
        class_redundant = output.reconstruction * self.pixel_std + self.pixel_mean
        return Decomposition(
            class_redundant=class_redundant,
            class_essential=images - class_redundant,
            latent=output.latent,
            logits=output.logits,
        )

    def classify_essential(self, images: Tensor) -> Tensor:
        """D(R(x)) through the whole CD-VAE: images in [0, 1] to logits (N, classes)."""
        logits: Tensor = self(images).logits
        return logits


_SIDES = {"conv_vae": 4, "vq_vae": 1}
"""The side of the images is a multiple of this."""


def _build_generator(config: ModelConfig, image_size: int) -> ConvVae | VqVae:
    if config.generator == "conv_vae":
        return ConvVae(
            width=config.vae_width, latent_size=config.latent_size, image_size=image_size
        )
    return VqVae(width=config.vae_width, codebook_size=config.codebook_size)


def build_cdvae(
    config: ModelConfig, *, image_size: int, class_names: tuple[str, ...], seed: int
) -> CDVAE:
    """A freshly initialised CD-VAE whose weights depend on the seed alone."""
    # PyTorch's layers initialise from the global generator: fork it, so the caller's is unmoved.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CDVAE(config, image_size=image_size, class_names=class_names)
