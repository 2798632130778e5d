"""The empirical study's sums over images, shard by shard: what Tables 1, 2 and Figure 3 are of."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cdvae_ray.core.detectors.moments import ClassMoments, merge_moments
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.frechet import feature_moments, frechet_distance
from cdvae_ray.evaluation.moments import (
    PairedMoments,
    column_moments,
    merge_paired,
    paired_moments,
)
from cdvae_ray.evaluation.study_columns import COMPARED, NORMS, Norm
from cdvae_ray.storage.row_set import ImageRows

_HALVES = (0, 1)


@dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """What the attacked function and D(R(.)) answered."""

    images: int = 0
    right: int = 0
    """Of the attacked function, on x."""
    right_adversarial: int = 0
    """On x'."""
    essential_right: int = 0
    """Of D(R(x))."""
    essential_right_adversarial: int = 0
    """Of D(R(x'))."""

    def __add__(self, other: AnswerCounts) -> AnswerCounts:
        return AnswerCounts(
            images=self.images + other.images,
            right=self.right + other.right,
            right_adversarial=self.right_adversarial + other.right_adversarial,
            essential_right=self.essential_right + other.essential_right,
            essential_right_adversarial=self.essential_right_adversarial
            + other.essential_right_adversarial,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StudySums:
    """Mergeable over shards; holds no image."""

    counts: AnswerCounts
    norms: dict[Norm, PairedMoments]
    """A column a part."""
    cosines: PairedMoments
    """Columns G(x) with G(x'), R(x) with R(x')."""
    latents: PairedMoments
    """z and z'."""
    features: dict[tuple[str, int], ClassMoments]
    """By part and by half of the images: even and odd ids."""

    def of_part(self, part: str) -> ClassMoments:
        """The features of a part, of all images."""
        halves = [self.features[part, half] for half in _HALVES if (part, half) in self.features]
        return functools.reduce(merge_moments, halves)


def study_sums(rows: ImageRows) -> StudySums:
    """Of one shard of `DecompositionColumns`.

    Raises:
        DataError: a column is absent, or holds NaN or infinity.
    """
    label = rows["label"]
    features = {}
    for half in _HALVES:
        chosen = rows.image_ids % 2 == half
        if bool(chosen.any()):
            for part in COMPARED:
                features[part, half] = feature_moments(rows[f"features/{part}"][chosen])
    return StudySums(
        counts=AnswerCounts(
            images=len(rows),
            right=int((rows["prediction"] == label).sum()),
            right_adversarial=int((rows["prediction_adversarial"] == label).sum()),
            essential_right=int((rows["essential_prediction"] == label).sum()),
            essential_right_adversarial=int(
                (rows["essential_prediction_adversarial"] == label).sum()
            ),
        ),
        norms={norm: column_moments(rows[norm]) for norm in NORMS},
        cosines=column_moments(rows["cosine"]),
        latents=paired_moments(rows["latent"], rows["latent_adversarial"]),
        features=features,
    )


def merge_study(first: StudySums, second: StudySums) -> StudySums:
    """Of both shards together."""
    features = dict(first.features)
    for key, moments in second.features.items():
        features[key] = merge_moments(features[key], moments) if key in features else moments
    return StudySums(
        counts=first.counts + second.counts,
        norms={norm: merge_paired(first.norms[norm], second.norms[norm]) for norm in NORMS},
        cosines=merge_paired(first.cosines, second.cosines),
        latents=merge_paired(first.latents, second.latents),
        features=features,
    )


def reduce_study(shards: Iterable[ImageRows]) -> StudySums:
    """Over the shards of a set, one at a time, from first to last.

    Raises:
        DataError: there is none.
    """
    total: StudySums | None = None
    for rows in shards:
        sums = study_sums(rows)
        total = sums if total is None else merge_study(total, sums)
    if total is None:
        raise DataError(
            "shards of the study", got="none", expected="at least one", remedy="pass some images"
        )
    return total


class FrechetPair(NamedTuple):
    """Of a part of x and the same part of x'."""

    distance: float
    null: float | None
    """Between two halves of the part of x: what chance gives at half the images. None where a half
    has fewer than two."""


def frechet_pair(sums: StudySums, clean: str, adversarial: str) -> FrechetPair:
    """The Frechet distance of a part of x and of x', beside what chance gives.

    Args:
        sums: of all images.
        clean, adversarial: of `COMPARED`.

    Raises:
        DataError: a single image.
    """
    halves = [sums.features.get((clean, half)) for half in _HALVES]
    enough = [each for each in halves if each is not None and int(each.counts.sum()) > 1]
    return FrechetPair(
        distance=frechet_distance(sums.of_part(clean), sums.of_part(adversarial)),
        null=frechet_distance(*enough) if len(enough) == len(_HALVES) else None,
    )
