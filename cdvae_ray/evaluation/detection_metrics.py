"""How well scores tell adversarial images from clean ones; every score is higher for adversarial.

Positives are adversarial images, negatives are clean images, with or without noisy ones. All
metrics are functions of counts over falling thresholds, so that scores are sorted once and a
resample is a vector of weights: whoever wants a number of one sample passes `roc_counts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdvae_ray.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_ROUNDING = 1e-9
"""Of a count: 0.05 * 100 negatives are 5, whatever the last bit says."""


class RocCounts(NamedTuple):
    """Images flagged at falling thresholds, for B weightings; column 0 flags none, the last all."""

    true_positives: FloatArray
    """(B, U + 1), positives at or above the threshold; U distinct scores."""
    false_positives: FloatArray
    """(B, U + 1), negatives at or above the threshold."""

    @property
    def positives(self) -> FloatArray:
        """(B,), all positives."""
        return self.true_positives[:, -1]

    @property
    def negatives(self) -> FloatArray:
        """(B,), all negatives."""
        return self.false_positives[:, -1]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RankedScores:
    """Scores in falling order, and the image that each belongs to."""

    row_images: IntArray
    """(R,), places in [0, I) of the images."""
    is_positive: BoolArray
    """(R,)."""
    level_ends: IntArray
    """(U,), the last row of each run of equal scores."""

    def counts(self, weights: IntArray) -> RocCounts:
        """Counts with each image as often as its weight says.

        Args:
            weights: (B, I), at least 0.

        Raises:
            DataError: a weighting leaves no positive or no negative.
        """
        by_row = weights[:, self.row_images].astype(np.float64)
        flagged = np.cumsum(by_row, axis=1)[:, self.level_ends]
        by_row *= self.is_positive
        found = np.cumsum(by_row, axis=1)[:, self.level_ends]
        zero = np.zeros((len(weights), 1))
        counts = RocCounts(np.hstack([zero, found]), np.hstack([zero, flagged - found]))
        if not (counts.positives.all() and counts.negatives.all()):
            raise DataError(
                "images of a resample",
                got="one without an adversarial or without a clean image",
                expected="both in each resample",
                remedy="detect on more images",
            )
        return counts


def rank_scores(
    negatives: FloatArray,
    positives: FloatArray,
    *,
    negative_images: IntArray,
    positive_images: IntArray,
) -> RankedScores:
    """Sorts the scores of both classes together.

    Args:
        negatives: (n,), scores of clean, or clean and noisy, images.
        positives: (p,), scores of adversarial images.
        negative_images: (n,), places of their images in the weights to come.
        positive_images: (p,), likewise.

    Raises:
        DataError: scores that are empty, not finite or not vectors.
    """
    _check_scores("scores of negatives", negatives)
    _check_scores("scores of positives", positives)
    scores = np.concatenate([negatives, positives])
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    return RankedScores(
        row_images=np.concatenate([negative_images, positive_images])[order],
        is_positive=order >= len(negatives),
        level_ends=np.flatnonzero(np.append(falling[1:] != falling[:-1], True)),
    )


def roc_counts(negatives: FloatArray, positives: FloatArray) -> RocCounts:
    """Counts of one sample, (1, U + 1) each, each score once.

    Args:
        negatives: (n,), scores of clean, or clean and noisy, images.
        positives: (p,), scores of adversarial images.

    Raises:
        DataError: scores that are empty, not finite or not vectors.
    """
    count = len(negatives) + len(positives)
    places = np.arange(count)
    ranked = rank_scores(
        negatives,
        positives,
        negative_images=places[: len(negatives)],
        positive_images=places[len(negatives) :],
    )
    return ranked.counts(np.ones((1, count), dtype=np.int64))


def auroc(counts: RocCounts) -> FloatArray:
    """P(s_pos > s_neg) + 1/2 P(s_pos = s_neg), the area under the ROC curve.

    Returns:
        (B,) in [0, 1].
    """
    tp, fp = counts
    twice_area = np.einsum("bu,bu->b", np.diff(fp), tp[:, 1:] + tp[:, :-1])
    area: FloatArray = twice_area / (2 * counts.positives * counts.negatives)
    return area


def aupr_adversarial(counts: RocCounts) -> FloatArray:
    """Average precision with adversarial images as positives: sum_i (R_i - R_{i-1}) P_i.

    Returns:
        (B,) in [0, 1]; a detector that guesses gets the share of adversarial images.
    """
    return _average_precision(counts.true_positives, counts.false_positives)


def aupr_clean(counts: RocCounts) -> FloatArray:
    """Average precision with clean (and noisy) images as positives, found from the low scores up.

    Returns:
        (B,) in [0, 1]; a detector that guesses gets the share of clean (and noisy) images.
    """
    tp, fp = counts
    return _average_precision(
        (counts.negatives[:, None] - fp)[:, ::-1], (counts.positives[:, None] - tp)[:, ::-1]
    )


def tpr_at_fpr(counts: RocCounts, target: float) -> FloatArray:
    """The largest share of adversarial images found with at most `target` of negatives flagged.

    No interpolation: a threshold that flags as much exists.

    Args:
        counts: of the sample.
        target: false positive rate in [0, 1].

    Returns:
        (B,) in [0, 1].
    """
    tp, fp = counts
    allowed = np.floor(target * counts.negatives + _ROUNDING)
    last = _first_at(fp, allowed, "right") - 1
    return _take(tp, last) / counts.positives


def fpr_at_95_tpr(counts: RocCounts) -> FloatArray:
    """Share of negatives flagged where at least 95 % of ADVERSARIAL images are found.

    The convention of OpenOOD and pytorch-ood, where the outlier is the positive: 1 less this number
    is not `tnr_at_95_tpr_reference`, which lets 95 % of clean images pass.

    Returns:
        (B,) in [0, 1].
    """
    tp, fp = counts
    needed = np.ceil(0.95 * counts.positives - _ROUNDING)
    return _take(fp, _first_at(tp, needed, "left")) / counts.negatives


def tnr_at_95_tpr_reference(counts: RocCounts) -> FloatArray:
    """Share of adversarial images rejected where about 95 % of CLEAN (and noisy) images pass.

    As Lee et al. (2018) and the paper count it, with the clean image as the positive. Of the n
    negatives the j highest are rejected, j nearest to 5 % of n; adversarial images strictly above
    the last of them count as rejected. No interpolation, and the rate may miss 5 % by half an
    image, to either side.

    Returns:
        (B,) in [0, 1].
    """
    tp, fp = counts
    rejected = np.array([_rejected_at_95(int(count)) for count in counts.negatives], dtype=float)
    # Ties with the last negative pass: the level before has what lies strictly above.
    before = np.maximum(_first_at(fp, rejected, "left") - 1, 0)
    return _take(tp, before) / counts.positives


def tnr_at_95_tpr_strict(counts: RocCounts) -> FloatArray:
    """Share of adversarial images rejected where at least 95 % of clean (and noisy) images pass.

    The same number as `tpr_at_fpr` at 5 %, under the reference's name.

    Returns:
        (B,) in [0, 1].
    """
    return tpr_at_fpr(counts, 0.05)


def threshold_at_fpr(negatives: FloatArray, target: float) -> float:
    """The lowest score t at which {s > t} holds at most `target` of the negatives.

    Args:
        negatives: (n,), scores of images that should pass, from a part that is not tested on.
        target: false positive rate in [0, 1).

    Raises:
        ConfigError: target outside [0, 1).
        DataError: scores that are empty or not finite.
    """
    if not 0 <= target < 1:
        raise ConfigError(
            "target false positive rate", got=target, expected="in [0, 1)", remedy="pass 0.05"
        )
    _check_scores("scores of negatives", negatives)
    allowed = int(np.floor(target * len(negatives) + _ROUNDING))
    return float(np.sort(negatives)[::-1][allowed])


class DetectionMetrics(NamedTuple):
    """What a detector came to; shares in [0, 1], positives are adversarial unless said."""

    tnr_at_95_tpr: float
    """`tnr_at_95_tpr_reference`: the positive is the clean image."""
    auroc: float
    aupr_adversarial: float
    aupr_clean: float
    fpr_at_95_tpr: float
    """The positive is the adversarial image."""
    tpr_at_01_fpr: float
    """At 0.1 % of negatives flagged."""
    tpr_at_1_fpr: float
    tpr_at_5_fpr: float


_METRICS: dict[str, Callable[[RocCounts], FloatArray]] = {
    "tnr_at_95_tpr": tnr_at_95_tpr_reference,
    "auroc": auroc,
    "aupr_adversarial": aupr_adversarial,
    "aupr_clean": aupr_clean,
    "fpr_at_95_tpr": fpr_at_95_tpr,
    "tpr_at_01_fpr": lambda counts: tpr_at_fpr(counts, 0.001),
    "tpr_at_1_fpr": lambda counts: tpr_at_fpr(counts, 0.01),
    "tpr_at_5_fpr": lambda counts: tpr_at_fpr(counts, 0.05),
}


def all_metrics(counts: RocCounts) -> FloatArray:
    """All of `DetectionMetrics` for each weighting, in its order.

    Returns:
        (B, 8).
    """
    return np.stack([_METRICS[name](counts) for name in DetectionMetrics._fields], axis=1)


def detection_metrics(negatives: FloatArray, positives: FloatArray) -> DetectionMetrics:
    """All metrics of one sample.

    Args:
        negatives: (n,), scores of clean, or clean and noisy, images.
        positives: (p,), scores of adversarial images.

    Raises:
        DataError: scores that are empty, not finite or not vectors.
    """
    return DetectionMetrics(*all_metrics(roc_counts(negatives, positives))[0].tolist())


def _average_precision(hits: FloatArray, misses: FloatArray) -> FloatArray:
    """(B, U + 1) twice, cumulative from the most confident: sum of recall steps times precision."""
    steps = np.diff(hits)
    found, flagged = hits[:, 1:], hits[:, 1:] + misses[:, 1:]
    # Where nothing is flagged yet the step is 0 as well.
    precision = found / np.maximum(flagged, 1)
    total: FloatArray = np.einsum("bu,bu->b", steps, precision) / hits[:, -1]
    return total


@lru_cache(maxsize=4096)
def _rejected_at_95(negatives: int) -> int:
    """Negatives to reject so that the share that passes is nearest to 0.95; fewest of equals."""
    passing = np.arange(negatives, -1, -1) / negatives
    return int(np.abs(passing - 0.95).argmin())


def _first_at(rising: FloatArray, values: FloatArray, side: Literal["left", "right"]) -> IntArray:
    """(B, U + 1) and (B,): in each row the place where the value would be inserted."""
    places = [row.searchsorted(value, side) for row, value in zip(rising, values, strict=True)]
    return np.array(places, dtype=np.int64)


def _take(rows: FloatArray, places: IntArray) -> FloatArray:
    return np.take_along_axis(rows, places[:, None], axis=1)[:, 0]


def _check_scores(what: str, scores: FloatArray) -> None:
    if scores.ndim != 1 or not len(scores):
        raise DataError(
            what,
            got=f"shape {scores.shape}",
            expected="a vector of at least one score",
            remedy="detect on more images",
        )
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise DataError(
            what,
            got=f"NaN or infinity in {bad} of {len(scores)}",
            expected="finite scores",
            remedy="check the detector and its features for overflow",
        )
