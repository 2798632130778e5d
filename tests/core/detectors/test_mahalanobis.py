"""Mahalanobis scores against scikit-learn, SciPy and a literal loop."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.covariance import EmpiricalCovariance

from cdvae_ray.core.detectors.mahalanobis import fit_mahalanobis
from cdvae_ray.core.detectors.mahalanobis_input import mahalanobis_input_scores
from cdvae_ray.core.detectors.moments import class_moments
from cdvae_ray.errors import ConfigError, DataError
from tests.core.detectors.synthetic import NUM_CLASSES, gaussian_classes


def fitted(features, labels, **options):
    return fit_mahalanobis(class_moments(features, labels, NUM_CLASSES), **options)


def means_and_centred(features, labels):
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(NUM_CLASSES)])
    return means, features - means[labels]


def reference_distances(features, labels, queries, precision):
    """(q - mu_c)^T P (q - mu_c), class by class and query by query."""
    means, _ = means_and_centred(features, labels)
    return np.array(
        [[(q - mean) @ precision @ (q - mean) for mean in means.numpy()] for q in queries.numpy()]
    )


def test_distances_are_those_of_scikit_learn():
    features, labels = gaussian_classes(400)
    queries, _ = gaussian_classes(50, seed=1)
    _, centred = means_and_centred(features, labels)
    oracle = EmpiricalCovariance(assume_centered=True).fit(centred.numpy())
    expected = reference_distances(features, labels, queries, oracle.get_precision())
    for precision in ("pinvh", "cholesky"):
        detector = fitted(features, labels, precision=precision)
        np.testing.assert_allclose(detector.squared_distances(queries), expected, rtol=1e-9)
        np.testing.assert_allclose(detector.score(queries), 0.5 * expected.min(axis=1), rtol=1e-9)


def test_dead_and_dependent_channels_are_left_out_as_by_pinvh():
    features, labels = gaussian_classes(300)
    features = torch.cat([features, torch.full((300, 1), 30.1), features[:, :1] * 2], dim=1)
    queries, _ = gaussian_classes(40, seed=1)
    queries = torch.cat([queries, torch.full((40, 1), 31.0), queries[:, :1] * 2 + 0.5], dim=1)
    _, centred = means_and_centred(features, labels)
    precision = scipy.linalg.pinvh((centred.T @ centred / 300).numpy())
    expected = reference_distances(features, labels, queries, precision)
    detector = fitted(features, labels)
    assert detector.whitening.shape == (10, 8)
    np.testing.assert_allclose(detector.squared_distances(queries), expected, rtol=1e-9)
    woken = queries.clone()
    woken[:, 8] += 1e3
    torch.testing.assert_close(detector.score(woken), detector.score(queries))


def test_a_ridge_weighs_dead_channels_instead():
    features, labels = gaussian_classes(300)
    features = torch.cat([features, torch.zeros(300, 1)], dim=1)
    queries, _ = gaussian_classes(40, seed=1)
    queries = torch.cat([queries, torch.ones(40, 1)], dim=1)
    _, centred = means_and_centred(features, labels)
    covariance = (centred.T @ centred / 300).numpy()
    ridged = covariance + 1e-3 * np.trace(covariance) / 9 * np.eye(9)
    expected = reference_distances(features, labels, queries, np.linalg.inv(ridged))
    detector = fitted(features, labels, precision="cholesky", ridge=1e-3)
    np.testing.assert_allclose(detector.squared_distances(queries), expected, rtol=1e-9)
    with pytest.raises(DataError, match="singular"):
        fitted(features, labels, precision="cholesky")


def test_fewer_images_than_features_make_a_singular_covariance():
    features, labels = gaussian_classes(20, 40)
    assert fitted(features, labels).whitening.shape == (40, 20 - NUM_CLASSES)
    with pytest.raises(DataError, match="singular"):
        fitted(features, labels, precision="cholesky")


def test_a_linear_map_of_the_features_changes_no_score():
    features, labels = gaussian_classes(300)
    queries, _ = gaussian_classes(40, seed=1)
    generator = torch.Generator().manual_seed(5)
    mapping = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        fitted(features @ mapping + 7, labels).score(queries @ mapping + 7),
        fitted(features, labels).score(queries),
        rtol=1e-9,
        atol=1e-9,
    )


def test_float32_agrees_to_its_precision_even_where_tf32_is_asked_for():
    features, labels = gaussian_classes(300, dtype=torch.float32)
    queries, _ = gaussian_classes(40, seed=1, dtype=torch.float32)
    detector = fitted(features, labels)
    previous = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            single = detector.to(dtype=torch.float32).score(queries)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(previous)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), detector.score(queries), rtol=1e-4, atol=1e-4)


def test_scores_have_the_right_gradients():
    features, labels = gaussian_classes(60, 4)
    queries, _ = gaussian_classes(5, 4, seed=1)
    assert torch.autograd.gradcheck(fitted(features, labels).score, queries.requires_grad_())


def test_what_cannot_be_fitted_is_refused():
    features, labels = gaussian_classes(30)
    with pytest.raises(DataError, match="none of class 3"):
        fit_mahalanobis(class_moments(features, labels, NUM_CLASSES + 1))
    with pytest.raises(DataError, match="no variation"):
        fitted(torch.ones(30, 8), labels)
    for options in (
        {"precision": "lu"},
        {"ridge": 0.1},
        {"precision": "cholesky", "ridge": -1.0},
        {"precision": "cholesky", "ridge": float("nan")},
    ):
        with pytest.raises(ConfigError, match=r"ridge|precision"):
            fitted(features, labels, **options)
    with pytest.raises(DataError, match=r"expected shape \(N, 8\)"):
        fitted(features, labels).score(features[:, :4])


# --- the input step -----------------------------------------------------------------------------


class TwoLayers(torch.nn.Module):
    """Images (N, 3, 4, 4) to two layers' features; counts its forward passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 5, 3).double()
        self.second = torch.nn.Conv2d(5, 4, 2).double()
        self.forwards = 0

    def forward(self, images):
        self.forwards += 1
        hidden = torch.tanh(self.first(images))
        return {"first": hidden.mean(dim=(2, 3)), "second": self.second(hidden)[:, :, 0, 0]}


