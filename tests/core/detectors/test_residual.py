"""Residuals against numpy, and the Jensen-Shannon divergence against SciPy and its properties."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from cdvae_ray.core.detectors.residual import disagreement, residual_l2, residual_linf
from cdvae_ray.errors import DataError


def pair(*shape, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return first, second


def test_residuals_are_norms_an_image():
    images, reconstructions = pair(6, 3, 4, 4)
    difference = (images - reconstructions).flatten(1).numpy()
    np.testing.assert_allclose(
        residual_l2(images, reconstructions), np.linalg.norm(difference, axis=1)
    )
    np.testing.assert_allclose(
        residual_linf(images, reconstructions), np.abs(difference).max(axis=1)
    )
    assert residual_l2(images, images).tolist() == [0.0] * 6
    assert residual_linf(images, images).tolist() == [0.0] * 6


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_disagreement_is_the_divergence_of_scipy(scale):
    first, second = pair(20, 10, scale=scale)
    p, q = first.softmax(dim=1).numpy(), second.softmax(dim=1).numpy()
    expected = jensenshannon(p, q, axis=1) ** 2
    np.testing.assert_allclose(disagreement(first, second), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disagreement_is_symmetric_bounded_and_zero_where_equal(scale, dtype):
    first, second = (each.to(dtype) for each in pair(50, 10, scale=scale))
    divergence = disagreement(first, second)
    torch.testing.assert_close(divergence, disagreement(second, first))
    assert (divergence >= 0).all() and (divergence <= math.log(2)).all()
    assert (divergence > 0).any()
    assert disagreement(first, first).max() <= 1e-6 * (dtype == torch.float32) + 1e-15
    torch.testing.assert_close(
        disagreement(first + 5, second - 7), divergence, rtol=1e-3, atol=1e-5
    )


def test_opposite_certainties_disagree_by_log_2():
    logits = torch.tensor([[2000.0, 0.0]])
    assert disagreement(logits, -logits).item() == pytest.approx(math.log(2))


def test_rounding_does_not_leave_the_interval():
    near, offsets = pair(2000, 10)
    near = near.float()
    close = disagreement(near, near + 1e-4 * offsets.float())
    assert close.min() >= 0 and close.max() < 1e-6
    first, second = 60 * torch.eye(10), 60 * torch.eye(10).roll(1, dims=0)
    for dtype in (torch.float32, torch.float64):
        assert (disagreement(first.to(dtype), second.to(dtype)) <= math.log(2)).all()


def test_gradients_are_right():
    images, reconstructions = pair(3, 2, 3)
    for score in (residual_l2, residual_linf):
        assert torch.autograd.gradcheck(
            score, (images.clone().requires_grad_(), reconstructions.clone().requires_grad_())
        )
    logits = tuple(each.clone().requires_grad_() for each in pair(4, 5))
    assert torch.autograd.gradcheck(disagreement, logits)


def test_mismatched_pairs_are_refused():
    images, reconstructions = pair(3, 5)
    for score in (residual_l2, residual_linf, disagreement):
        for wrong in (reconstructions[:2], reconstructions.long()):
            with pytest.raises(DataError, match=r"of two classifiers|and reconstructions"):
                score(images, wrong)
        with pytest.raises(DataError, match="at least one image"):
            score(images[:0], images[:0])
    with pytest.raises(DataError, match="not finite"):
        disagreement(images * torch.inf, reconstructions)
