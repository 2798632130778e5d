"""The Frechet distance against closed forms, SciPy's matrix root, and its own symmetries."""

import numpy as np
import pytest
import scipy.linalg
import torch

from cdvae_ray.core.detectors.moments import ClassMoments, class_moments, reduce_moments
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.frechet import feature_moments, frechet_distance


def features(count, width, *, seed=0, shift=0.0):
    """Correlated features whose deviations differ."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.geomspace(0.2, 2, width)
    return rng.normal(size=(count, width)) @ mixing + shift


def distance(first, second):
    return frechet_distance(*(feature_moments(torch.as_tensor(each)) for each in (first, second)))


def gaussian(mean, covariance):
    """The moments of 11 images with exactly this mean and covariance."""
    mean, covariance = (torch.as_tensor(each, dtype=torch.float64) for each in (mean, covariance))
    return ClassMoments(counts=torch.tensor([11]), means=mean[None], scatter=10 * covariance)


def by_root(first, second):
    """The textbook's form, by SciPy's root of a product that is not symmetric."""
    shift = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(one @ two)
    return float(shift + np.trace(one) + np.trace(two) - 2 * np.trace(root).real)


def by_singular_values(first, second):
    """For any rank: tr (C1 C2)^(1/2) is the sum of the singular values of A B^T, C1 = A^T A."""
    one, two = ((each - each.mean(axis=0)) / np.sqrt(len(each) - 1) for each in (first, second))
    shift = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    shared = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    return float(shift + (one**2).sum() + (two**2).sum() - 2 * shared)


@pytest.mark.parametrize(("width", "counts"), [(2, (9, 30)), (5, (40, 40)), (12, (300, 60))])
def test_full_rank_agrees_with_scipys_matrix_root(width, counts):
    first = features(counts[0], width)
    second = features(counts[1], width, seed=1, shift=0.3)
    expected = by_root(first, second)
    assert expected > 1
    np.testing.assert_allclose(distance(first, second), expected, rtol=1e-8)
    np.testing.assert_allclose(by_singular_values(first, second), expected, rtol=1e-8)


def test_one_feature_has_a_closed_form():
    first, second = features(25, 1), features(40, 1, seed=1, shift=2.0)
    shift, gap = first.mean() - second.mean(), first.std(ddof=1) - second.std(ddof=1)
    np.testing.assert_allclose(distance(first, second), shift**2 + gap**2, rtol=1e-12)


def test_known_gaussians():
    rng = np.random.default_rng(0)
    one, two = rng.uniform(0.1, 3, size=(2, 6))
    mean = rng.normal(size=6)
    basis = scipy.linalg.qr(rng.normal(size=(6, 6)))[0]

    def turned(variances):
        return basis @ np.diag(variances) @ basis.T

    # Covariances that share their axes: the deviations' own distance.
    found = frechet_distance(gaussian(mean, turned(one**2)), gaussian(-mean, turned(two**2)))
    expected = 4 * (mean**2).sum() + ((one - two) ** 2).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # A shift alone.
    found = frechet_distance(gaussian(0 * mean, turned(one**2)), gaussian(mean, turned(one**2)))
    np.testing.assert_allclose(found, (mean**2).sum(), rtol=1e-12)
    # A point.
    found = frechet_distance(gaussian(mean, 0 * turned(one)), gaussian(mean, turned(one**2)))
    np.testing.assert_allclose(found, (one**2).sum(), rtol=1e-7)


def test_a_shift_of_images_gives_its_square_alone():
    first = features(50, 8)
    shift = np.linspace(-1, 2, 8)
    np.testing.assert_allclose(distance(first, first + shift), (shift**2).sum(), rtol=1e-9)


def test_a_stretch_of_images_has_a_closed_form():
    first = features(50, 8)
    first -= first.mean(axis=0)
    spread = np.trace(np.cov(first, rowvar=False))
    np.testing.assert_allclose(distance(first, 3 * first), 4 * spread, rtol=1e-9)


@pytest.mark.parametrize(("count", "width"), [(50, 6), (10, 40)])
def test_equal_moments_are_at_no_distance(count, width):
    first = features(count, width)
    spread = np.trace(np.cov(first, rowvar=False))
    assert 0 <= distance(first, first) <= 1e-9 * spread
    assert 0 <= distance(first, first[::-1].copy()) <= 1e-9 * spread


@pytest.mark.parametrize("counts", [(60, 45), (8, 5)])
def test_it_is_symmetric(counts):
    first, second = features(counts[0], 12), features(counts[1], 12, seed=1, shift=0.2)
    np.testing.assert_allclose(distance(first, second), distance(second, first), rtol=1e-7)


@pytest.mark.parametrize(("counts", "width"), [((2, 2), 5), ((2, 30), 10), ((10, 8), 64)])
def test_fewer_images_than_features(counts, width):
    first, second = features(counts[0], width), features(counts[1], width, seed=1, shift=0.1)
    found = distance(first, second)
    assert np.isfinite(found) and found > 0
    np.testing.assert_allclose(found, by_singular_values(first, second), rtol=1e-6)


def test_it_does_not_depend_on_the_axes():
    first, second = features(40, 7), features(30, 7, seed=1)
    basis = scipy.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))[0]
    np.testing.assert_allclose(
        distance(first @ basis, second @ basis), distance(first, second), rtol=1e-9
    )


def test_features_that_never_vary_change_nothing():
    # Units of a rectified network that no image wakes.
    first, second = features(40, 4), features(30, 4, seed=1)
    padded = [np.hstack([each, np.zeros((len(each), 3))]) for each in (first, second)]
    np.testing.assert_allclose(distance(*padded), distance(first, second), rtol=1e-9)


def test_few_images_of_one_distribution_are_biased_upwards():
    def mean_distance(count):
        drawn = features(10 * count, 10).reshape(5, 2, count, 10)
        return np.mean([distance(*halves) for halves in drawn])

    few, some, many = (mean_distance(count) for count in (15, 60, 240))
    assert few > 2 * some > 4 * many > 0


@pytest.mark.parametrize("shards", [2, 7])
def test_shards_merge_to_the_moments_of_all_images(shards):
    first, second = features(70, 5), features(35, 5, seed=1)
    merged = reduce_moments(
        feature_moments(part) for part in torch.from_numpy(first).tensor_split(shards)
    )
    assert int(merged.counts) == 70
    found = frechet_distance(merged, feature_moments(torch.from_numpy(second)))
    np.testing.assert_allclose(found, distance(first, second), rtol=1e-10)


def test_a_single_image_is_refused_on_either_side():
    some, one = features(5, 3), features(1, 3)
    for pair in ((some, one), (one, some)):
        with pytest.raises(DataError, match="images of a Frechet distance: got 1"):
            distance(*pair)


def test_features_of_different_extractors_are_refused():
    with pytest.raises(DataError, match=r"features of a Frechet distance: got .*\(1, 3\) and"):
        distance(features(5, 3), features(5, 4))
    labels = torch.arange(6) % 2
    by_class = class_moments(torch.from_numpy(features(6, 3)), labels, 2)
    with pytest.raises(DataError, match="one class"):
        frechet_distance(by_class, by_class)


def test_features_that_are_not_finite_are_refused():
    broken = features(5, 3)
    broken[2, 1] = np.nan
    with pytest.raises(DataError, match="NaN or infinity in 1 of 5 rows"):
        distance(broken, broken)
