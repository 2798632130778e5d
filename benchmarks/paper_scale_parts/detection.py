"""Table 4: KD, LID and MD of x and of R(x), against attacks on D(x) and on D(R(x)): the 2x2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdvae_ray.config.attack import AttackConfig, ThreatModelName
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import DetectorsConfig, SplitSettings
from cdvae_ray.core.feature_extractor import FeatureExtractor
from cdvae_ray.core.features import POOLED_LAYERS
from cdvae_ray.core.noise import matched_noise
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.data.images import ImageSet
from cdvae_ray.detectors import (
    KernelDensity,
    LocalDimensionality,
    Mahalanobis,
    choose_bandwidth,
    class_moments,
    fit_kernel_density,
    fit_lid,
    fit_mahalanobis,
)
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.bootstrap import Estimate
from cdvae_ray.evaluation.detection_protocol import (
    DetectionScores,
    MethodScores,
    Subset,
    attack_free,
)
from cdvae_ray.evaluation.detection_table import DetectionRow, detection_row

from .attacked_images import SEED, Shown, attack_images, predictions
from .models import Models
from .progress import Say
from .scale_preset import ScalePreset

SPACES: tuple[InputKind, ...] = ("images", "class_essential")
TARGETS: tuple[ThreatModelName, ...] = ("classifier", "class-essential")
PAPERS_PAIRS = {("classifier", "images"), ("class-essential", "class_essential")}
"""What is attacked and what is looked at in the paper's rows; the other two complete the 2x2."""
SUBSETS: tuple[Subset, ...] = ("successful", "all")
_FAILS = "no row"


@dataclass(frozen=True, kw_only=True, eq=False)
class SpaceDetectors:
    """Fitted to clean training images of one space, on the device."""

    mahalanobis: dict[str, Mahalanobis]
    density: KernelDensity
    dimensionality: dict[str, LocalDimensionality]


class DetectionUnit(NamedTuple):
    """What one attack on one function comes to."""

    rows: list[dict[str, Any]]
    scores: dict[str, Tensor]
    """Of all images by "space/method/setting/set", (N, layers); and three outcomes, (N,)."""
    facts: dict[str, Any]


