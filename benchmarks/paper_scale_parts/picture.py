"""A picture grid as PNG, by zlib alone."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.data.images import ImageSet

_GAP, _ZOOM = 2, 3


def write_decompositions(
    path: Path, model: CDVAE, images: ImageSet, device: torch.device, *, count: int = 12
) -> None:
    """Rows x, G(x), R(x) around mid-grey, a column for each of the first test images."""
    shown = images.images[:count].to(device).float() / 255
    with torch.inference_mode():
        parts = model.decompose(shown)
    rows = torch.stack([shown, parts.class_redundant, 0.5 + parts.class_essential])
    path.write_bytes(png(_grid(rows.clamp(0, 1).cpu())))


def png(pixels: Tensor) -> bytes:
    """An RGB image (H, W, 3), uint8, as a PNG file."""
    height, width, _ = pixels.shape
    # Each line begins with the number of its filter: none.
    lines = F.pad(pixels.reshape(height, width * 3), (1, 0)).contiguous()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(bytes(lines.numpy().data), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _grid(rows: Tensor) -> Tensor:
    """(R, N, 3, S, S) in [0, 1] to (H, W, 3) uint8, each pixel a square of several."""
    large = rows.repeat_interleave(_ZOOM, dim=3).repeat_interleave(_ZOOM, dim=4)
    framed = F.pad(large, (_GAP,) * 4, value=1.0)
    lines = framed.permute(0, 3, 1, 4, 2)
    count, height, columns, width, _ = lines.shape
    return lines.reshape(count * height, columns * width, 3).mul(255).round().to(torch.uint8)
