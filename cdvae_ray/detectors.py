"""Detectors of adversarial images; every score is higher for what looks more adversarial.

Each is fitted to features of clean training images (`layer_features`), one layer a detector, and
is a frozen value with `.score`. Fits and sums over shards merge without loss.
"""

from __future__ import annotations

from cdvae_ray.core.detectors.bandwidth import BandwidthChoice, choose_bandwidth
from cdvae_ray.core.detectors.combine import Standardizer, fit_standardizer
from cdvae_ray.core.detectors.image_detector import ImageDetector
from cdvae_ray.core.detectors.kernel_density import (
    KernelDensity,
    KernelSums,
    fit_kernel_density,
    merge_kernel_sums,
)
from cdvae_ray.core.detectors.local_dimensionality import (
    LocalDimensionality,
    dimensionality,
    fit_lid,
    reference_lid,
)
from cdvae_ray.core.detectors.mahalanobis import Mahalanobis, fit_mahalanobis
from cdvae_ray.core.detectors.mahalanobis_input import mahalanobis_input_scores
from cdvae_ray.core.detectors.moments import (
    ClassMoments,
    class_moments,
    merge_moments,
    reduce_moments,
)
from cdvae_ray.core.detectors.neighbours import (
    NeighbourIndex,
    Neighbours,
    index_references,
    merge_nearest,
    nearest,
)
from cdvae_ray.core.detectors.residual import disagreement, residual_l2, residual_linf
from cdvae_ray.core.feature_extractor import FeatureExtractor, feature_extractor
from cdvae_ray.core.features import (
    FEATURE_NAMES,
    features_of_classifier,
    features_of_essential,
    layer_features,
)

__all__ = [
    "FEATURE_NAMES",
    "BandwidthChoice",
    "ClassMoments",
    "FeatureExtractor",
    "ImageDetector",
    "KernelDensity",
    "KernelSums",
    "LocalDimensionality",
    "Mahalanobis",
    "NeighbourIndex",
    "Neighbours",
    "Standardizer",
    "choose_bandwidth",
    "class_moments",
    "dimensionality",
    "disagreement",
    "feature_extractor",
    "features_of_classifier",
    "features_of_essential",
    "fit_kernel_density",
    "fit_lid",
    "fit_mahalanobis",
    "fit_standardizer",
    "index_references",
    "layer_features",
    "mahalanobis_input_scores",
    "merge_kernel_sums",
    "merge_moments",
    "merge_nearest",
    "nearest",
    "reduce_moments",
    "reference_lid",
    "residual_l2",
    "residual_linf",
]
