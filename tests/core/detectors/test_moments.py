"""Moments against one exact pass, however the images are cut."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdvae_ray.core.detectors import moments as module
from cdvae_ray.core.detectors.moments import class_moments, merge_moments, reduce_moments
from cdvae_ray.errors import ConfigError, DataError
from tests.core.detectors.synthetic import NUM_CLASSES, gaussian_classes


def by_definition(features, labels, num_classes):
    """Counts, means and scatter in numpy's extended precision."""
    features, labels = features.numpy().astype(np.longdouble), labels.numpy()
    scatter, means, counts = 0.0, [], []
    for label in range(num_classes):
        rows = features[labels == label]
        counts.append(len(rows))
        means.append(rows.mean(axis=0) if len(rows) else np.zeros(features.shape[1]))
        centred = rows - means[-1]
        scatter = scatter + centred.T @ centred
    return np.array(counts), np.stack(means), scatter


def assert_same(moments, expected, rtol=1e-11):
    counts, means, scatter = expected
    assert moments.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(moments.means.numpy(), means.astype(float), rtol=rtol, atol=rtol)
    scale = np.sqrt(np.outer(np.diag(scatter), np.diag(scatter))).astype(float)
    error = np.abs(moments.scatter.numpy() - scatter) / scale
    assert error.max() < rtol


def test_moments_are_those_of_the_definition():
    features, labels = gaussian_classes(500)
    moments = class_moments(features, labels, NUM_CLASSES)
    assert_same(moments, by_definition(features, labels, NUM_CLASSES))
    assert moments.scatter.dtype == torch.float64
    assert torch.equal(moments.scatter, moments.scatter.T)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=12), seed=st.integers(0, 2**16))
def test_any_sharding_gives_the_moments_of_one_pass(cuts, seed):
    features, labels = gaussian_classes(200, 5, seed=seed)
    edges = [0, *sorted(set(cuts)), 200]
    shards = [
        class_moments(features[low:high], labels[low:high], NUM_CLASSES)
        for low, high in itertools.pairwise(edges)
    ]
    assert_same(reduce_moments(shards), by_definition(features, labels, NUM_CLASSES))
    # Associative up to rounding: a tree gives what a chain gives.
    while len(shards) > 1:
        pairs = [shards[index : index + 2] for index in range(0, len(shards), 2)]
        shards = [reduce_moments(pair) for pair in pairs]
    assert_same(shards[0], by_definition(features, labels, NUM_CLASSES))


def test_blocks_within_a_shard_change_nothing_but_rounding(monkeypatch):
    features, labels = gaussian_classes(100)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    assert_same(
        class_moments(features, labels, NUM_CLASSES), by_definition(features, labels, NUM_CLASSES)
    )


def test_one_order_gives_one_result_to_the_bit():
    features, labels = gaussian_classes(90)
    shards = [
        class_moments(each, own, NUM_CLASSES)
        for each, own in zip(features.split(11), labels.split(11), strict=True)
    ]
    assert torch.equal(reduce_moments(shards).scatter, reduce_moments(iter(shards)).scatter)


def test_moments_survive_an_offset_of_30_and_a_condition_of_1e10():
    # Deviations from 1 to 1e-5: raw sums of squares lose the small ones in 30^2.
    deviations = torch.logspace(0, -5, 12, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(4000) % NUM_CLASSES
    features = torch.randn(4000, 12, generator=generator, dtype=torch.float64) * deviations + 30
    expected = by_definition(features, labels, NUM_CLASSES)
    shards = [
        class_moments(each, own, NUM_CLASSES)
        for each, own in zip(features.split(123), labels.split(123), strict=True)
    ]
    assert_same(reduce_moments(shards), expected, rtol=2e-8)
    counts = torch.bincount(labels).double()
    sums = torch.zeros(NUM_CLASSES, 12, dtype=torch.float64).index_add_(0, labels, features)
    raw = features.T @ features - (sums / counts[:, None]).T @ sums
    error = np.abs(raw.numpy() - expected[2]).astype(float)
    assert (error / np.diag(expected[2]).astype(float)).max() > 1e-6


def test_a_class_without_images_is_neutral():
    features, labels = gaussian_classes(60)
    whole = class_moments(features, labels, NUM_CLASSES)
    shards = [
        class_moments(features[labels == label], labels[labels == label], NUM_CLASSES)
        for label in (2, 0, 1)
    ]
    assert torch.equal(shards[0].means[:2], torch.zeros(2, 8, dtype=torch.float64))
    torch.testing.assert_close(reduce_moments(shards).means, whole.means)
    torch.testing.assert_close(reduce_moments(shards).scatter, whole.scatter)


def test_what_cannot_have_moments_is_refused_in_one_line():
    features, labels = gaussian_classes(10)
    good = class_moments(features, labels, NUM_CLASSES)
    for wrong in (
        (features[:, 0], labels, 3),
        (features[:0], labels[:0], 3),
        (features.long(), labels, 3),
        (features.clone().index_fill_(0, torch.tensor([4]), torch.nan), labels, 3),
        (features, labels[:5], 3),
        (features, labels.int(), 3),
        (features, labels + 1, 3),
        (features, labels - 1, 3),
    ):
        with pytest.raises(DataError, match=r"^[^\n]+: got [^\n]+, expected [^\n]+; [^\n]+$"):
            class_moments(*wrong)
    with pytest.raises(ConfigError, match="num_classes"):
        class_moments(features, labels, 0)
    with pytest.raises(DataError, match="moments to merge"):
        merge_moments(good, class_moments(features[:, :4], labels, NUM_CLASSES))
    with pytest.raises(DataError, match="no shard"):
        reduce_moments([])
