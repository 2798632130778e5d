"""Kernel densities against scikit-learn's exact ones and sums written out."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity as SklearnKernelDensity

from cdvae_ray.core.detectors import kernel_density as module
from cdvae_ray.core.detectors.bandwidth import choose_bandwidth
from cdvae_ray.core.detectors.kernel_density import fit_kernel_density, merge_kernel_sums
from cdvae_ray.errors import ConfigError, DataError
from tests.core.detectors.synthetic import NUM_CLASSES, gaussian_classes


def direct_scores(features, labels, queries, predictions, bandwidth):
    """-log of the mean of Gaussian densities, a query at a time."""
    width = features.shape[1]
    scores = []
    for query, prediction in zip(queries, predictions, strict=True):
        references = features[labels == prediction]
        exponents = -(references - query).square().sum(dim=1) / (2 * bandwidth**2)
        log_normalizer = 0.5 * width * math.log(2 * math.pi * bandwidth**2)
        scores.append(
            math.log(len(references)) + log_normalizer - torch.logsumexp(exponents, dim=0)
        )
    return torch.stack(scores)


@pytest.mark.parametrize(("width", "bandwidth"), [(3, 0.26), (64, 1.2), (640, 0.26)])
def test_scores_are_those_of_scikit_learn_without_its_tree(width, bandwidth):
    features, labels = gaussian_classes(150, width)
    queries, predictions = gaussian_classes(30, width, seed=1)
    density = fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=bandwidth)
    scores = density.score(queries, predictions).numpy()
    for label in range(NUM_CLASSES):
        # Its tree prunes by bounds that are too loose in high dimension; one leaf is exact.
        oracle = SklearnKernelDensity(bandwidth=bandwidth, leaf_size=10**9)
        oracle.fit(features[labels == label].numpy())
        rows = (predictions == label).numpy()
        np.testing.assert_allclose(
            scores[rows], -oracle.score_samples(queries.numpy()[rows]), rtol=1e-6
        )


def test_blocks_change_nothing(monkeypatch):
    features, labels = gaussian_classes(100)
    queries, predictions = gaussian_classes(40, seed=1)
    density = fit_kernel_density(features + 30, labels, NUM_CLASSES, bandwidth=0.5)
    expected = direct_scores(features + 30, labels, queries + 30, predictions, 0.5)
    torch.testing.assert_close(density.score(queries + 30, predictions), expected)
    monkeypatch.setattr(module, "_QUERY_ROWS", 3)
    monkeypatch.setattr(module, "_REFERENCE_ROWS", 7)
    torch.testing.assert_close(density.score(queries + 30, predictions), expected)


def test_shards_merge_to_the_whole_though_classes_are_missing_in_some():
    features, labels = gaussian_classes(120)
    queries, predictions = gaussian_classes(40, seed=1)
    order = labels.argsort(stable=True)  # so that the first shard lacks the last class
    shards = [
        fit_kernel_density(features[rows], labels[rows], NUM_CLASSES, bandwidth=0.5, is_shard=True)
        for rows in (order[:50], order[50:51], order[51:])
    ]
    assert 0 in shards[0].counts
    with pytest.raises(DataError, match="a class without references"):
        shards[0].score(queries, predictions)
    sums = [shard.kernel_sums(queries, predictions) for shard in shards]
    merged = merge_kernel_sums(merge_kernel_sums(sums[0], sums[1]), sums[2])
    whole = fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=0.5)
    torch.testing.assert_close(
        shards[0].score_of_sums(merged), whole.score(queries, predictions), rtol=1e-12, atol=1e-12
    )
    with pytest.raises(DataError, match="kernel sums to merge"):
        merge_kernel_sums(sums[0], whole.kernel_sums(queries[:3], predictions[:3]))


def test_far_queries_keep_a_finite_and_exact_score():
    features, labels = gaussian_classes(50)
    density = fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=0.26)
    far = features[:1] + 1e4
    expected = direct_scores(features, labels, far, labels[:1], 0.26)
    torch.testing.assert_close(density.score(far, labels[:1]), expected, rtol=1e-12, atol=0)


def test_float32_agrees_to_its_precision():
    features, labels = gaussian_classes(100, 64, dtype=torch.float32)
    queries, predictions = gaussian_classes(40, 64, seed=1, dtype=torch.float32)
    density = fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=1.0)
    single = density.to(dtype=torch.float32).score(queries, predictions)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), density.score(queries, predictions),
                               rtol=1e-5, atol=1e-3)  # fmt: skip


def test_constant_features_have_the_density_of_one_kernel():
    density = fit_kernel_density(torch.ones(6, 2), torch.arange(6) % 3, 3, bandwidth=0.5)
    expected = math.log(2 * math.pi * 0.25)
    assert density.score(torch.ones(1, 2), torch.tensor([1])).item() == pytest.approx(expected)


def test_scores_have_the_right_gradients(monkeypatch):
    features, labels = gaussian_classes(30, 3)
    queries, predictions = gaussian_classes(5, 3, seed=1)
    density = fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=0.8)
    monkeypatch.setattr(module, "_REFERENCE_ROWS", 4)
    assert torch.autograd.gradcheck(
        lambda x: density.score(x, predictions), queries.requires_grad_()
    )


def test_the_bandwidth_is_the_likeliest_of_images_held_out():
    features, labels = gaussian_classes(600, 2)
    candidates = (0.01, 0.1, 0.3, 1.0, 10.0)
    choice = choose_bandwidth(features, labels, NUM_CLASSES, candidates, seed=4)
    assert choice.bandwidth in (0.1, 0.3)
    assert choice.bandwidth == candidates[int(np.argmax(choice.log_likelihoods))]
    again = choose_bandwidth(features, labels, NUM_CLASSES, candidates, seed=4)
    assert again == choice
    assert choose_bandwidth(features, labels, NUM_CLASSES, candidates, seed=5) != choice


def test_likelihoods_are_means_over_the_images_held_out_of_each_class():
    # Two images a class, of which one is held out: its density is one kernel around the other.
    features = torch.tensor([[0.0], [3.0], [10.0], [14.0]], dtype=torch.float64)
    choice = choose_bandwidth(features, torch.tensor([0, 0, 1, 1]), 2, (1.0, 2.0))
    expected = [
        sum(-(d**2) / (2 * h * h) - 0.5 * math.log(2 * math.pi * h * h) for d in (3, 4)) / 2
        for h in (1.0, 2.0)
    ]
    assert choice.log_likelihoods == pytest.approx(expected)
    assert choice.bandwidth == 2.0


def test_what_cannot_be_fitted_is_refused():
    features, labels = gaussian_classes(30)
    for bandwidth in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="bandwidth"):
            fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=bandwidth)
    with pytest.raises(DataError, match="none of class 3"):
        fit_kernel_density(features, labels, NUM_CLASSES + 1, bandwidth=1.0)
    with pytest.raises(DataError, match="NaN"):
        fit_kernel_density(features * torch.nan, labels, NUM_CLASSES, bandwidth=1.0)
    with pytest.raises(DataError, match="labels: got classes 0 to 2"):
        fit_kernel_density(features, labels, 2, bandwidth=1.0)
    density = fit_kernel_density(features, labels, NUM_CLASSES, bandwidth=1.0)
    with pytest.raises(DataError, match="predictions"):
        density.score(features, labels + 1)
    with pytest.raises(DataError, match=r"\(N, 8\)"):
        density.score(features[:, 1:], labels)
    with pytest.raises(ConfigError, match="bandwidth: got none"):
        choose_bandwidth(features, labels, NUM_CLASSES, ())
    with pytest.raises(ConfigError, match="holdout_fraction"):
        choose_bandwidth(features, labels, NUM_CLASSES, (1.0,), holdout_fraction=1.0)
    with pytest.raises(DataError, match="at least 2 of each class"):
        choose_bandwidth(features[:4], torch.tensor([0, 0, 1, 1]), 3, (1.0,))
