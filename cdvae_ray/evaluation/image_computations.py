"""What actors compute of images for detection: one row of named numbers an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cdvae_ray.config.detection import AdaptiveConfig, AdaptiveStrategy
from cdvae_ray.core.attacks.detector_pgd import detector_pgd
from cdvae_ray.core.attacks.eot import eot
from cdvae_ray.core.detectors.image_detector import ImageDetector
from cdvae_ray.core.detectors.mahalanobis import Mahalanobis
from cdvae_ray.core.detectors.mahalanobis_input import mahalanobis_input_scores
from cdvae_ray.core.detectors.residual import residual_l2, residual_linf
from cdvae_ray.core.feature_extractor import Extraction, FeatureExtractor
from cdvae_ray.evaluation.answers import predictions

FEATURE_PREFIX = "features/"
Columns = dict[str, Tensor]
ImageComputation = Callable[[Tensor, Tensor, Tensor], Columns]
"""Images (N, 3, S, S), labels (N,), image ids (N,) to columns (N,) or (N, d). One of pairs is given
the clean images first."""


class FeatureColumns(nn.Module):
    """Label, prediction and features of each image, and its residual where the space has a G."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor, labels: Tensor, image_ids: Tensor) -> Columns:
        """Columns of a batch."""
        with torch.inference_mode():
            extraction: Extraction = self.extractor(images)
            columns = {"label": labels, "prediction": predictions(extraction.logits)}
            if extraction.residual is not None:
                redundant = images - extraction.residual
                columns["residual_l2"] = residual_l2(images, redundant)
                columns["residual_linf"] = residual_linf(images, redundant)
            for name, features in extraction.features.items():
                columns[FEATURE_PREFIX + name] = features
            return columns


class PredictionColumns(nn.Module):
    """Label and a defence's answer to each image.

    Args:
        defense: images in [0, 1] to logits.
        transform: done to the images first.
        samples: draws of a stochastic defence, whose mean answer counts; 1 of a deterministic one.
    """

    def __init__(
        self,
        defense: nn.Module,
        transform: Callable[[Tensor], Tensor] | None = None,
        *,
        samples: int = 1,
    ) -> None:
        super().__init__()
        self.defense, self.transform, self.samples = defense, transform, samples

    def ask(self, images: Tensor) -> Tensor:
        """Logits (N, classes), or the log of the mean probability over the draws."""
        if self.samples == 1:
            logits: Tensor = self.defense(images)
            return logits
        return eot(self.defense, num_samples=self.samples)(images)

    def forward(self, images: Tensor, labels: Tensor, image_ids: Tensor) -> Columns:
        """Columns of a batch."""
        with torch.inference_mode():
            shown = images if self.transform is None else self.transform(images)
            return {"label": labels, "prediction": predictions(self.ask(shown))}


def step_column(magnitude: float, layer: str) -> str:
    """The column of MD's score of a layer after a step of the image."""
    return f"m = {magnitude:g}/{layer}"


class InputStepColumns(nn.Module):
    """MD's scores by layer after a step of the images, for each magnitude above 0.

    Args:
        extractor: of the space.
        detectors: by layer.
        magnitudes: m > 0, in normalised units.
        pixel_step: a step of m is one of m times this in pixel units, a number a channel.
        clip: keep the stepped images in [0, 1].
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        detectors: Mapping[str, Mahalanobis],
        magnitudes: Sequence[float],
        *,
        pixel_step: Sequence[float],
        clip: bool,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.detectors, self.magnitudes = dict(detectors), tuple(magnitudes)
        self.pixel_step, self.clip = tuple(pixel_step), clip

    def forward(self, images: Tensor, labels: Tensor, image_ids: Tensor) -> Columns:
        """Columns of a batch."""
        detectors = {name: each.to(images.device) for name, each in self.detectors.items()}
        scores = mahalanobis_input_scores(
            self.extractor.features,
            images,
            detectors,
            self.magnitudes,
            std=[1 / step for step in self.pixel_step],
            clip=self.clip,
        )
        return {
            step_column(magnitude, layer): rows[place]
            for layer, rows in scores.items()
            for place, magnitude in enumerate(self.magnitudes)
        }


class AdaptiveColumns(nn.Module):
    """What an attack that knows the detector comes to, image by image.

    Args:
        detector: attacked together with the network whose features it looks at.
        strategy: of the attack.
        step_scale: of its steps, times 2.5 epsilon / num_steps.
        config: radius and steps; L-infinity.
        seed: keys random starts together with the ids.
    """

    def __init__(
        self,
        detector: ImageDetector,
        strategy: AdaptiveStrategy,
        step_scale: float,
        config: AdaptiveConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.strategy: AdaptiveStrategy = strategy
        self.step_size = step_scale * 2.5 * config.epsilon / config.num_steps
        self.config, self.seed = config, seed

    def forward(self, images: Tensor, labels: Tensor, image_ids: Tensor) -> Columns:
        """Columns of a batch."""
        with torch.no_grad():
            clean_prediction = predictions(self.detector.classify(images))
            clean_score = self.detector.score(images)
        result = detector_pgd(
            self.detector.classify,
            self.detector.score,
            images,
            labels,
            epsilon=self.config.epsilon,
            num_steps=self.config.num_steps,
            strategy=self.strategy,
            step_size=self.step_size,
            seed=self.seed,
            image_ids=image_ids,
        )
        return {
            "label": labels,
            "clean_prediction": clean_prediction,
            "clean_score": clean_score,
            "fooled": result.fooled,
            "detector_score": result.detector_score,
            "norm": result.norm,
            "zero_gradient": result.zero_gradient,
            "nonfinite_gradient": result.nonfinite_gradient,
        }
