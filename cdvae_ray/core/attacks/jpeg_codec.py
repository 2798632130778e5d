"""The linear part of JPEG: blocks of cosines, quantisation tables, YCbCr, chroma of half size.

No rounding takes place, so that decoding is linear in the coefficients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8

# ITU-T T.81 (1992), Annex K.1; rows are vertical frequencies. At quality 50 they stand unscaled.
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


def cosines(like: Tensor) -> Tensor:
    """The orthonormal DCT-II of 8 numbers: D[u, x] = a_u cos((2 x + 1) u pi / 16), (8, 8).

    a_0 = sqrt(1/8), others sqrt(1/4). Coefficients of a block B are D B D^T. Dtype and device are
    those of `like`.
    """
    frequency = torch.arange(BLOCK, dtype=torch.float64)[:, None]
    place = torch.arange(BLOCK, dtype=torch.float64)[None]
    waves = 0.5 * torch.cos((2 * place + 1) * frequency * math.pi / (2 * BLOCK))
    waves[0] = math.sqrt(1 / BLOCK)
    return waves.to(like)


def decoding_matrices(like: Tensor) -> tuple[Tensor, Tensor]:
    """For luma and for chroma: 64 coefficients, in quantisation steps, to the 64 pixels of a block.

    Each (64, 64), to be multiplied from the left by rows of coefficients; pixels in units of 255.
    """
    waves = cosines(like)
    pixels = torch.kron(waves, waves) / 255
    luma, chroma = (
        torch.tensor(steps, dtype=like.dtype, device=like.device).view(-1, 1) * pixels
        for steps in (_LUMA_STEPS, _CHROMA_STEPS)
    )
    return luma, chroma


def decode_blocks(
    coefficients: Tensor, matrices: tuple[Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    """What coefficients add to an image, in RGB and units of 1.

    Args:
        coefficients: (N, B, 64) in quantisation steps: the blocks of Y, of Cb, of Cr, row by row;
            B = H W / 64 + 2 H W / 256.
        matrices: of `decoding_matrices`.
        size: H and W, multiples of 16.

    Returns:
        (N, 3, H, W).
    """
    height, width = size
    num_luma = height * width // BLOCK**2
    luma = _joined(coefficients[:, None, :num_luma] @ matrices[0], height, width)
    chroma_blocks = coefficients[:, num_luma:].reshape(len(coefficients), 2, -1, BLOCK**2)
    chroma = doubled(_joined(chroma_blocks @ matrices[1], height // 2, width // 2))
    return rgb_of_ycc(luma[:, 0], chroma)


def subsampled(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with the color of each 2 x 2 pixels averaged; not clipped to [0, 1]."""
    red, green, blue = images.unbind(dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    # JFIF adds 128 to Cb and Cr, which cancels on the way back.
    chroma = torch.stack(
        [
            -0.168736 * red - 0.331264 * green + 0.5 * blue,
            0.5 * red - 0.418688 * green - 0.081312 * blue,
        ],
        dim=1,
    )
    return rgb_of_ycc(luma, doubled(F.avg_pool2d(chroma, 2)))


def rgb_of_ycc(luma: Tensor, chroma: Tensor) -> Tensor:
    """JFIF 1.02: luma (N, H, W) and chroma (N, 2, H, W), zero where gray, to (N, 3, H, W)."""
    blue_difference, red_difference = chroma.unbind(dim=1)
    return torch.stack(
        [
            luma + 1.402 * red_difference,
            luma - 0.344136 * blue_difference - 0.714136 * red_difference,
            luma + 1.772 * blue_difference,
        ],
        dim=1,
    )


def doubled(planes: Tensor) -> Tensor:
    """Planes (N, C, H, W) with each pixel repeated to 2 x 2."""
    count, channels, height, width = planes.shape
    wide = planes[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return wide.reshape(count, channels, 2 * height, 2 * width)


def _joined(blocks: Tensor, height: int, width: int) -> Tensor:
    """Blocks (N, C, H/8 W/8, 64) to planes (N, C, H, W)."""
    grid = blocks.view(*blocks.shape[:2], height // BLOCK, width // BLOCK, BLOCK, BLOCK)
    return grid.transpose(3, 4).reshape(*blocks.shape[:2], height, width)
