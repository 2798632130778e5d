"""Intervals against SciPy."""

import pytest
from scipy.stats import binomtest

from cdvae_ray.evaluation.intervals import wilson


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 50), (7, 20), (999, 1000)])
def test_wilson_agrees_with_scipy(successes, count):
    theirs = binomtest(successes, count).proportion_ci(method="wilson")
    ours = wilson(successes, count)
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
