"""The convolutional VAE G of CD-VAE, laid out as in the authors' released weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Posterior(NamedTuple):
    """q(z|x), a diagonal Gaussian: mean and log-variance, each (N, Z)."""

    mean: Tensor
    log_var: Tensor

    @property
    def vector(self) -> Tensor:
        """What G decodes without noise, (N, Z)."""
        return self.mean


class ResBlock(nn.Module):
    """x + convs(x), convs = LeakyReLU, Conv3x3, BN, LeakyReLU, Conv1x1."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.LeakyReLU(),
            nn.Conv2d(planes, planes, 3, padding=1),
            nn.BatchNorm2d(planes),
            nn.LeakyReLU(),
            nn.Conv2d(planes, planes, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.convs(features)
        return features + residual


class ConvVae(nn.Module):
    """G: normalised images (N, 3, S, S) to their reconstruction, through z in R^Z.

    Args:
        width: feature planes d, an even number.
        latent_size: Z.
        image_size: S, a multiple of 4.
    """

    def __init__(self, *, width: int, latent_size: int, image_size: int) -> None:
        super().__init__()
        self.feature_shape = (width, image_size // 4, image_size // 4)
        flat = width * (image_size // 4) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            ResBlock(width),
            nn.BatchNorm2d(width),
            ResBlock(width),
        )
        self.decoder = nn.Sequential(
            ResBlock(width),
            nn.BatchNorm2d(width),
            ResBlock(width),
            nn.BatchNorm2d(width),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(inplace=True),
            nn.ConvTranspose2d(width // 2, 3, 4, stride=2, padding=1, bias=False),
        )
        self.xi_bn = nn.BatchNorm2d(3)
        self.fc11 = nn.Linear(flat, latent_size)
        self.fc12 = nn.Linear(flat, latent_size)
        self.fc21 = nn.Linear(latent_size, flat)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, *, sample: bool = False
    ) -> tuple[Tensor, Posterior]:
        """The reconstruction of normalised images, and q(z|x).

        Args:
            images: (N, 3, S, S).
            noise: the N(0, I) of the reparameterisation, (N, Z).
            sample: whether to draw noise where none is given; else the mean is decoded.
        """
        posterior = self.encode(images)
        if noise is None and sample:
            noise = torch.randn_like(posterior.mean)
        latents = posterior.mean if noise is None else reparameterize(posterior, noise)
        return self.decode(latents), posterior

    def encode(self, images: Tensor) -> Posterior:
        """q(z|x) of normalised images."""
        features = self.encoder(images).flatten(1)
        return Posterior(mean=self.fc11(features), log_var=self.fc12(features))

    def decode(self, latents: Tensor) -> Tensor:
        """The reconstruction, in normalised pixels, of latents (N, Z)."""
        features = self.fc21(latents).view(-1, *self.feature_shape)
        reconstruction: Tensor = self.xi_bn(torch.tanh(self.decoder(features)))
        return reconstruction


def reparameterize(posterior: Posterior, noise: Tensor) -> Tensor:
    """z = mean + exp(log_var / 2) * noise, for noise ~ N(0, I) of shape (N, Z)."""
    return posterior.mean + torch.exp(0.5 * posterior.log_var) * noise
