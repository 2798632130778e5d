"""Image sets in Ray's object store: loaded once by the driver, mapped by every worker."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from cdvae_ray.data.images import ImageSet
from cdvae_ray.errors import DataError


class _Arrays(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    digest: str


def share_images(image_set: ImageSet) -> Any:
    """Runs on the driver. A reference through which workers map the same memory."""
    return ray.put(
        _Arrays(
            images=image_set.images.numpy(),
            labels=image_set.labels.numpy(),
            class_names=image_set.class_names,
            name=image_set.name,
            digest=image_set.digest,
        )
    )


def fetch_images(reference: Any) -> ImageSet:
    """Runs on every worker. The shared image set, verified against its digest.

    Raises:
        DataError: the images are not those that the driver shared.
    """
    arrays: _Arrays = ray.get(reference)
    with warnings.catch_warnings():
        # The mapped memory is read-only, and nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        image_set = ImageSet.build(
            torch.from_numpy(arrays.images),
            torch.from_numpy(arrays.labels),
            arrays.class_names,
            arrays.name,
        )
    if image_set.digest != arrays.digest:
        raise DataError(
            f"images of {arrays.name} on a worker",
            got=f"digest {image_set.digest[:12]}",
            expected=arrays.digest[:12],
            remedy="check that all nodes run the same version of cdvae_ray",
        )
    return image_set
