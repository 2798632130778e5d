"""Made-up images that a network can learn: smooth patterns, one a class, moved about and noisy."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cdvae_ray.data.images import ImageSet, Splits

_CLASSES = ("one", "two", "three", "four")
_GRID = 4


def synthetic_splits(
    *, image_size: int = 16, train_images: int = 256, test_images: int = 80, seed: int = 0
) -> Splits:
    """Training and test images of one make, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((len(_CLASSES), 3, _GRID, _GRID), generator=generator)
    patterns = F.interpolate(coarse, size=image_size, mode="bilinear", align_corners=False)

    def half(count: int, name: str) -> ImageSet:
        labels = torch.arange(count) % len(_CLASSES)
        shifts = torch.randint(-1, 2, (count, 2), generator=generator).tolist()
        moved = [
            patterns[label].roll((down, right), dims=(1, 2))
            for label, (down, right) in zip(labels.tolist(), shifts, strict=True)
        ]
        noise = 0.1 * torch.randn((count, 3, image_size, image_size), generator=generator)
        pixels = (torch.stack(moved) + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
        return ImageSet.build(pixels, labels, _CLASSES, f"synthetic/{name}")

    return Splits(train=half(train_images, "train"), test=half(test_images, "test"))
