"""Correlations of latents and their p-values against SciPy's pearsonr and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.correlation import (
    NUM_BINS,
    SIGNIFICANCE,
    LatentCorrelation,
    latent_correlation,
    p_values,
)
from cdvae_ray.evaluation.moments import paired_moments, reduce_paired


def latents(count, shares, seed=0):
    """z and z', whose dimensions correlate as the shares say, about."""
    rng = np.random.default_rng(seed)
    shares = np.asarray(shares, dtype=float)
    z = rng.normal(size=(count, len(shares)))
    other = rng.normal(size=z.shape)
    return torch.from_numpy(z), torch.from_numpy(shares * z + np.sqrt(1 - shares**2) * other)


def made(correlations, p=None, images=10):
    correlations = np.array(correlations, dtype=float)
    p = p_values(torch.from_numpy(correlations), images) if p is None else np.array(p)
    return LatentCorrelation(images=images, correlations=correlations, p_values=p)


@pytest.mark.parametrize("count", [3, 4, 5, 10, 101, 2000])
def test_r_and_p_are_those_of_scipy(count):
    z, other = latents(count, [0.0, 0.001, -0.02, 0.3, -0.5, 0.9, 0.999, -0.99999], seed=count)
    found = latent_correlation(paired_moments(z, other))
    assert found.images == count and found.constant_dimensions == 0
    for place in range(z.shape[1]):
        theirs = stats.pearsonr(z[:, place].numpy(), other[:, place].numpy())
        np.testing.assert_allclose(found.correlations[place], theirs.statistic, rtol=1e-10)
        np.testing.assert_allclose(found.p_values[place], theirs.pvalue, rtol=1e-6, atol=1e-300)


def test_p_has_a_closed_form_for_few_images():
    near_one = [1 - 1e-6, 1 - 1e-12, -1 + 1e-12, 1.0, -1.0]
    r = torch.tensor([0.0, 1e-12, 0.2, -0.2, 0.75, *near_one], dtype=torch.float64)
    size = np.abs(r.numpy())
    half = (1 - size) / 2
    np.testing.assert_allclose(p_values(r, 3), 4 / np.pi * np.arcsin(np.sqrt(half)), rtol=1e-12)
    np.testing.assert_allclose(p_values(r, 4), 1 - size, rtol=1e-12)
    np.testing.assert_allclose(p_values(r, 6), 2 * (3 * half**2 - 2 * half**3), rtol=1e-12)


def test_p_is_that_of_students_t():
    r = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)
    for count in (5, 30, 500):
        t = r.abs().numpy() * np.sqrt((count - 2) / (1 - r.numpy() ** 2))
        expected = 2 * stats.t.sf(t, count - 2)
        np.testing.assert_allclose(p_values(r, count), expected, rtol=1e-9)


@pytest.mark.parametrize("count", [3, 8, 200])
def test_p_is_a_probability_that_falls_as_r_grows(count):
    p = p_values(torch.linspace(0, 1, 101, dtype=torch.float64), count)
    assert p[0] == pytest.approx(1, abs=1e-14) and p[-1] == 0
    assert (np.diff(p) <= 0).all() and p.min() >= 0 and p.max() <= 1
    r = torch.tensor([0.3, float("nan")])
    assert p_values(r, count)[0] == p_values(-r, count)[0]
    assert np.isnan(p_values(r, count)).tolist() == [False, True]


@pytest.mark.parametrize("count", [4, 25])
def test_p_of_independent_latents_is_uniform(count):
    found = latent_correlation(paired_moments(*latents(count, np.zeros(3000), seed=1)))
    assert stats.kstest(found.p_values, "uniform").pvalue > 1e-3
    # Of all dimensions together one is above chance in 5 % of studies.
    assert found.significant_share <= 3 / 3000


def test_dimensions_that_do_not_vary_are_counted_and_left_out():
    z, other = (each.float() for each in latents(40, [0.95, 0.5, 0.1, 0.0, 0.9]))
    z[:, 1], other[:, 3] = 0.1, 0.25
    found = latent_correlation(
        reduce_paired([paired_moments(z[:13], other[:13]), paired_moments(z[13:], other[13:])])
    )
    assert found.constant_dimensions == 2
    assert np.isnan(found.correlations).tolist() == [False, True, False, True, False]
    assert np.isnan(found.p_values).tolist() == [False, True, False, True, False]
    varying = found.correlations[[0, 2, 4]]
    assert found.defined.tolist() == varying.tolist()
    assert sum(found.histogram()) == 3
    assert found.quantiles()["median"] == np.median(varying)


def test_the_share_above_chance_is_of_dimensions_that_vary():
    p = SIGNIFICANCE / 4
    nan = float("nan")
    found = made([0.1, 0.2, 0.3, 0.4, nan], [p * 0.99, p * 1.01, 0.04, 1e-9, nan])
    assert found.significant_share == 0.5


def test_quantiles_are_numpys():
    r = np.random.default_rng(0).uniform(-1, 1, size=333)
    assert made(r).quantiles() == {
        "min": r.min(),
        "q05": np.quantile(r, 0.05),
        "median": np.median(r),
        "max": r.max(),
    }


def test_the_histogram_holds_every_dimension_once():
    r = np.random.default_rng(1).uniform(-0.4, 1, size=500)
    found = made([*r, 1.0, 1.0, float("nan")])
    for low in (-1.0, -0.5, float(r.min())):
        counts = found.histogram(low)
        assert len(counts) == NUM_BINS and sum(counts) == 502
        edges = np.linspace(low, 1, NUM_BINS + 1)
        for place in (0, 17, NUM_BINS - 2):
            inside = (r >= edges[place]) & (r < edges[place + 1])
            assert counts[place] == inside.sum()
        assert counts[-1] == (r >= edges[-2]).sum() + 2
    assert made([-1.0, 1.0]).histogram() == [1, *[0] * (NUM_BINS - 2), 1]


def test_too_few_images_are_refused():
    z, other = latents(2, [0.5, 0.5])
    with pytest.raises(DataError, match="images of a correlation: got 2"):
        latent_correlation(paired_moments(z, other))


def test_a_collapsed_posterior_is_refused():
    z = torch.full((9, 4), 0.1)
    with pytest.raises(DataError, match=r"latent dimensions: got 4, none of which varies"):
        latent_correlation(paired_moments(z, torch.randn(9, 4)))