@pytest.fixture
def network():
    return TwoLayers()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(7, 3, 4, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def detectors(network):
    generator = torch.Generator().manual_seed(2)
    training = torch.rand(200, 3, 4, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        features = network(training)
    network.forwards = 0
    labels = torch.arange(200) % NUM_CLASSES
    return {name: fitted(each, labels) for name, each in features.items()}


MAGNITUDES, STD = (0.0, 0.01, 0.002), (0.2, 0.5, 1.25)


@pytest.mark.parametrize("clip", [False, True])
def test_input_scores_are_those_of_a_loop_over_magnitudes_layers_and_images(
    network, images, detectors, clip
):
    scores = mahalanobis_input_scores(network, images, detectors, MAGNITUDES, std=STD, clip=clip)
    divisor = torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
    for name, detector in detectors.items():
        for row, magnitude in enumerate(MAGNITUDES):
            for column, image in enumerate(images):
                variable = image[None].clone().requires_grad_()
                confidence = -detector.score(network(variable)[name])  # the reference's max_c s
                (-confidence).sum().backward()
                stepped = variable.detach() - magnitude * variable.grad.sign() / divisor
                stepped = stepped.clamp(0, 1) if clip and magnitude else stepped
                expected = detector.score(network(stepped)[name])
                torch.testing.assert_close(scores[name][row, column], expected[0], rtol=1e-9,
                                           atol=1e-12)  # fmt: skip


def test_one_forward_serves_all_gradients_and_no_parameter_gets_one(network, images, detectors):
    scores = mahalanobis_input_scores(network, images, detectors, MAGNITUDES)
    assert network.forwards == 1 + len(detectors) * 2
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(each.shape == (3, 7) and not each.requires_grad for each in scores.values())
    assert not images.requires_grad
    with torch.no_grad():
        again = mahalanobis_input_scores(network, images, detectors, MAGNITUDES)
    assert torch.equal(again["second"], scores["second"])


def test_a_small_step_lowers_the_score(network, images, detectors):
    scores = mahalanobis_input_scores(network, images, detectors, (0.0, 1e-4))
    for rows in scores.values():
        assert (rows[1] < rows[0]).all()


def test_impossible_input_steps_are_refused(network, images, detectors):
    def scored(feature_fn=network, images=images, detectors=detectors, magnitudes=(0.0,), **more):
        return mahalanobis_input_scores(feature_fn, images, detectors, magnitudes, **more)

    with pytest.raises(ConfigError, match="detectors"):
        scored(detectors={})
    for magnitudes in ((), (-0.1,), (float("inf"),)):
        with pytest.raises(ConfigError, match="magnitudes"):
            scored(magnitudes=magnitudes)
    with pytest.raises(ConfigError, match="std"):
        scored(std=(1.0, 0.0, 1.0))
    with pytest.raises(DataError, match="images"):
        scored(std=(1.0,))
    with pytest.raises(DataError, match="layers of the features"):
        scored(detectors={"third": detectors["first"]})
    with pytest.raises(ConfigError, match="no gradient"):
        scored(lambda x: {name: each.detach() for name, each in network(x).items()})
