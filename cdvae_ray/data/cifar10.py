"""CIFAR-10 from its published Python files, through torchvision.

Those files are pickles, and unpickling a file from elsewhere can run code. It is safe here because
torchvision compares every batch file with the checksum of the published one before it opens the
first, and the class list with its own before reading that: a file that differs in one bit is
refused, never read. Nothing else in this package unpickles a dataset.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.data.resize import resize_bilinear
from cdvae_ray.errors import DataError


def load_cifar10(path: str, image_size: int, *, download: bool) -> Splits:
    """50,000 training and 10,000 test images of CIFAR-10.

    Args:
        path: the folder that holds, or will hold, `cifar-10-batches-py`.
        image_size: side of the images, in pixels; other than 32 they are resized bilinearly
            (antialiased).
        download: fetch the files where they are absent.

    Raises:
        DataError: the files are absent, differ from the published ones, or cannot be fetched.
    """
    return Splits(
        train=_load_split(path, image_size, train=True, download=download),
        test=_load_split(path, image_size, train=False, download=download),
    )


def _load_split(path: str, image_size: int, *, train: bool, download: bool) -> ImageSet:
    dataset = _read_verified(path, train=train, download=download)
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet.build(
        resize_bilinear(images, image_size, antialias=True),
        torch.tensor(dataset.targets, dtype=torch.int64),
        dataset.classes,
        f"cifar10/{'train' if train else 'test'}",
    )


def _read_verified(path: str, *, train: bool, download: bool) -> Any:
    from torchvision.datasets import CIFAR10

    try:
        with warnings.catch_warnings():
            # The published files spell numpy's `align` as an integer; numpy 2.4.0 to 2.4.4 warn.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            return CIFAR10(path, train=train, download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"CIFAR-10 in {path}",
            got=error,
            expected="the published files, unchanged, in its folder cifar-10-batches-py",
            remedy="fetch them with --data.download, or use --data.source parquet",
        ) from error