class Detection:
    """Detectors of both spaces, fitted when they are first needed.

    Args:
        preset: of the run.
        models: trained.
        train: what detectors are fitted to.
        test: what is attacked; the first images.
        device: of the models.
        say: told of the fits.
    """

    def __init__(
        self,
        preset: ScalePreset,
        models: Models,
        train: ImageSet,
        test: Shown,
        device: torch.device,
        say: Say,
    ) -> None:
        self._preset, self._models, self._train, self._say = preset, models, train, say
        self._test, self._device = test, device
        self._fitted: dict[InputKind, SpaceDetectors] = {}

    def unit(self, target: ThreatModelName, attack: AttackConfig, dataset: str) -> DetectionUnit:
        """Attacks the target and scores clean, noisy and adversarial images in both spaces."""
        batch_size, test = self._preset.batch_size, self._test
        attacked = self._models.attacked(target)
        made = attack_images(attack, attacked, test, batch_size=batch_size)
        noisy = torch.cat(
            [
                matched_noise(images, l2, ids, seed=SEED)
                for images, l2, ids in zip(
                    *(
                        torch.split(each, batch_size)
                        for each in (test.images, made.l2, test.image_ids)
                    ),
                    strict=True,
                )
            ]
        )
        sets = {"clean": test.images, "noisy": noisy, "adversarial": made.images}
        right = {
            name: predictions(attacked, images, batch_size=batch_size) == test.labels
            for name, images in sets.items()
        }
        outcomes = {
            "clean_correct": right["clean"],
            "noisy_correct": right["noisy"],
            "success": ~right["adversarial"],
        }
        rows: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = dict(outcomes)
        layers: dict[str, list[str]] = {}
        for space in SPACES:
            by_set = {name: self._scores(space, images) for name, images in sets.items()}
            for method, settings in by_set["clean"].items():
                for setting, columns in settings.items():
                    key = f"{space}/{method}/{setting}"
                    layers[key] = list(columns)
                    for name, of_set in by_set.items():
                        found = of_set[method][setting]
                        tensors[f"{key}/{name}"] = torch.stack(list(found.values()), dim=1).float()
            rows += rows_of(
                tensors, layers, space=space, target=target, attack=attack, dataset=dataset,
                resamples=self._preset.resamples,
            )  # fmt: skip
        for row in rows:
            row["zero_gradient"], row["nonfinite_gradient"] = (
                made.zero_gradient,
                made.nonfinite_gradient,
            )
        facts = {"target": target, "attack": attack.label, "layers": layers, "dataset": dataset}
        return DetectionUnit(rows, {name: each.cpu() for name, each in tensors.items()}, facts)

    def _scores(self, space: InputKind, images: Tensor) -> dict[str, dict[str, dict[str, Tensor]]]:
        """By method, setting and layer: (N,) each."""
        if space not in self._fitted:
            self._say(f"tables: fitting the detectors of {space}")
            self._fitted[space] = self._fit(space)
        found, config = self._fitted[space], self._preset.detectors
        features = self._features(space, torch.split(images, self._preset.batch_size))
        classes = features["logits"].argmax(dim=1)
        lid = {
            layer: each.scores(features[layer], config.num_neighbours)
            for layer, each in found.dimensionality.items()
        }
        layer = config.density_layer
        return {
            "KD": {
                f"h = {found.density.bandwidth:g}": {
                    layer: found.density.score(features[layer], classes)
                }
            },
            "LID": {
                f"k = {k}": {layer: scores[:, place] for layer, scores in lid.items()}
                for place, k in enumerate(config.num_neighbours)
            },
            "MD": {
                "m = 0": {
                    layer: each.score(features[layer]) for layer, each in found.mahalanobis.items()
                }
            },
        }

    def _fit(self, space: InputKind) -> SpaceDetectors:
        config, labels = self._preset.detectors, self._train.labels
        classes = self._train.num_classes
        batches = (
            images.to(self._device).float() / 255
            for images in torch.split(self._train.images, self._preset.batch_size)
        )
        features = {name: each.cpu() for name, each in self._features(space, batches).items()}
        kept = features[config.density_layer]
        bandwidth = choose_bandwidth(kept, labels, classes, config.bandwidths, seed=SEED)
        chosen = _references(len(labels), config)
        density = fit_kernel_density(kept, labels, classes, bandwidth=bandwidth.bandwidth)
        return SpaceDetectors(
            mahalanobis={
                layer: fit_mahalanobis(class_moments(features[layer], labels, classes)).to(
                    self._device
                )
                for layer in POOLED_LAYERS
            },
            density=density.to(self._device),
            dimensionality={
                layer: fit_lid(features[layer][chosen], chosen).to(self._device)
                for layer in POOLED_LAYERS
            },
        )

    def _features(
        self, space: InputKind, batches: Iterator[Tensor] | tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        extractor: FeatureExtractor = self._models.extractor(space)
        parts: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for images in batches:
                for name, values in extractor.features(images).items():
                    parts.setdefault(name, []).append(values)
        return {name: torch.cat(values) for name, values in parts.items()}


def method_scores(
    tensors: dict[str, Tensor],
    layers: dict[str, list[str]],
    *,
    method: str,
    space: InputKind,
    target: ThreatModelName,
    attack: str,
    dataset: str,
) -> MethodScores:
    """The scores of one method in one space, as the package's protocols take them."""
    arrays = {name: each.cpu().numpy() for name, each in tensors.items()}
    start = f"{space}/{method}/"
    settings = [key for key in layers if key.startswith(start)]
    return MethodScores(
        method=method,
        space=space,
        threat_model=THREAT_MODELS[target],
        dataset=dataset,
        attacks={
            attack: {
                key.removeprefix(start): DetectionScores(
                    image_ids=np.arange(len(arrays["success"])),
                    layers=tuple(layers[key]),
                    clean=arrays[f"{key}/clean"].astype(np.float64),
                    noisy=arrays[f"{key}/noisy"].astype(np.float64),
                    adversarial=arrays[f"{key}/adversarial"].astype(np.float64),
                    clean_correct=arrays["clean_correct"],
                    noisy_correct=arrays["noisy_correct"],
                    success=arrays["success"],
                )
                for key in settings
            }
        },
    )


def rows_of(
    tensors: dict[str, Tensor],
    layers: dict[str, list[str]],
    *,
    space: InputKind,
    target: ThreatModelName,
    attack: AttackConfig,
    dataset: str,
    resamples: int,
) -> list[dict[str, Any]]:
    """The attack-free rows of one space: layers added up, standardised on clean images alone."""
    rows = []
    for method in ("KD", "LID", "MD"):
        scores = method_scores(
            tensors, layers, method=method, space=space, target=target, attack=attack.label,
            dataset=dataset,
        )  # fmt: skip
        for subset in SUBSETS:
            common = {
                "table": "4",
                "row": f"{method} on {space}, {subset} attacks",
                "as_in_the_paper": (target, space) in PAPERS_PAIRS,
                "threat_model": target,
                "epsilon": attack.epsilon,
                "num_steps": attack.num_steps or 1,
                "attack_settings": attack.describe(),
            }
            try:
                detection = attack_free(
                    scores, attack.label, split=SplitSettings(seed=SEED), subset=subset
                )
                found = detection_row(detection, seed=SEED, num_resamples=resamples)
            except DataError as error:
                rows.append({**common, "n": 0, "attack": attack.label, _FAILS: str(error)})
                continue
            rows.append(
                {
                    **plain_row(found),
                    **common,
                    "n": found.adversarial_images,
                    "resamples": resamples,
                }
            )
    return rows


def plain_row(row: DetectionRow) -> dict[str, Any]:
    """A row as JSON values; an estimate is its value and the ends of its 95 % interval."""
    return {
        name: list(value) if isinstance(value, Estimate) else value
        for name, value in row._asdict().items()
    }


def _references(count: int, config: DetectorsConfig) -> Tensor:
    """The ids of the training images that LID compares with, those of `jobs/detect.py`."""
    keys = image_keys(SEED, "detection.references", 0, torch.arange(count))
    draws = keyed_uniform(keys, 1)[:, 0]
    return draws.argsort(stable=True)[: config.lid_references].sort().values
