"""The Frechet distance of two Gaussians, from the moments of features."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.core.detectors.moments import ClassMoments, class_moments
from cdvae_ray.errors import DataError


def feature_moments(features: Tensor) -> ClassMoments:
    """Count, mean and scatter of features (N, d), whatever their classes; merge by `merge_moments`.

    Raises:
        DataError: empty, ill-shaped or non-finite features.
    """
    return class_moments(features, torch.zeros(len(features), dtype=torch.int64), 1)


def frechet_distance(first: ClassMoments, second: ClassMoments) -> float:
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the square of Dowson and Landau (1982).

    The root is taken by two symmetric eigenproblems, tr (C1^(1/2) C2 C1^(1/2))^(1/2), which needs
    no full rank and stays real. With few images the distance is biased upwards, the more the wider
    the features: compare it with that between two samples of one distribution.

    Args:
        first, second: of `feature_moments`, at least two images each, of one extractor.

    Returns:
        At least 0.

    Raises:
        DataError: a single image, or features of different extractors.
    """
    for each in (first, second):
        if int(each.counts.sum()) < 2:
            raise DataError(
                "images of a Frechet distance",
                got=int(each.counts.sum()),
                expected="at least 2, as a covariance needs",
                remedy="pass more images",
            )
    if first.means.shape != second.means.shape or len(first.counts) != 1:
        raise DataError(
            "features of a Frechet distance",
            got=f"(classes, features) {tuple(first.means.shape)} and {tuple(second.means.shape)}",
            expected="the same of both, one class",
            remedy="take both by feature_moments, from one extractor",
        )
    cov1, cov2 = (each.scatter / (each.counts.sum() - 1) for each in (first, second))
    root = _square_root(cov1)
    middle = root @ cov2 @ root
    roots = torch.linalg.eigvalsh(0.5 * (middle + middle.T)).clamp(min=0).sqrt()
    shift = ((first.means - second.means) ** 2).sum()
    distance = shift + cov1.trace() + cov2.trace() - 2 * roots.sum()
    return max(0.0, float(distance))


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
