"""Scores by method, setting and layer, from stored features: what the protocols work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import (
    REFERENCE_BANDWIDTH,
    REFERENCE_BATCH,
    REFERENCE_NEIGHBOURS,
    DetectorsConfig,
)
from cdvae_ray.core.detectors.image_detector import RESIDUAL_LAYERS
from cdvae_ray.core.detectors.local_dimensionality import reference_lid
from cdvae_ray.core.detectors.residual import disagreement
from cdvae_ray.core.features import pooled_layers
from cdvae_ray.core.threat_models import ThreatModel
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_metrics import BoolArray, FloatArray
from cdvae_ray.evaluation.detection_protocol import DetectionScores, MethodScores
from cdvae_ray.evaluation.detector_fit import SpaceDetectors
from cdvae_ray.evaluation.image_computations import FEATURE_PREFIX, step_column
from cdvae_ray.storage.row_set import ImageRows


class LayerScores(NamedTuple):
    """Scores of one method with one setting."""

    layers: tuple[str, ...]
    values: FloatArray
    """(N, L), higher = more adversarial."""


ScoreTable = dict[str, dict[str, LayerScores]]
"""By method, then by setting; the first setting is the one for attack-free detection."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SetRows:
    """What was stored of one set of images in one space, equal rows together."""

    features: ImageRows
    steps: ImageRows | None = None
    """MD's scores after steps of the images; None where no magnitude is above 0."""


def score_table(rows: SetRows, detectors: SpaceDetectors, config: DetectorsConfig) -> ScoreTable:
    """KD, LID, MD, and the residual where there is one, of a set of images.

    Args:
        rows: of the set, in the detectors' space.
        detectors: fitted in that space.
        config: of the detectors.

    Raises:
        DataError: columns that are missing, or features that are not finite.
    """
    features, predictions = rows.features, rows.features["prediction"]
    density = detectors.density.score(
        features[FEATURE_PREFIX + detectors.density_layer], predictions
    )
    table: ScoreTable = {
        "KD": {
            f"h = {detectors.bandwidth.bandwidth:g}": _layer_scores(
                {detectors.density_layer: density}
            )
        },
        "LID": _lid(features, detectors, config.num_neighbours),
        "MD": mahalanobis_table(rows, detectors, config.magnitudes),
    }
    if RESIDUAL_LAYERS[0] in features.columns:
        table["residual"] = {
            "L2, L-inf": _layer_scores({name: features[name] for name in RESIDUAL_LAYERS})
        }
    return table


def mahalanobis_table(
    rows: SetRows, detectors: SpaceDetectors, magnitudes: Sequence[float]
) -> dict[str, LayerScores]:
    """MD by magnitude."""
    table = {}
    for magnitude in magnitudes:
        columns = {}
        for layer in pooled_layers(detectors.mahalanobis):
            if magnitude == 0:
                scores = detectors.mahalanobis[layer].score(rows.features[FEATURE_PREFIX + layer])
            else:
                assert rows.steps is not None
                scores = rows.steps[step_column(magnitude, layer)]
            columns[layer] = scores
        table[f"m = {magnitude:g}"] = _layer_scores(columns)
    return table


def disagreement_table(on_images: ImageRows, on_redundant: ImageRows) -> ScoreTable:
    """How far a classifier on x and one on G(x) disagree, of the same images."""
    logits = [rows[FEATURE_PREFIX + "logits"] for rows in (on_images, on_redundant)]
    return {"disagreement": {"Jensen-Shannon": _layer_scores({"logits": disagreement(*logits)})}}


