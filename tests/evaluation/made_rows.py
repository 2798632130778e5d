"""Rows of the study by image, made up: their columns have the shapes and ranges of real ones."""

import numpy as np
import torch

from cdvae_ray.config.classifier import INPUT_KINDS
from cdvae_ray.evaluation.study_columns import COMPARED, NORMS, PARTS
from cdvae_ray.evaluation.study_statistics import study_sums
from cdvae_ray.evaluation.study_table import Compared
from cdvae_ray.storage.row_set import ImageRows

ATTACK = Compared("PGD-Linf", 8 / 255)
NOISE = Compared("noise as long as PGD-Linf's", None)


def decomposition_rows(count=40, *, latent=6, width=5, seed=0):
    """Rows of `DecompositionColumns`."""
    rng = np.random.default_rng(seed)

    def floats(values):
        return torch.from_numpy(np.asarray(values)).float()

    z = rng.normal(size=(count, latent))
    columns = {
        name: torch.from_numpy(rng.integers(0, 3, size=count))
        for name in (
            *("label", "prediction", "prediction_adversarial"),
            *("essential_prediction", "essential_prediction_adversarial"),
        )
    }
    for place, norm in enumerate(NORMS):
        middle = 100 * np.arange(1, len(PARTS) + 1) / 10**place
        columns[norm] = floats(middle * rng.uniform(0.5, 1.5, size=(count, len(PARTS))))
    # In float64, as the computation gives it.
    columns["cosine"] = torch.from_numpy(rng.uniform(-0.2, 1, size=(count, 2)))
    columns["latent"] = floats(z)
    columns["latent_adversarial"] = floats(0.8 * z + 0.3 * rng.normal(size=z.shape))
    for place, part in enumerate(COMPARED):
        columns[f"features/{part}"] = floats(place / 3 + rng.normal(size=(count, width)))
    return ImageRows(torch.arange(count), columns)


def cut(rows, shards):
    """As many shards, in the order of the ids."""
    return [rows.select(places) for places in torch.arange(len(rows)).tensor_split(shards)]


def sums_of(rows=None):
    return study_sums(decomposition_rows() if rows is None else rows)


def cross_columns(count=30, trained_on=INPUT_KINDS, *, seed=0):
    """Rows of `CrossColumns`: what is first among the answers is among the first five."""
    rng = np.random.default_rng(seed)
    columns = {}
    for place, kind in enumerate(trained_on):
        for other, tested in enumerate(INPUT_KINDS):
            score = rng.uniform(size=count) ** (1 + place + 3 * other)
            columns[f"{kind}/{tested}/top1"] = torch.from_numpy(score > 0.4)
            columns[f"{kind}/{tested}/top5"] = torch.from_numpy(score > 0.1)
    return ImageRows(torch.arange(count), columns)
