"""Metrics of detection against scikit-learn, and against literal counts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from cdvae_ray.errors import ConfigError, DataError
from cdvae_ray.evaluation.detection_metrics import (
    DetectionMetrics,
    FloatArray,
    all_metrics,
    detection_metrics,
    fpr_at_95_tpr,
    rank_scores,
    roc_counts,
    threshold_at_fpr,
    tnr_at_95_tpr_reference,
    tnr_at_95_tpr_strict,
    tpr_at_fpr,
)


def samples() -> list[tuple[FloatArray, FloatArray]]:
    """Negatives and positives: apart, mixed, with few and many ties, reversed, tiny."""
    rng = np.random.default_rng(0)
    apart = rng.normal(size=130), rng.normal(size=70) + 4
    mixed = rng.normal(size=501), rng.normal(size=333) + 1
    tied = rng.integers(0, 6, size=200) * 0.1, rng.integers(2, 8, size=90) * 0.1
    constant = np.zeros(30), np.zeros(20)
    tiny = np.array([0.3]), np.array([0.7])
    return [apart, mixed, tied, mixed[::-1], constant, tiny]


SAMPLES = pytest.mark.parametrize(("negatives", "positives"), samples())


def labelled(negatives: FloatArray, positives: FloatArray) -> tuple[FloatArray, FloatArray]:
    return np.repeat([0.0, 1.0], [len(negatives), len(positives)]), np.r_[negatives, positives]


@SAMPLES
def test_areas_agree_with_scikit_learn(negatives: FloatArray, positives: FloatArray) -> None:
    found = detection_metrics(negatives, positives)
    labels, scores = labelled(negatives, positives)
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.aupr_adversarial == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert found.aupr_clean == pytest.approx(
        average_precision_score(1 - labels, -scores), abs=1e-12
    )


@SAMPLES
def test_rates_agree_with_the_roc_curve_of_scikit_learn(
    negatives: FloatArray, positives: FloatArray
) -> None:
    fpr, tpr, _ = roc_curve(*labelled(negatives, positives), drop_intermediate=False)
    counts = roc_counts(negatives, positives)
    np.testing.assert_allclose(counts.false_positives[0] / len(negatives), fpr)
    np.testing.assert_allclose(counts.true_positives[0] / len(positives), tpr)
    for target in (0.0, 0.001, 0.01, 0.05, 0.5, 1.0):
        assert tpr_at_fpr(counts, target)[0] == pytest.approx(tpr[fpr <= target + 1e-12].max())
    assert fpr_at_95_tpr(counts)[0] == pytest.approx(fpr[tpr >= 0.95 - 1e-12].min())
    assert tnr_at_95_tpr_strict(counts)[0] == pytest.approx(tpr[fpr <= 0.05 + 1e-12].max())


def counted_down(negatives: FloatArray, positives: FloatArray) -> float:
    """The references' way: drop images one by one, clean ones first among equals."""
    known, novel = sorted(-negatives), sorted(-positives)
    true, false = [len(known)], [len(novel)]
    while known or novel:
        # The lowest confidence goes first.
        if not known or (novel and novel[0] < known[0]):
            novel.pop(0)
        else:
            known.pop(0)
        true.append(len(known))
        false.append(len(novel))
    nearest = np.abs(np.array(true) / len(negatives) - 0.95).argmin()
    return 1 - false[nearest] / len(positives)


@SAMPLES
def test_tnr_at_95_tpr_is_the_references(negatives: FloatArray, positives: FloatArray) -> None:
    found = tnr_at_95_tpr_reference(roc_counts(negatives, positives))[0]
    assert found == pytest.approx(counted_down(negatives, positives), abs=1e-12)


def test_tnr_at_95_tpr_is_the_references_for_every_count() -> None:
    rng = np.random.default_rng(1)
    for count in range(1, 65):
        negatives, positives = rng.normal(size=count), rng.integers(-4, 5, size=40) / 2
        negatives[::3] = np.round(negatives[::3])
        found = tnr_at_95_tpr_reference(roc_counts(negatives, positives))[0]
        assert found == pytest.approx(counted_down(negatives, positives), abs=1e-12)


def test_the_two_conventions_of_95_percent_differ() -> None:
    negatives, positives = samples()[1]
    counts = roc_counts(negatives, positives)
    assert abs(tnr_at_95_tpr_reference(counts)[0] - (1 - fpr_at_95_tpr(counts)[0])) > 0.05


def test_weights_are_repetitions_of_images() -> None:
    rng = np.random.default_rng(2)
    clean, noisy, adversarial = (rng.integers(0, 9, size=25) * 1.0 + shift for shift in (0, 0, 2))
    places = np.arange(25)
    ranked = rank_scores(
        np.r_[clean, noisy],
        adversarial,
        negative_images=np.r_[places, places],
        positive_images=places,
    )
    weights = rng.integers(0, 4, size=(6, 25))
    found = all_metrics(ranked.counts(weights))
    for weighting, row in zip(weights, found, strict=True):
        drawn = np.repeat(places, weighting)
        expected = detection_metrics(np.r_[clean[drawn], noisy[drawn]], adversarial[drawn])
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_rising_maps_change_nothing() -> None:
    negatives, positives = samples()[2]
    assert detection_metrics(np.exp(negatives), np.exp(positives)) == detection_metrics(
        negatives, positives
    )


def test_a_perfect_and_a_useless_detector() -> None:
    perfect = detection_metrics(np.arange(100.0), np.arange(100.0, 150.0))
    assert perfect == DetectionMetrics(1, 1, 1, 1, 0, 1, 1, 1)
    useless = detection_metrics(np.zeros(60), np.zeros(30))
    assert useless == DetectionMetrics(
        0, 0.5, pytest.approx(1 / 3), pytest.approx(2 / 3), 1, 0, 0, 0
    )


def test_threshold_flags_at_most_the_target_and_no_less_than_it_can() -> None:
    for negatives in (samples()[1][0], samples()[2][0]):
        for target in (0.0, 0.01, 0.05, 0.3):
            threshold = threshold_at_fpr(negatives, target)
            assert (negatives > threshold).mean() <= target
            # Flagging the threshold's own value too would be too much.
            assert (negatives >= threshold).mean() > target
    with pytest.raises(ConfigError, match="target"):
        threshold_at_fpr(np.zeros(3), 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="in 1 of 2"):
        detection_metrics(np.array([0.0, bad]), np.zeros(2))
    with pytest.raises(DataError, match="positives"):
        detection_metrics(np.zeros(2), np.array([bad]))


def test_an_empty_class_is_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        detection_metrics(np.zeros(2), np.zeros(0))
    with pytest.raises(DataError, match="shape"):
        detection_metrics(np.zeros((2, 2)), np.zeros(2))
    ranked = rank_scores(
        np.zeros(2), np.zeros(1), negative_images=np.array([0, 1]), positive_images=np.array([2])
    )
    with pytest.raises(DataError, match="resample"):
        ranked.counts(np.array([[1, 1, 0]]))
