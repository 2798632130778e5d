"""What the networks on square images share: which images they take, and in which units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdvae_ray.errors import ConfigError, DataError


def require_dataset(image_size: int, class_names: tuple[str, ...], *, multiple_of: int = 1) -> None:
    """Raises ConfigError unless the networks can have this image size and number of classes."""
    if image_size < 8 or image_size % multiple_of:
        raise ConfigError(
            "image_size",
            got=image_size,
            expected="at least 8"
            if multiple_of == 1
            else f"a multiple of {multiple_of}, at least 8",
            remedy="resize the images to 16, 32 or 64",
        )
    if len(class_names) < 2:
        raise ConfigError(
            "class_names",
            got=f"{len(class_names)} classes",
            expected="at least 2",
            remedy="train on a dataset of several classes",
        )


def register_pixel_units(
    module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Gives a module the buffers pixel_mean and pixel_std, (1, 3, 1, 1).

    Settings, not weights: they come back from the config, so no checkpoint holds them.
    """
    for name, values in (("pixel_mean", mean), ("pixel_std", std)):
        module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)


def require_images(images: Tensor, image_size: int, *, what: str, units: str) -> None:
    """Raises DataError unless images are floating point of shape (N, 3, S, S).

    Args:
        images: the tensor to look at; its values are not.
        image_size: S.
        what: what messages call them.
        units: of their values, for messages.
    """
    expected = (3, image_size, image_size)
    if images.dim() != 4 or tuple(images.shape[1:]) != expected:
        raise DataError(
            what,
            got=f"shape {tuple(images.shape)}",
            expected=f"(N, {', '.join(map(str, expected))})",
            remedy="resize them or load a model of their size",
        )
    if not images.is_floating_point():
        raise DataError(
            what,
            got=str(images.dtype),
            expected=f"floating point in {units}",
            remedy="divide uint8 images by 255",
        )
