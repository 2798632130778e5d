"""The VQ-VAE G (van den Oord et al., NeurIPS 2017), laid out as in the released ImageNet model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.core.vae import ResBlock


class Quantized(NamedTuple):
    """What a VQ-VAE knows of images: a grid of codes of d numbers each."""

    encoded: Tensor
    """z_e(x), (N, d, h, w)."""
    quantized: Tensor
    """e, the nearest code at each place, (N, d, h, w): its gradient is the code book's alone."""
    codes: Tensor
    """Which code that is, (N, h, w) int64."""

    @property
    def vector(self) -> Tensor:
        """What G decodes, (N, d h w)."""
        return self.quantized.flatten(1)


class CodeBook(nn.Module):
    """K codes of d numbers; `weight` is (d, K), as in the released weights.

    Args:
        width: d.
        size: K.
    """

    def __init__(self, *, width: int, size: int) -> None:
        super().__init__()
        # As z_e(x) leaves a batch normalisation: no code starts far from all of it.
        self.weight = nn.Parameter(torch.randn(width, size))

    def forward(self, encoded: Tensor) -> Quantized:
        """The nearest code, by Euclidean distance, at each place of z_e(x), (N, d, h, w)."""
        # The choice is made in float32: under autocast near codes would be told apart by rounding.
        with torch.no_grad(), torch.autocast(encoded.device.type, enabled=False):
            places = encoded.detach().float().movedim(1, -1)
            weight = self.weight.float()
            distances = weight.square().sum(dim=0) - 2 * places @ weight
            codes = distances.argmin(dim=-1)
        quantized = F.embedding(codes, self.weight.t()).movedim(-1, 1)
        return Quantized(encoded, quantized, codes)


class VqVae(nn.Module):
    """G: normalised images (N, 3, S, S) to their reconstruction, through a grid of codes.

    The gradient passes the choice of codes straight through: dz_e/dx stands for de/dx, also for an
    attacker. A side that 4 does not divide, such as 299, is padded by its last pixels and cropped.

    Args:
        width: feature planes d, and numbers of a code.
        codebook_size: K.
    """

    def __init__(self, *, width: int, codebook_size: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(inplace=True),
            ResBlock(width),
            nn.BatchNorm2d(width),
            ResBlock(width),
            nn.BatchNorm2d(width),
        )
        self.emb = CodeBook(width=width, size=codebook_size)
        self.decoder = nn.Sequential(
            ResBlock(width),
            nn.BatchNorm2d(width),
            ResBlock(width),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(inplace=True),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )
        self.L_bn = nn.BatchNorm2d(3)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, *, sample: bool = False
    ) -> tuple[Tensor, Quantized]:
        """The reconstruction of normalised images, and their codes. It draws no noise."""
        latent = self.encode(images)
        straight_through = latent.encoded + (latent.quantized - latent.encoded).detach()
        return self.decode(straight_through)[..., : images.shape[2], : images.shape[3]], latent

    def encode(self, images: Tensor) -> Quantized:
        """The codes of normalised images."""
        height, width = images.shape[2:]
        if height % 4 or width % 4:
            images = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
        latent: Quantized = self.emb(self.encoder(images))
        return latent

    def decode(self, latents: Tensor) -> Tensor:
        """The reconstruction, in normalised pixels, of a grid (N, d, h, w): (N, 3, 4 h, 4 w)."""
        reconstruction: Tensor = self.L_bn(torch.tanh(self.decoder(latents)))
        return reconstruction


def codebook_loss_per_image(latent: Quantized, *, commitment: float) -> Tensor:
    """Sum over the grid of |sg(z_e) - e|^2 + commitment |z_e - sg(e)|^2.

    Args:
        latent: of N images.
        commitment: weight of the second term, which ties z_e(x) to its codes.

    Returns:
        (N,), at least float32.
    """
    encoded, quantized = latent.encoded.float(), latent.quantized.float()
    book = (encoded.detach() - quantized).square().flatten(1).sum(dim=1)
    return book + commitment * (encoded - quantized.detach()).square().flatten(1).sum(dim=1)


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code is used: codes of any shape to (K,) float64."""
    return torch.bincount(codes.flatten(), minlength=codebook_size).double()


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of the use of codes: 1 if one is used alone, K if all are used alike.

    Args:
        counts: from `code_counts`, added up over batches and ranks.
    """
    shares = counts / counts.sum()
    return float(torch.special.entr(shares).sum().exp())
