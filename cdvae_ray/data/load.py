"""From a DataConfig to the two verified halves of a dataset."""

from __future__ import annotations

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.cifar10 import load_cifar10
from cdvae_ray.data.digits import load_digits
from cdvae_ray.data.folder import load_folder
from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.data.parquet import load_parquet
from cdvae_ray.errors import DataError

LIMIT_SEED = 0  # fixed: a limit names the same images in every run


def load_splits(config: DataConfig) -> Splits:
    """Reads the dataset that a config names and applies its limits.

    Args:
        config: source, path, image size and limits.

    Returns:
        Train and test sets with one class list and images of config.image_size.

    Raises:
        DataError: the dataset is absent, broken, or smaller than a limit.
    """
    splits = _load_whole(config)
    _verify_match(splits, config.image_size)
    return Splits(
        train=_limited(splits.train, config.train_limit),
        test=_limited(splits.test, config.test_limit),
    )


def _load_whole(config: DataConfig) -> Splits:
    match config.source:
        case "digits":
            return load_digits(config.image_size)
        case "cifar10":
            return load_cifar10(config.path, config.image_size, download=config.download)
        case "folder":
            return load_folder(config.path, config.image_size)
        case "parquet":
            return load_parquet(config.path, config.image_size)


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
