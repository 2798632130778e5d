"""Small images, encoded as the tests need them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cdvae_ray.data import ImageSet

Encode = Callable[..., bytes]


def encode_image(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise_image(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def encode() -> Encode:
    return encode_image


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    return noise_image


@pytest.fixture
def make_set() -> Callable[..., ImageSet]:
    import torch

    def make(num_images: int, num_classes: int = 3) -> ImageSet:
        generator = torch.Generator().manual_seed(num_images)
        images = torch.randint(0, 256, (num_images, 3, 2, 2), generator=generator)
        return ImageSet.build(
            images.to(torch.uint8),
            torch.arange(num_images) % num_classes,
            [f"class {label}" for label in range(num_classes)],
            "made/train",
        )

    return make
