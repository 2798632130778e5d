"""Which images a job works on, and how training augments them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cdvae_ray.config.checks import at_least, require, within
from cdvae_ray.config.serialize import later

DataSource = Literal["digits", "cifar10", "folder", "parquet"]
_LANES, _MAX_CORRUPT_FRACTION = 16, 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images a job works on."""

    source: DataSource = "digits"
    """digits (embedded in scikit-learn), cifar10 (torchvision's files), folder
    (train/<class>/*, test/<class>/*) or parquet (encoded images, Hugging Face layout)."""
    path: str = ""
    """Where the files lie: a folder, for parquet also an object-storage URI; empty for digits."""
    image_size: int = 16
    """Side of the square RGB images, in pixels: at least 16, for digits a multiple of 8. A
    convolutional VAE takes multiples of 4."""
    download: bool = False
    """Fetch CIFAR-10 into `path` where it is absent (cifar10 only)."""
    train_limit: int | None = None
    """Use only this many training images, the first of a seeded shuffle. None: all."""
    test_limit: int | None = None
    """Use only this many test images, the first of a seeded shuffle. None: all."""
    streaming: bool = later(False)
    """Read training images from their shards while training, for data that no memory holds
    (parquet only). Other jobs than training read what they need."""
    lanes: int = later(_LANES)
    """Streams of row groups that a batch is drawn from, equally; part of a streamed run's identity.
    It divides the global batch, and the number of workers divides it."""
    max_corrupt_fraction: float = later(_MAX_CORRUPT_FRACTION)
    """Streamed images that may be undecodable, of those of an epoch, in [0, 1): they are counted,
    and others of their row group take their places. More stop the job."""

    def __post_init__(self) -> None:
        is_digits = self.source == "digits"
        require(
            self.image_size >= 16 and not (is_digits and self.image_size % 8),
            "data.image_size",
            got=self.image_size,
            expected="a multiple of 8, at least 16" if is_digits else "at least 16",
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
        self._check_streaming()
        for name, limit in (
            ("data.train_limit", self.train_limit),
            ("data.test_limit", self.test_limit),
        ):
            if limit is not None:
                at_least(name, limit, 1)

    def in_memory(self) -> DataConfig:
        """The same images, read whole before they are used."""
        return replace(
            self, streaming=False, lanes=_LANES, max_corrupt_fraction=_MAX_CORRUPT_FRACTION
        )

    def _check_streaming(self) -> None:
        at_least("data.lanes", self.lanes, 1)
        require(
            0.0 <= self.max_corrupt_fraction < 1.0,
            "data.max_corrupt_fraction",
            got=self.max_corrupt_fraction,
            expected="a number in [0, 1)",
            remedy="set --data.max-corrupt-fraction to such a number",
        )
        if not self.streaming:
            for name, value, default in (
                ("lanes", self.lanes, _LANES),
                ("max_corrupt_fraction", self.max_corrupt_fraction, _MAX_CORRUPT_FRACTION),
            ):
                require(
                    value == default,
                    f"data.{name}",
                    got=f"{value} without streaming",
                    expected=f"the default {default}",
                    remedy=f"set --data.streaming, or leave out --data.{name.replace('_', '-')}",
                )
            return
        require(
            self.source == "parquet",
            "data.streaming",
            got=f"True with source {self.source}",
            expected="source parquet",
            remedy="make Parquet shards of the images by jobs/prepare_data.py",
        )
        require(
            self.train_limit is None,
            "data.train_limit",
            got=f"{self.train_limit} with streaming",
            expected="no limit, as all shards are read",
            remedy="leave out --data.train-limit or --data.streaming",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """What is done to training images, keyed by image id.

    In this order: resized crop, while a whole image is decoded; then, on whole batches on the
    device: crop, flip, RandAugment, Cutout; then mixup.
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
    min_crop_area: float = later(0.0)
    """Random resized crop of the whole image, of at least this share of its area, in (0, 1];
    0 turns it off. It needs data.streaming, as images in memory are cropped already."""

    def __post_init__(self) -> None:
        within("augmentation.min_crop_area", self.min_crop_area, 0.0, 1.0)
        at_least("augmentation.crop_padding", self.crop_padding, 0)
        at_least("augmentation.rand_augment_ops", self.rand_augment_ops, 0)
        within("augmentation.rand_augment_magnitude", self.rand_augment_magnitude, 2, 10)
        at_least("augmentation.cutout_size", self.cutout_size, 0)
        at_least("augmentation.mixup_alpha", self.mixup_alpha, 0.0)
