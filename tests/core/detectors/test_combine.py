"""The standardised sum against scikit-learn's scaler."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from cdvae_ray.core.detectors.combine import fit_standardizer
from cdvae_ray.errors import DataError

NAMES = ("conv1", "layer1", "layer2")


def scores(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 20.0, 1e-3]) + 5


def by_name(columns):
    return dict(zip(NAMES, columns.unbind(dim=1), strict=True))


def test_the_sum_is_that_of_standard_scaler_in_either_form():
    clean, queries = scores(200), scores(30, seed=1)
    expected = StandardScaler().fit(clean.double().numpy()).transform(queries.double().numpy())
    np.testing.assert_allclose(fit_standardizer(clean).score(queries), expected.sum(axis=1))
    named = fit_standardizer(by_name(clean))
    shuffled = dict(reversed(by_name(queries).items()))
    np.testing.assert_allclose(named.score(shuffled), expected.sum(axis=1))


def test_units_of_a_layer_do_not_matter_and_more_is_more_adversarial():
    clean, queries = scores(200), scores(30, seed=1)
    units = torch.tensor([3.0, 0.01, 1.0])
    torch.testing.assert_close(
        fit_standardizer(clean * units).score(queries * units),
        fit_standardizer(clean).score(queries), rtol=1e-4, atol=1e-3,
    )  # fmt: skip
    fitted = fit_standardizer(clean)
    for layer in range(3):
        raised = queries.clone()
        raised[:, layer] += 1
        assert (fitted.score(raised) > fitted.score(queries)).all()


def test_gradients_are_right():
    queries = scores(4).double().requires_grad_()
    assert torch.autograd.gradcheck(fit_standardizer(scores(20).double()).score, queries)


def test_mismatched_layers_are_refused():
    clean = scores(20)
    named, unnamed = fit_standardizer(by_name(clean)), fit_standardizer(clean)
    missing = dict.fromkeys(NAMES[:2], clean[:, 0])
    for fitted, wrong in (
        (named, missing),
        (named, {**by_name(clean), "logits": clean[:, 0]}),
        (named, clean),
        (unnamed, by_name(clean)),
    ):
        with pytest.raises(DataError, match="layers of the scores"):
            fitted.score(wrong)
    with pytest.raises(DataError, match=r"\(N, 3\)"):
        unnamed.score(clean[:, :2])
    with pytest.raises(DataError, match="scores by layer"):
        named.score({**by_name(clean), "conv1": clean[:3, 0]})


def test_what_cannot_be_fitted_is_refused():
    clean = scores(20)
    clean[:, 1] = 0.1
    with pytest.raises(DataError, match="one value for all images in column 1"):
        fit_standardizer(clean)
    with pytest.raises(DataError, match="one value for all images in layer1"):
        fit_standardizer(by_name(clean))
    with pytest.raises(DataError, match="NaN"):
        fit_standardizer(clean * torch.nan)
    with pytest.raises(DataError, match="empty"):
        fit_standardizer(clean[:0])
    with pytest.raises(DataError, match="layers of the scores: got none"):
        fit_standardizer({})
