"""APE-GAN (Shen et al., 2017): a generator that takes adversarial perturbations out of images.

Both networks take images in pixel units and map [0, 1] to the [-1, 1] of their tanh inside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.core.inputs import require_images
from cdvae_ray.errors import ConfigError, DataError

_SLOPE = 0.2
"""Of the leaky rectifiers, as in DCGAN, on which the released code builds."""


class Generator(nn.Module):
    """G: adversarial images to images without the perturbation, both in [0, 1].

    Two strided convolutions down, two transposed ones up, batch normalisation between them, tanh.
    The layers are those of the released code, with kernels of 4 x 4, which halve and double every
    size exactly, where DCGAN has 5 x 5.

    Args:
        width: planes of the first layer, >= 1; 64 as released.

    Raises:
        ConfigError: the width is below 1.
    """

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        _check_width(width)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The restored images, within [0, 1], like the given ones.

        Args:
            images: float, (N, 3, S, S), in [0, 1], S at least 4. Where 4 does not divide S, the
                last row and column are repeated until it does, and cut off again.

        Raises:
            DataError: the images are not floating point of such a shape.
        """
        size = images.shape[-1] if images.dim() == 4 else 0
        if size < 4:
            raise DataError(
                "images to restore",
                got=f"shape {tuple(images.shape)}",
                expected="(N, 3, S, S), S at least 4",
                remedy="resize the images to 16, 32 or 64",
            )
        require_images(images, size, what="images to restore", units="[0, 1]")
        beyond = -size % 4
        padded = F.pad(images, (0, beyond, 0, beyond), mode="replicate") if beyond else images
        restored: Tensor = self.layers(2 * padded - 1)[..., :size, :size]
        return (restored + 1) / 2


class Discriminator(nn.Module):
    """D: images to a logit each, high for clean images and low for what G made.

    Three strided convolutions, batch normalisation after all but the first, and a linear layer.

    Args:
        image_size: side S of the images, at least 8.
        width: planes of the first layer, >= 1; 64 as released.

    Raises:
        ConfigError: a setting outside its range.
    """

    def __init__(self, *, image_size: int, width: int = 64) -> None:
        super().__init__()
        _check_width(width)
        if image_size < 8:
            raise ConfigError(
                "image_size",
                got=image_size,
                expected="at least 8",
                remedy="resize the images to 16, 32 or 64",
            )
        self.image_size = image_size
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Flatten(),
            nn.Linear(4 * width * (image_size // 8) ** 2, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,) of being clean.

        Args:
            images: float, (N, 3, S, S), in [0, 1].

        Raises:
            DataError: the images are not floating point of that shape.
        """
        require_images(images, self.image_size, what="images of the discriminator", units="[0, 1]")
        logits: Tensor = self.layers(2 * images - 1)
        return logits.squeeze(1)


def generator_losses(
    fake: Tensor,
    clean: Tensor,
    fake_logits: Tensor,
    *,
    pixel_weight: float = 0.7,
    adversarial_weight: float = 0.3,
) -> Tensor:
    """pixel_weight * MSE(G(x'), x) - adversarial_weight * log D(G(x')), of each image.

    The weights are the paper's. The squared error is the mean over an image's elements in the
    networks' own [-1, 1], four times that of pixels; the released code takes its root over the
    batch, which is no sum over images.

    Args:
        fake: G(x'), (N, 3, S, S), in [0, 1].
        clean: x, (N, 3, S, S), in [0, 1].
        fake_logits: of D on G(x'), (N,).
        pixel_weight, adversarial_weight: xi_1 and xi_2, >= 0.

    Returns:
        (N,); the second term in nats.
    """
    squared_error = (2 * (fake - clean)).square().flatten(1).mean(dim=1)
    return pixel_weight * squared_error + adversarial_weight * _log_loss(fake_logits, real=True)


def discriminator_losses(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(x'))), of each pair of images.

    Args:
        real_logits: of D on clean images x, (N,).
        fake_logits: of D on G(x'), (N,); from detached images, unless G is to learn from it too.

    Returns:
        (N,), nats.
    """
    return _log_loss(real_logits, real=True) + _log_loss(fake_logits, real=False)


def _log_loss(logits: Tensor, *, real: bool) -> Tensor:
    targets = torch.full_like(logits, float(real))
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _check_width(width: int) -> None:
    if width < 1:
        raise ConfigError(
            "width", got=width, expected=">= 1", remedy="pass the planes of the first layer"
        )
