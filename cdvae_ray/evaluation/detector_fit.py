"""Detectors of one space, fitted to the stored features of clean training images.

Features come shard by shard in the order of image ids. What is kept of a shard is its moments,
which merge exactly, the references that it holds, and the features of one layer for the kernel
density: no result depends on how the images were sharded, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import DetectorsConfig
from cdvae_ray.core.detectors.bandwidth import BandwidthChoice, choose_bandwidth
from cdvae_ray.core.detectors.kernel_density import KernelDensity, fit_kernel_density
from cdvae_ray.core.detectors.local_dimensionality import LocalDimensionality, fit_lid
from cdvae_ray.core.detectors.mahalanobis import Mahalanobis, fit_mahalanobis
from cdvae_ray.core.detectors.moments import ClassMoments, class_moments, merge_moments
from cdvae_ray.core.features import pooled_layers
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.image_computations import FEATURE_PREFIX
from cdvae_ray.storage.row_set import ImageRows


@dataclass(frozen=True, kw_only=True, eq=False)
class SpaceDetectors:
    """All fitted detectors of one space."""

    space: InputKind
    num_images: int
    """Training images that they were fitted to."""
    mahalanobis: dict[str, Mahalanobis]
    """By layer."""
    density_layer: str
    density: KernelDensity
    bandwidth: BandwidthChoice
    """Chosen on clean training images; `density` has it."""
    dimensionality: dict[str, LocalDimensionality]
    """By layer, all with the same references."""


def fit_space(
    shards: Iterable[ImageRows],
    config: DetectorsConfig,
    *,
    space: InputKind,
    num_images: int,
    num_classes: int,
    seed: int,
) -> SpaceDetectors:
    """Fits all detectors of a space in one pass over its shards.

    Args:
        shards: rows of `FeatureColumns`, of all clean training images in order.
        config: of the detectors.
        space: whose features these are.
        num_images: rows in all.
        num_classes: C.
        seed: chooses references, and the images held out for the bandwidth.

    Raises:
        DataError: a class without images, fewer references than neighbours, features that are not
            finite or never vary, or other rows than said.
    """
    chosen = reference_mask(num_images, config.lid_references, seed=seed)
    moments: dict[str, ClassMoments] = {}
    references: dict[str, list[Tensor]] = {}
    kept, labels = [], []
    seen = 0
    for rows in shards:
        if rows.image_ids.tolist() != list(range(seen, min(seen + len(rows), num_images))):
            ids = f"ids {int(rows.image_ids[0])} to {int(rows.image_ids[-1])} after {seen} rows"
            raise _other_rows(ids, num_images)
        seen += len(rows)
        for layer in pooled_layers(rows.columns, prefix=FEATURE_PREFIX):
            features = rows[FEATURE_PREFIX + layer]
            block = class_moments(features, rows["label"], num_classes)
            moments[layer] = merge_moments(moments[layer], block) if layer in moments else block
            references.setdefault(layer, []).append(features[chosen[rows.image_ids]])
        kept.append(rows[FEATURE_PREFIX + config.density_layer])
        labels.append(rows["label"])
    if seen != num_images:
        raise _other_rows(f"{seen} rows", num_images)
    features, classes = torch.cat(kept), torch.cat(labels)
    bandwidth = choose_bandwidth(features, classes, num_classes, config.bandwidths, seed=seed)
    reference_ids = chosen.nonzero().flatten()
    return SpaceDetectors(
        space=space,
        num_images=num_images,
        mahalanobis={layer: fit_mahalanobis(found) for layer, found in moments.items()},
        density_layer=config.density_layer,
        density=fit_kernel_density(features, classes, num_classes, bandwidth=bandwidth.bandwidth),
        bandwidth=bandwidth,
        dimensionality={
            layer: fit_lid(torch.cat(parts), reference_ids) for layer, parts in references.items()
        },
    )


def reference_mask(num_images: int, count: int, *, seed: int) -> Tensor:
    """(num_images,) bool: the `count` images with the smallest keyed numbers; all if fewer."""
    draws = keyed_uniform(image_keys(seed, "detection.references", 0, torch.arange(num_images)), 1)
    mask = torch.zeros(num_images, dtype=torch.bool)
    mask[draws[:, 0].argsort(stable=True)[:count]] = True
    return mask


def _other_rows(got: str, expected: int) -> DataError:
    return DataError(
        "features to fit detectors to",
        got=got,
        expected=f"all {expected} images once, in order",
        remedy="extract the features of the training images again",
    )
