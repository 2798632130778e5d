"""A fitted detector as a function of images: network, layer scores, combination, threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from cdvae_ray.core.detectors.combine import Standardizer
from cdvae_ray.core.detectors.kernel_density import KernelDensity
from cdvae_ray.core.detectors.local_dimensionality import LocalDimensionality
from cdvae_ray.core.detectors.mahalanobis import Mahalanobis
from cdvae_ray.core.detectors.residual import residual_l2, residual_linf
from cdvae_ray.core.feature_extractor import Extraction, FeatureExtractor
from cdvae_ray.errors import ConfigError

DetectorMethod = Literal["KD", "LID", "MD", "residual"]
LayerDetector = KernelDensity | LocalDimensionality | Mahalanobis
METHOD_KINDS: dict[DetectorMethod, type[LayerDetector]] = {
    "KD": KernelDensity,
    "LID": LocalDimensionality,
    "MD": Mahalanobis,
}
"""What scores a layer; the residual needs no fit."""
RESIDUAL_LAYERS = ("residual_l2", "residual_linf")


class ImageDetector(nn.Module):
    """One detector in one space, as a module from images in [0, 1] to scores.

    It is fitted to clean images alone: layers by training images, the combination by others.

    Args:
        extractor: of the space.
        method: what scores a layer.
        layers: a fitted detector of the method for each layer; none for `residual`.
        combination: the standardised sum of the layers' scores.
        threshold: scores above it are flagged.
        num_neighbours: k of LID; 0 for the other methods.

    Raises:
        ConfigError: parts that do not belong to the method.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        method: DetectorMethod,
        layers: Mapping[str, LayerDetector],
        combination: Standardizer,
        threshold: float,
        num_neighbours: int = 0,
    ) -> None:
        super().__init__()
        _check_parts(extractor, method, layers, combination, num_neighbours)
        self.extractor = extractor
        self.method: DetectorMethod = method
        self.layers, self.combination = dict(layers), combination
        self.threshold, self.num_neighbours = threshold, num_neighbours
        self._placed: dict[torch.device, dict[str, LayerDetector]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """As `score`."""
        return self.score(images)

    def score(self, images: Tensor) -> Tensor:
        """Scores of images; higher is more adversarial.

        Args:
            images: float, (N, 3, S, S), in [0, 1].

        Returns:
            (N,), float64, differentiable in the images.

        Raises:
            DataError: the images are not of that shape, or their features are not finite.
        """
        scores = self.layer_scores(images)
        placed = Standardizer(
            names=self.combination.names,
            mean=self.combination.mean.to(images.device),
            std=self.combination.std.to(images.device),
        )
        return placed.score(scores)

    def flags(self, images: Tensor) -> Tensor:
        """(N,) bool: which images score above the threshold; without gradient."""
        with torch.no_grad():
            return self.score(images) > self.threshold

    def classify(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the network whose features these are."""
        return self.extractor.classify(images)

    def layer_scores(self, images: Tensor) -> dict[str, Tensor]:
        """Scores by layer, (N,) each."""
        extraction: Extraction = self.extractor(images)
        if self.method == "residual":
            assert extraction.residual is not None
            redundant = images - extraction.residual
            return {
                "residual_l2": residual_l2(images, redundant),
                "residual_linf": residual_linf(images, redundant),
            }
        return {
            name: self._layer_score(detector, extraction, name)
            for name, detector in self._detectors_on(images.device).items()
        }

    def _layer_score(self, detector: LayerDetector, extraction: Extraction, name: str) -> Tensor:
        features = extraction.features[name]
        match detector:
            case Mahalanobis():
                return detector.score(features)
            case KernelDensity():
                return detector.score(features, extraction.logits.argmax(dim=1))
            case LocalDimensionality():
                return detector.score(features, self.num_neighbours)

    def _detectors_on(self, device: torch.device) -> dict[str, LayerDetector]:
        """The fitted detectors, which are plain values, on the device of the images."""
        if device not in self._placed:
            self._placed[device] = {name: each.to(device) for name, each in self.layers.items()}
        return self._placed[device]


def _check_parts(
    extractor: FeatureExtractor,
    method: DetectorMethod,
    layers: Mapping[str, LayerDetector],
    combination: Standardizer,
    num_neighbours: int,
) -> None:
    wanted = set(layers) if method != "residual" else set(RESIDUAL_LAYERS)
    complaints = {
        f"layers of {', '.join(combination.names or ())}": set(combination.names or ()) != wanted,
        "layers of another method": any(
            not isinstance(each, METHOD_KINDS.get(method, ())) for each in layers.values()
        ),
        "no layer": method != "residual" and not layers,
        "the space of images, which has no residual": method == "residual"
        and extractor.space == "images",
        f"{num_neighbours} neighbours": (
            num_neighbours < 2 if method == "LID" else num_neighbours != 0
        ),
    }
    wrong = [complaint for complaint, holds in complaints.items() if holds]
    if wrong:
        raise ConfigError(
            f"parts of a {method} detector",
            got="; ".join(wrong),
            expected=f"fitted layers of {method} and a combination of the same layers",
            remedy="take all parts from one fit",
        )
