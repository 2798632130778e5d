"""Bilinear resizing of whole uint8 image tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

CHUNK_IMAGES = 1024  # bounds the float copy


def resize_bilinear(images: Tensor, size: int, *, antialias: bool) -> Tensor:
    """Resizes square images bilinearly in float32 and rounds to the nearest byte.

    Args:
        images: (N, C, H, H) uint8.
        size: side of the result, in pixels.
        antialias: widen the filter when shrinking; without effect when enlarging.

    Returns:
        (N, C, size, size) uint8; `images` itself where they have that size already.
    """
    if images.shape[-2:] == (size, size):
        return images
    resized = images.new_empty((*images.shape[:2], size, size))
    for start in range(0, len(images), CHUNK_IMAGES):
        chunk = images[start : start + CHUNK_IMAGES].to(torch.float32)
        chunk = interpolate(
            chunk, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias
        )
        resized[start : start + CHUNK_IMAGES] = chunk.round().clamp(0, 255).to(torch.uint8)
    return resized
