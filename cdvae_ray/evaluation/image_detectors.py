"""Detectors of images without a single adversarial image: from fitted layers to a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.config.detection import SplitSettings
from cdvae_ray.core.detectors.combine import fit_standardizer
from cdvae_ray.core.detectors.image_detector import (
    DetectorMethod,
    ImageDetector,
    LayerDetector,
)
from cdvae_ray.core.feature_extractor import FeatureExtractor
from cdvae_ray.evaluation.detection_metrics import threshold_at_fpr
from cdvae_ray.evaluation.detection_protocol import split_images
from cdvae_ray.evaluation.detection_scores import ScoreTable
from cdvae_ray.evaluation.detector_fit import SpaceDetectors

FLAGGED_CLEAN = 0.05
"""Share of clean images that a stored detector flags, on images that did not choose this."""


class CalibratedDetector(NamedTuple):
    """A detector with what it says of clean images."""

    detector: ImageDetector
    thresholds: dict[float, float]
    """By share of clean images flagged on the selection part."""


def calibrated_detectors(
    extractor: FeatureExtractor,
    detectors: SpaceDetectors,
    clean: ScoreTable,
    image_ids: Tensor,
    *,
    split: SplitSettings,
    false_positive_rates: tuple[float, ...],
) -> dict[DetectorMethod, CalibratedDetector]:
    """The attack-free detector of each method: the same scores as the protocol's mode of that name.

    Layers are standardised by clean images of the train part; thresholds leave the given shares of
    the clean images of the selection part above them.

    Args:
        extractor: of the space.
        detectors: fitted in that space.
        clean: scores of clean test images.
        image_ids: theirs, (N,), rising.
        split: the parts.
        false_positive_rates: shares in [0, 1), `FLAGGED_CLEAN` among them.
    """
    parts = split_images(image_ids.numpy(), split)
    found: dict[DetectorMethod, CalibratedDetector] = {}
    for method in _methods(clean):
        setting, scores = next(iter(clean[method].items()))
        columns = torch.from_numpy(scores.values)
        fitted = fit_standardizer(
            {name: columns[parts.train, place] for place, name in enumerate(scores.layers)}
        )
        selection = fitted.score(
            {name: columns[parts.selection, place] for place, name in enumerate(scores.layers)}
        )
        thresholds = {
            rate: threshold_at_fpr(selection.numpy(), rate) for rate in false_positive_rates
        }
        found[method] = CalibratedDetector(
            ImageDetector(
                extractor,
                method=method,
                layers=_layers(method, detectors),
                combination=fitted,
                threshold=thresholds[FLAGGED_CLEAN],
                num_neighbours=int(setting.removeprefix("k = ")) if method == "LID" else 0,
            ).eval(),
            thresholds,
        )
    return found


def _methods(table: ScoreTable) -> list[DetectorMethod]:
    every: tuple[DetectorMethod, ...] = ("KD", "LID", "MD", "residual")
    return [method for method in every if method in table]


def _layers(method: DetectorMethod, detectors: SpaceDetectors) -> Mapping[str, LayerDetector]:
    match method:
        case "KD":
            return {detectors.density_layer: detectors.density}
        case "LID":
            return detectors.dimensionality
        case "MD":
            return detectors.mahalanobis
        case "residual":
            return {}
