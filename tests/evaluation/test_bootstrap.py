"""The bootstrap by image against theory: standard errors, coverage, pairing."""

from __future__ import annotations

import numpy as np
import pytest

from cdvae_ray.errors import ConfigError
from cdvae_ray.evaluation.bootstrap import bootstrap, percentile_interval, resamples
from cdvae_ray.evaluation.detection_metrics import FloatArray, IntArray, auroc, rank_scores


def drawn(num_images: int, num_resamples: int, seed: int = 0) -> IntArray:
    return np.concatenate(list(resamples(num_images, num_resamples, seed=seed)))


def mean_of(values: FloatArray, weights: IntArray) -> FloatArray:
    means: FloatArray = (weights @ values / weights.sum(axis=1))[:, None]
    return means


def test_resamples_draw_as_many_images_as_there_are() -> None:
    counts = drawn(40, 500)
    assert counts.shape == (500, 40)
    assert (counts.sum(axis=1) == 40).all()
    # Each image is left out of a resample with probability (1 - 1/n)^n.
    share = (counts == 0).mean()
    assert abs(share - (1 - 1 / 40) ** 40) < 4 * np.sqrt(0.37 * 0.63 / counts.size)


def test_resamples_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(50, 60)
    assert not np.array_equal(drawn(50, 60, seed=1), whole)
    assert np.array_equal(drawn(50, 30), whole[:30])
    monkeypatch.setattr("cdvae_ray.evaluation.bootstrap._BLOCK_ELEMENTS", 350)
    assert [len(block) for block in resamples(50, 60, seed=0)] == [7] * 8 + [4]
    assert np.array_equal(drawn(50, 60), whole)


def test_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    (mean,) = bootstrap(lambda weights: mean_of(values, weights), 2000, seed=0)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert mean.value == pytest.approx(values.mean())
    # The ends of 1,000 resamples' interval are known to about 5 % of its half width.
    assert mean.low == pytest.approx(mean.value - half, abs=0.2 * half)
    assert mean.high == pytest.approx(mean.value + half, abs=0.2 * half)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    images, repeats, places = 80, 200, np.arange(80)
    held = 0
    for repeat in range(repeats):
        # Clean and adversarial scores share what is the image's own; in truth AUROC is 0.5.
        own = rng.normal(size=images)
        clean, adversarial = (own + rng.normal(size=images) for _ in range(2))
        ranked = rank_scores(clean, adversarial, negative_images=places, positive_images=places)
        (area,) = bootstrap(
            lambda weights, ranked=ranked: auroc(ranked.counts(weights))[:, None],
            images,
            seed=repeat,
            num_resamples=200,
        )
        held += area.low <= 0.5 <= area.high
    # 95 % less 4 standard errors of 200 draws, and less 1 % for so few resamples and images.
    assert 0.95 - 4 * 0.0154 - 0.01 <= held / repeats < 1.0


def test_pairing_cancels_what_two_methods_share() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=300)
    first, second = shared + 0.01, shared
    (difference,) = bootstrap(
        lambda weights: mean_of(first, weights) - mean_of(second, weights), 300, seed=0
    )
    assert difference.low == pytest.approx(0.01) and difference.high == pytest.approx(0.01)


def test_percentiles_are_central() -> None:
    low, high = percentile_interval(np.arange(1001.0), level=0.9)
    assert (low, high) == (pytest.approx(50), pytest.approx(950))


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ConfigError, match="images to resample"):
        drawn(0, 10)
    with pytest.raises(ConfigError, match="num_resamples"):
        drawn(10, 0)
