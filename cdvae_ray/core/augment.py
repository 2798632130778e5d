"""Training's augmentation of whole batches: crop, flip, RandAugment, Cutout.

The parameters are drawn on the CPU from each image's key and then sent to the images' device, which
is never waited for; the same image in the same epoch is augmented alike in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.core.rand_augment import plan_rand_augment, rand_augment
from cdvae_ray.core.random import image_keys, keyed_integers, keyed_uniform
from cdvae_ray.errors import DataError

GREY = 127 / 255
"""What Cutout fills its square with."""


def augment(
    images: Tensor, image_ids: Tensor, *, config: AugmentationConfig, seed: int, epoch: int
) -> Tensor:
    """Augment a batch: random crop, horizontal flip, RandAugment, Cutout; mixup is apart.

    Follows the recipe of the authors' released code, where Cutout follows RandAugment.

    Args:
        images: (N, 3, H, W) float32 in [0, 1], on any device.
        image_ids: (N,) int64 on the CPU, the images' positions in their dataset.
        config: which parts are on, and how strong.
        seed: the run's seed.
        epoch: the epoch, which every draw depends on.

    Returns:
        (N, 3, H, W) float32 in [0, 1] on the images' device, channels last if the images are; with
        every part off, `images` itself.

    Raises:
        DataError: the images or their ids have another shape, type or device.
    """
    _check(images, image_ids)
    device, (height, width) = images.device, images.shape[2:]
    augmented = images
    if config.crop_padding:
        keys = image_keys(seed, "augment.crop", epoch, image_ids)
        offsets = keyed_integers(keys, 2, 0, 2 * config.crop_padding + 1)
        offsets_y, offsets_x = offsets.to(device, non_blocking=True).unbind(1)
        augmented = random_crop(augmented, offsets_y, offsets_x, config.crop_padding)
    if config.horizontal_flip:
        keys = image_keys(seed, "augment.flip", epoch, image_ids)
        mirrored = keyed_uniform(keys, 1)[:, 0] < 0.5
        augmented = horizontal_flip(augmented, mirrored.to(device, non_blocking=True))
    if config.rand_augment_ops:
        plan = plan_rand_augment(
            image_keys(seed, "augment.rand_augment", epoch, image_ids),
            num_ops=config.rand_augment_ops,
            magnitude=config.rand_augment_magnitude,
        )
        augmented = rand_augment(augmented, plan)
    if config.cutout_size:
        keys = image_keys(seed, "augment.cutout", epoch, image_ids)
        centres = (keyed_uniform(keys, 2) * torch.tensor([height, width])).long()
        sizes = torch.full_like(centres[:, :1], config.cutout_size)
        squares = torch.cat([centres, sizes], dim=1).to(device, non_blocking=True)
        augmented = cutout(augmented, *squares.unbind(1))
    if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        augmented = augmented.contiguous(memory_format=torch.channels_last)
    return augmented


def random_crop(images: Tensor, offsets_y: Tensor, offsets_x: Tensor, padding: int) -> Tensor:
    """Crop each zero-padded image to its own size: y[i, j] = padded[i + offset_y, j + offset_x].

    Args:
        images: (N, C, H, W).
        offsets_y: (N,) int64 in 0..2 padding, on the images' device; `padding` keeps the image.
        offsets_x: (N,) int64 in 0..2 padding, likewise.
        padding: pixels of zeros added on each side.

    Returns:
        (N, C, H, W), of the images' dtype.
    """
    num_channels, height, width = images.shape[1:]
    padded = F.pad(images, (padding,) * 4)
    rows = offsets_y[:, None] + torch.arange(height, device=images.device)
    columns = offsets_x[:, None] + torch.arange(width, device=images.device)
    indices = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    indices = indices.flatten(1)[:, None].expand(-1, num_channels, -1)
    return padded.flatten(2).gather(2, indices).view(images.shape)


def horizontal_flip(images: Tensor, flip_mask: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: (N, C, H, W).
        flip_mask: (N,) bool on the images' device.

    Returns:
        (N, C, H, W), of the images' dtype.
    """
    return torch.where(flip_mask.view(-1, 1, 1, 1), images.flip(3), images)


def cutout(
    images: Tensor, centres_y: Tensor, centres_x: Tensor, sizes: Tensor, *, fill: float = GREY
) -> Tensor:
    """Fill a square of each image, clipped at the border: DeVries and Taylor (2017).

    The square of side s covers the rows centre - s // 2 .. centre - s // 2 + s - 1, and so the
    columns. Departs from the released code, which moves it inwards at the upper and left borders.

    Args:
        images: (N, C, H, W).
        centres_y: (N,) int64 rows on the images' device.
        centres_x: (N,) int64 columns on the images' device.
        sizes: (N,) int64 sides in pixels on the images' device; 0 keeps the image.
        fill: the value of the square.

    Returns:
        (N, C, H, W), of the images' dtype.
    """
    rows = _within(images.shape[2], centres_y, sizes)
    columns = _within(images.shape[3], centres_x, sizes)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], fill)


def _within(length: int, centres: Tensor, sizes: Tensor) -> Tensor:
    """Which of 0..length-1 each square covers, (N, length) bool."""
    positions = torch.arange(length, device=centres.device)
    first = (centres - sizes // 2)[:, None]
    return (positions >= first) & (positions < first + sizes[:, None])


def _check(images: Tensor, image_ids: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise DataError(
            "images to augment",
            got=f"{images.dtype} of shape {tuple(images.shape)}",
            expected="float32 of shape (N, 3, H, W)",
            remedy="convert 8-bit images to RGB in [0, 1] first",
        )
    # Ids on a device would make every draw a kernel there, and the plans would have to wait for it.
    if image_ids.device.type != "cpu" or image_ids.shape != images.shape[:1]:
        raise DataError(
            "image_ids to augment",
            got=f"shape {tuple(image_ids.shape)} on {image_ids.device}",
            expected=f"{len(images)} ids on the CPU",
            remedy="keep the ids of a batch on the CPU, one an image",
        )
