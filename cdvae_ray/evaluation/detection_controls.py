"""Null controls: detectors that see a difference where there is none are not to be believed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.core.detectors.combine import fit_standardizer
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.evaluation.bootstrap import Estimate, percentile_interval, resamples
from cdvae_ray.evaluation.detection_metrics import auroc, rank_scores
from cdvae_ray.evaluation.detection_scores import LayerScores, ScoreTable


class ControlRow(NamedTuple):
    """Fresh clean images against other clean images: 0.5 up to chance."""

    method: str
    space: InputKind
    setting: str
    images: int
    auroc: Estimate


def clean_controls(
    clean: ScoreTable,
    image_ids: Tensor,
    *,
    space: InputKind,
    seed: int,
    num_resamples: int,
) -> list[ControlRow]:
    """AUROC of one half of the clean test images against the other, by method.

    The halves are by a keyed number an image; layers are standardised by the first and summed.

    Args:
        clean: scores of clean test images.
        image_ids: theirs, (N,).
        space: of the detectors.
        seed: of the evaluation.
        num_resamples: behind the intervals.
    """
    draws = keyed_uniform(image_keys(seed, "detection.control", 0, image_ids), 1)[:, 0]
    first = (draws < 0.5).numpy()
    rows = []
    for method, by_setting in clean.items():
        setting, scores = next(iter(by_setting.items()))
        combined = _sum_of_layers(scores, first)
        ranked = rank_scores(
            combined[first],
            combined[~first],
            negative_images=np.flatnonzero(first),
            positive_images=np.flatnonzero(~first),
        )
        count = len(combined)
        drawn = np.concatenate(
            [
                auroc(ranked.counts(weights))
                for weights in resamples(count, num_resamples, seed=seed)
            ]
        )
        value = float(auroc(ranked.counts(np.ones((1, count), dtype=np.int64)))[0])
        estimate = Estimate(value, *percentile_interval(drawn))
        rows.append(ControlRow(method, space, setting, count, estimate))
    return rows


def _sum_of_layers(scores: LayerScores, first: np.ndarray) -> np.ndarray:
    columns = torch.from_numpy(scores.values)
    fitted = fit_standardizer(columns[first])
    return fitted.score(columns).numpy()
