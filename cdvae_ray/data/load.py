"""From a DataConfig to the verified halves of a dataset, or to one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.cifar10 import load_cifar10
from cdvae_ray.data.digits import load_digits
from cdvae_ray.data.folder import load_folder, load_folder_split
from cdvae_ray.data.images import LIMIT_SEED, ImageSet, Split, Splits
from cdvae_ray.data.parquet import load_parquet, load_parquet_split
from cdvae_ray.data.streamed import StreamedImages, open_streamed
from cdvae_ray.errors import DataError

TrainingImages: TypeAlias = ImageSet | StreamedImages
"""In memory, or read while training. Both have name, digest, image_size, class_names, a length."""


class TrainingData(NamedTuple):
    """What a training job works on."""

    train: TrainingImages
    """What models are fitted to."""
    test: ImageSet
    """What they are evaluated on."""


def load_for_training(config: DataConfig, say: Callable[[str], None]) -> TrainingData:
    """The dataset that a config names; of a streamed one the training half is only looked through.

    Args:
        config: source, path, image size, limits, streaming.
        say: gets lines about what takes long.

    Raises:
        DataError: as `load_splits`, and as `open_streamed`.
    """
    if not config.streaming:
        return TrainingData(*load_splits(config))
    train = open_streamed(
        config.path,
        config.image_size,
        max_corrupt_fraction=config.max_corrupt_fraction,
        say=say,
    )
    return TrainingData(train, load_split(config, "test"))


def load_splits(config: DataConfig) -> Splits:
    """Reads the dataset that a config names, up to its limits.

    Args:
        config: source, path, image size and limits.

    Returns:
        Train and test sets with one class list and images of config.image_size.

    Raises:
        DataError: the dataset is absent, broken, or smaller than a limit.
    """
    path, size = config.path, config.image_size
    limits = {"train_limit": config.train_limit, "test_limit": config.test_limit}
    match config.source:
        case "folder":
            return load_folder(path, size, **limits)
        case "parquet":
            return load_parquet(path, size, **limits)
        case "digits" | "cifar10":
            whole = _load_whole(config)
            return Splits(
                train=_limited(whole.train, config.train_limit),
                test=_limited(whole.test, config.test_limit),
            )


def load_split(config: DataConfig, split: Split) -> ImageSet:
    """One half of what `load_splits` gives.

    Folders and Parquet files are not decoded for the other half; of it only what tells the class
    names is read.

    Args:
        config: source, path, image size and limits.
        split: which half.

    Returns:
        The set, with the class names of the training half and images of config.image_size.

    Raises:
        DataError: the dataset is absent, or this half broken or smaller than its limit.
    """
    limit = config.train_limit if split == "train" else config.test_limit
    match config.source:
        case "folder":
            return load_folder_split(config.path, config.image_size, split, limit=limit)
        case "parquet":
            return load_parquet_split(config.path, config.image_size, split, limit=limit)
        case "digits" | "cifar10":
            whole = _load_whole(config)
            return _limited(whole.train if split == "train" else whole.test, limit)


def _load_whole(config: DataConfig) -> Splits:
    """A dataset that fits in memory, verified, without its limits."""
    if config.source == "digits":
        splits = load_digits(config.image_size)
    else:
        splits = load_cifar10(config.path, config.image_size, download=config.download)
    _verify_match(splits, config.image_size)
    return splits


def _limited(image_set: ImageSet, count: int | None) -> ImageSet:
    return image_set if count is None else image_set.limit(count, LIMIT_SEED)


def _verify_match(splits: Splits, image_size: int) -> None:
    train, test = splits
    if train.class_names != test.class_names:
        raise DataError(
            f"class names of {test.name}",
            got=test.class_names,
            expected=f"those of {train.name}, {train.class_names}",
            remedy="use two halves of one dataset",
        )
    for image_set in splits:
        if image_set.image_size != image_size:
            raise DataError(
                f"image size of {image_set.name}",
                got=image_set.image_size,
                expected=str(image_size),
                remedy="set --data.image-size to the size of the images",
            )
