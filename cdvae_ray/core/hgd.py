"""High-level representation guided denoiser (HGD; Liao et al., CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.errors import ConfigError, DataError

# Of the paper's DUNET: 64, 128, 256, 256, 256 planes, in blocks of 2, 3, 3, 3, 3 convolutions.
_PLANES = (1, 2, 4, 4, 4)
_CONVOLUTIONS = (2, 3, 3, 3, 3)


class Denoiser(nn.Module):
    """The paper's denoising U-Net (DUNET): adversarial images x' to x' - d(x').

    Blocks of (3x3 convolution, batch normalisation, ReLU) lead down, the first convolution of each
    but the first with stride 2. On the way up, features are enlarged bilinearly, fused with the
    block of their size on the way down, and convolved again as often as there. A last 1x1
    convolution gives d; it starts at zero, so that an untrained denoiser is the identity.

    Departs from the paper in width and depth: it has 64 planes and halves images of 299 x 299
    four times, to 19 x 19.

    Args:
        width: planes of the first block, >= 1; 64 in the paper.
        num_downsamplings: how often the image is halved (an odd size rounds up), 1 to 4; images
            have to be twice 2^num_downsamplings at least.

    Raises:
        ConfigError: a setting outside its range.
    """

    def __init__(self, *, width: int = 16, num_downsamplings: int = 2) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(
                "width", got=width, expected=">= 1", remedy="pass the planes of the first block"
            )
        if not 1 <= num_downsamplings < len(_PLANES):
            raise ConfigError(
                "num_downsamplings",
                got=num_downsamplings,
                expected=f"1 to {len(_PLANES) - 1}",
                remedy="pass 2 for images of 16 x 16 or 32 x 32",
            )
        self.least_size = 2 * 2**num_downsamplings
        planes = [width * factor for factor in _PLANES[: num_downsamplings + 1]]
        self.down = nn.ModuleList([_block(3, planes[0], _CONVOLUTIONS[0])])
        self.up = nn.ModuleList()
        for level in range(num_downsamplings):
            above, below = planes[level], planes[level + 1]
            self.down.append(_block(above, below, _CONVOLUTIONS[level + 1], stride=2))
            self.up.append(_block(below + above, above, _CONVOLUTIONS[level]))
        self.last = nn.Conv2d(planes[0], 3, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, images: Tensor) -> Tensor:
        """x' - d(x'), clamped nowhere.

        Args:
            images: float, (N, 3, S, S), in [0, 1].

        Returns:
            Like the images, in pixel units; it may leave [0, 1] slightly.

        Raises:
            DataError: the images are not floating point of such a shape.
        """
        self._check(images)
        laterals: list[Tensor] = []
        features = images
        for block in self.down:
            features = block(features)
            laterals.append(features)
        laterals.pop()  # the deepest one is where the way up begins
        for lateral, block in zip(reversed(laterals), reversed(self.up), strict=True):
            enlarged = F.interpolate(
                features, size=lateral.shape[2:], mode="bilinear", align_corners=False
            )
            features = block(torch.cat([enlarged, lateral], dim=1))
        noise: Tensor = self.last(features)
        return images - noise

    def _check(self, images: Tensor) -> None:
        size = images.shape[-1] if images.dim() == 4 else 0
        if (
            size < self.least_size
            or tuple(images.shape[1:]) != (3, size, size)
            or not images.is_floating_point()
        ):
            raise DataError(
                "images to denoise",
                got=f"{images.dtype} of shape {tuple(images.shape)}",
                expected=f"floating point of shape (N, 3, S, S), S at least {self.least_size}",
                remedy="divide uint8 images by 255 and resize them",
            )


def guidance_loss(features_denoised: Tensor, features_clean: Tensor) -> Tensor:
    """|f(x_hat) - f(x)|_1 / d of each image: the guided loss of the paper, averaged over features.

    On logits it trains the logits guided denoiser (LGD). No gradient reaches the clean features.

    Args:
        features_denoised: of the denoised images, (N, d).
        features_clean: of the clean images they were made from, (N, d).

    Returns:
        (N,), in units of the features.
    """
    return (features_denoised - features_clean.detach()).abs().mean(dim=1)


def _block(in_planes: int, planes: int, count: int, *, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        first = index == 0
        layers += [
            nn.Conv2d(
                in_planes if first else planes,
                planes,
                3,
                stride=stride if first else 1,
                padding=1,
                bias=False,
            ),
            nn.BatchNorm2d(planes),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