def reference_tables(
    sets: Mapping[str, SetRows], detectors: SpaceDetectors, magnitudes: Sequence[float]
) -> dict[str, ScoreTable]:
    """KD, LID and MD as the reference codes score them, by set: clean, noisy, adversarial.

    Args:
        sets: the same images, all of which the reference keeps: its LID compares an image with the
            others of its minibatch, so that it depends on which images these are.
        detectors: fitted in the space; the bandwidth is the reference's, not theirs.
        magnitudes: of MD's step.

    Raises:
        DataError: too few images for a minibatch.
    """
    density = replace(detectors.density, bandwidth=REFERENCE_BANDWIDTH)
    tables: dict[str, ScoreTable] = {}
    for name, rows in sets.items():
        lids = {
            layer: reference_lid(
                rows.features[FEATURE_PREFIX + layer],
                sets["clean"].features[FEATURE_PREFIX + layer],
                REFERENCE_NEIGHBOURS,
                batch_size=REFERENCE_BATCH,
            )
            for layer in pooled_layers(detectors.mahalanobis)
        }
        scores = density.score(
            rows.features[FEATURE_PREFIX + detectors.density_layer], rows.features["prediction"]
        )
        tables[name] = {
            "KD": {
                f"h = {REFERENCE_BANDWIDTH:g}": _layer_scores({detectors.density_layer: scores})
            },
            "LID": _by_neighbours(lids, REFERENCE_NEIGHBOURS),
            "MD": mahalanobis_table(rows, detectors, magnitudes),
        }
    return tables


class Outcomes(NamedTuple):
    """What the attacked function made of the images, (N,) each."""

    clean_correct: BoolArray
    noisy_correct: BoolArray
    success: BoolArray

    def select(self, rows: BoolArray) -> Outcomes:
        """Of some of the images."""
        return Outcomes(*(flags[rows] for flags in self))


def reference_kept(outcomes: Outcomes) -> BoolArray:
    """(N,): the images that the reference keeps: clean right, noisy right, adversarial wrong.

    Less the last one or two where they would make a minibatch of fewer than the 3 that its LID
    needs. (Lee's code leaves out any incomplete minibatch.)
    """
    kept: BoolArray = outcomes.clean_correct & outcomes.noisy_correct & outcomes.success
    excess = int(kept.sum()) % REFERENCE_BATCH
    if 0 < excess < 3:
        kept = kept.copy()
        kept[np.flatnonzero(kept)[-excess:]] = False
    return kept


def method_scores(
    tables: Mapping[str, Mapping[str, ScoreTable]],
    outcomes: Mapping[str, Outcomes],
    image_ids: Mapping[str, Tensor],
    *,
    space: InputKind,
    threat_model: ThreatModel,
    dataset: str,
) -> list[MethodScores]:
    """The scores of one space on attacks on one function, method by method.

    Args:
        tables: by attack, then clean, noisy and adversarial: tables of the same images.
        outcomes: by attack.
        image_ids: by attack, (N,), rising.
        space: what the detectors look at.
        threat_model: what was attacked.
        dataset: its name.
    """
    methods = list(next(iter(tables.values()))["clean"])
    return [
        MethodScores(
            method=method,
            space=space,
            threat_model=threat_model,
            dataset=dataset,
            attacks={
                attack: {
                    setting: DetectionScores(
                        image_ids=image_ids[attack].numpy(),
                        layers=clean.layers,
                        clean=clean.values,
                        noisy=sets["noisy"][method][setting].values,
                        adversarial=sets["adversarial"][method][setting].values,
                        **outcomes[attack]._asdict(),
                    )
                    for setting, clean in sets["clean"][method].items()
                }
                for attack, sets in tables.items()
            },
        )
        for method in methods
    ]


def _lid(
    rows: ImageRows, detectors: SpaceDetectors, num_neighbours: Sequence[int]
) -> dict[str, LayerScores]:
    found = detectors.dimensionality
    scores = {
        layer: found[layer].scores(rows[FEATURE_PREFIX + layer], num_neighbours)
        for layer in pooled_layers(found)
    }
    return _by_neighbours(scores, num_neighbours)


def _by_neighbours(
    scores: Mapping[str, Tensor], num_neighbours: Sequence[int]
) -> dict[str, LayerScores]:
    """By layer (N, number of k) to a setting a k."""
    return {
        f"k = {k}": _layer_scores({layer: of[:, place] for layer, of in scores.items()})
        for place, k in enumerate(num_neighbours)
    }


def _layer_scores(columns: Mapping[str, Tensor]) -> LayerScores:
    values = torch.stack([column.double() for column in columns.values()], dim=1).numpy()
    if not np.isfinite(values).all():
        raise DataError(
            f"scores of {', '.join(columns)}",
            got="NaN or infinity",
            expected="finite scores",
            remedy="check the features for overflow",
        )
    return LayerScores(tuple(columns), values)
