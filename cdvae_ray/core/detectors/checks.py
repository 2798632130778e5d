"""What all detectors ask of their features, labels and ids."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.errors import ConfigError, DataError


def check_features(features: Tensor, *, width: int | None = None, what: str = "features") -> None:
    """Asks for finite floating-point features (N, d), N and d at least 1, of the width d if given.

    Raises:
        DataError: they are not.
    """
    expected = "(N, d)" if width is None else f"(N, {width})"
    if features.dim() != 2 or (width is not None and features.shape[1] != width):
        raise DataError(
            what,
            got=f"shape {tuple(features.shape)}",
            expected=f"shape {expected}",
            remedy="pass one row an image, from the layer that the detector was fitted to",
        )
    if not features.numel():
        raise DataError(
            what,
            got=f"shape {tuple(features.shape)}, which is empty",
            expected="at least one image and one feature",
            remedy="pass some images",
        )
    if not features.is_floating_point():
        raise DataError(
            what, got=str(features.dtype), expected="floating point", remedy="pass float features"
        )
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise DataError(
            what,
            got=f"NaN or infinity in {bad} of {len(features)} rows",
            expected="finite numbers",
            remedy="check the network and its images for overflow",
        )


def check_labels(labels: Tensor, count: int, num_classes: int, *, what: str = "labels") -> None:
    """Asks for `count` classes in [0, num_classes), int64.

    Raises:
        ConfigError: there is no class.
        DataError: the labels are not as said.
    """
    if num_classes < 1:
        raise ConfigError(
            "num_classes", got=num_classes, expected="at least 1", remedy="count the classes"
        )
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise DataError(
            what,
            got=f"{labels.dtype} of shape {tuple(labels.shape)}",
            expected=f"int64 of shape ({count},)",
            remedy="pass one class an image",
        )
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise DataError(
            what,
            got=f"classes {low} to {high}",
            expected=f"0 to {num_classes - 1}",
            remedy="pass the dataset's number of classes",
        )


def check_ids(ids: Tensor, count: int, *, what: str) -> None:
    """Asks for `count` ids, int64.

    Raises:
        DataError: they are not.
    """
    if ids.dtype != torch.int64 or tuple(ids.shape) != (count,):
        raise DataError(
            what,
            got=f"{ids.dtype} of shape {tuple(ids.shape)}",
            expected=f"int64 of shape ({count},)",
            remedy="pass the images' positions in their dataset",
        )


def check_all_classes(counts: Tensor) -> None:
    """Asks for an image of each class, given how many there are (C,).

    Raises:
        DataError: a class has none.
    """
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        raise DataError(
            "images to fit a detector to",
            got=f"none of class {', '.join(map(str, empty))}",
            expected=f"at least one of each of the {len(counts)} classes",
            remedy="fit on more images, or merge all shards first",
        )
