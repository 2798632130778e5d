"""Which images a job works on, and how training augments them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import at_least, require, within

DataSource = Literal["digits", "cifar10", "folder", "parquet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images a job works on."""

    source: DataSource = "digits"
    """digits (embedded in scikit-learn), cifar10 (torchvision's files), folder
    (train/<class>/*, test/<class>/*) or parquet (encoded images, Hugging Face layout)."""
    path: str = ""
    """Where the files lie: a folder, for parquet also an object-storage URI; empty for digits."""
    image_size: int = 16
    """Side of the square RGB images, in pixels: a multiple of 8, at least 16."""
    download: bool = False
    """Fetch CIFAR-10 into `path` where it is absent (cifar10 only)."""
    train_limit: int | None = None
    """Use only this many training images, the first of a seeded shuffle. None: all."""
    test_limit: int | None = None
    """Use only this many test images, the first of a seeded shuffle. None: all."""

    def __post_init__(self) -> None:
        require(
            self.image_size >= 16 and self.image_size % 8 == 0,
            "data.image_size",
            got=self.image_size,
            expected="a multiple of 8, at least 16",
            remedy="choose 16, 32 or 64",
        )
        if self.source == "digits":
            require(
                not self.path,
                "data.path",
                got=repr(self.path),
                expected="no path for the embedded digits",
                remedy="choose --data.source folder, parquet or cifar10 to use your own files",
            )
        else:
            require(
                bool(self.path),
                "data.path",
                got="nothing",
                expected=f"where the {self.source} files lie",
                remedy="set --data.path",
            )
        require(
            not self.download or self.source == "cifar10",
            "data.download",
            got=f"True with source {self.source}",
            expected="source cifar10",
            remedy="leave out --data.download",
        )
        for name, limit in (
            ("data.train_limit", self.train_limit),
            ("data.test_limit", self.test_limit),
        ):
            if limit is not None:
                at_least(name, limit, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """What is done to training images, on whole batches on the device, keyed by image id.

    In this order: crop, flip, RandAugment, Cutout; then mixup.
    """

    crop_padding: int = 0
    """Random crop after zero padding by this many pixels on each side; 0 turns it off."""
    horizontal_flip: bool = False
    """Mirror each image with probability 1/2."""
    rand_augment_ops: int = 0
    """RandAugment's n, operations an image in FixMatch's form; 0 turns it off."""
    rand_augment_magnitude: int = 10
    """RandAugment's m: each operation draws its strength from 1..m-1, out of 10."""
    cutout_size: int = 0
    """Side of the grey square of Cutout, in pixels, clipped at the border; 0 turns it off."""
    mixup_alpha: float = 0.0
    """Mixup with one lambda ~ Beta(alpha, alpha) a batch; 0 turns it off."""

    def __post_init__(self) -> None:
        at_least("augmentation.crop_padding", self.crop_padding, 0)
        at_least("augmentation.rand_augment_ops", self.rand_augment_ops, 0)
        within("augmentation.rand_augment_magnitude", self.rand_augment_magnitude, 2, 10)
        at_least("augmentation.cutout_size", self.cutout_size, 0)
        at_least("augmentation.mixup_alpha", self.mixup_alpha, 0.0)
