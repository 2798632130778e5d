"""Paired moments against the definition in numpy, however the images are cut into shards."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.moments import (
    column_moments,
    merge_paired,
    paired_moments,
    reduce_paired,
)


def pairs(count, width=4, *, offset=0.0, seed=0):
    """Two variables of deviation about 1, whose columns have different means and correlations."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, width))
    share = np.linspace(-0.9, 0.9, width)
    second = share * first + np.sqrt(1 - share**2) * rng.normal(size=(count, width))
    shift = offset * np.arange(1, width + 1)
    return torch.from_numpy(first + shift), torch.from_numpy(second - shift)


def by_definition(first, second):
    """The moments in numpy's extended precision."""
    a, b = (each.numpy().astype(np.longdouble) for each in (first, second))
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    return {
        "mean_a": mean_a,
        "mean_b": mean_b,
        "square_a": ((a - mean_a) ** 2).sum(axis=0),
        "square_b": ((b - mean_b) ** 2).sum(axis=0),
        "product": ((a - mean_a) * (b - mean_b)).sum(axis=0),
    }


def assert_same(moments, count, expected, rtol):
    assert moments.count == count
    # A mean near 0 and a product of both signs have no digits of their own: theirs is the scale.
    spread_a, spread_b = (
        np.sqrt(expected[name] / count).astype(float) for name in ("square_a", "square_b")
    )
    scales = {
        "mean_a": np.maximum(spread_a, np.abs(expected["mean_a"].astype(float))),
        "mean_b": np.maximum(spread_b, np.abs(expected["mean_b"].astype(float))),
        "square_a": count * spread_a**2,
        "square_b": count * spread_b**2,
        "product": count * spread_a * spread_b,
    }
    for name, exact in expected.items():
        found = getattr(moments, name)
        assert found.dtype == torch.float64
        error = np.abs(found.numpy() - exact).astype(float)
        assert np.all(error <= rtol * scales[name]), name


def cut(first, second, edges):
    return [
        paired_moments(first[low:high], second[low:high]) for low, high in itertools.pairwise(edges)
    ]


def test_moments_are_those_of_the_definition():
    first, second = pairs(500)
    moments = paired_moments(first, second)
    assert_same(moments, 500, by_definition(first, second), 1e-13)
    np.testing.assert_allclose(moments.std_a(), first.numpy().std(axis=0, ddof=1), rtol=1e-13)
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(4)]
    np.testing.assert_allclose(moments.correlation(), expected, rtol=1e-12)
    assert min(expected) < -0.8 and max(expected) > 0.8


@pytest.mark.parametrize("shards", [1, 2, 7, 210])
def test_any_number_of_shards_gives_the_moments_of_one_pass(shards):
    first, second = pairs(210, offset=3.0)
    edges = np.linspace(0, 210, shards + 1).astype(int)
    moments = reduce_paired(cut(first, second, edges))
    assert_same(moments, 210, by_definition(first, second), 1e-12)
    whole = paired_moments(first, second)
    for found, expected in (
        (moments.std_a(), whole.std_a()),
        (moments.correlation(), whole.correlation()),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 120),
    cuts=st.lists(st.integers(1, 119), max_size=12),
    seed=st.integers(0, 2**16),
    offset=st.floats(-100, 100),
)
def test_merging_is_exact_for_random_splits(count, cuts, seed, offset):
    first, second = pairs(count, 3, seed=seed, offset=offset)
    edges = [0, *sorted({each for each in cuts if each < count}), count]
    shards = cut(first, second, edges)
    expected = by_definition(first, second)
    assert_same(reduce_paired(shards), count, expected, 1e-11)
    # Associative up to rounding: a tree, and the shards in reverse, give what a chain gives.
    assert_same(reduce_paired(shards[::-1]), count, expected, 1e-11)
    while len(shards) > 1:
        shards = [reduce_paired(shards[i : i + 2]) for i in range(0, len(shards), 2)]
    assert_same(shards[0], count, expected, 1e-11)


@pytest.mark.parametrize("shards", [1, 9, 300])
def test_a_large_mean_leaves_the_digits_of_the_deviations(shards):
    # Sums of squares less the squared mean would keep four digits of these.
    first, second = pairs(300, offset=1e6)
    edges = np.linspace(0, 300, shards + 1).astype(int)
    moments = reduce_paired(cut(first, second, edges))
    expected = by_definition(first, second)
    for name in ("square_a", "square_b", "product"):
        exact = expected[name].astype(float)
        np.testing.assert_allclose(getattr(moments, name), exact, rtol=1e-8)
    r = expected["product"] / np.sqrt(expected["square_a"] * expected["square_b"])
    np.testing.assert_allclose(moments.correlation(), r.astype(float), rtol=1e-8)


def test_float32_rows_are_summed_in_float64():
    first, second = (each.float() for each in pairs(400, offset=1e3))
    moments = paired_moments(first, second)
    assert_same(moments, 400, by_definition(first.double(), second.double()), 1e-12)


def test_one_variable_is_a_pair_with_itself():
    rows, _ = pairs(50)
    moments = column_moments(rows)
    assert torch.equal(moments.mean_a, moments.mean_b)
    assert torch.equal(moments.square_a, moments.square_b)
    assert torch.equal(moments.square_a, moments.product)
    np.testing.assert_allclose(moments.std_a(), rows.numpy().std(axis=0, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(moments.correlation(), 1.0, rtol=1e-15)


def test_one_image_has_no_deviation():
    rows = torch.tensor([[1.0, -2.0]])
    moments = column_moments(rows)
    assert (moments.count, moments.mean_a.tolist()) == (1, [1.0, -2.0])
    assert bool(torch.isnan(moments.std_a()).all())
    assert bool(torch.isnan(moments.correlation()).all())


def test_a_column_that_does_not_vary_has_no_correlation():
    first, second = (each.float() for each in pairs(60))
    first[:, 1] = 0.1
    second[:, 2] = -0.7
    for shards in (1, 4, 60):
        edges = np.linspace(0, 60, shards + 1).astype(int)
        moments = reduce_paired(cut(first, second, edges))
        undefined = torch.isnan(moments.correlation()).tolist()
        assert undefined == [False, True, True, False]
        assert moments.square_a[1] == 0 and moments.square_b[2] == 0


@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.7, 1e6 / 7])
def test_a_float64_column_varies_by_more_than_the_rounding_of_its_mean(value):
    rng = np.random.default_rng(0)
    for count in (2, 3, 6, 7, 49, 1000):
        constant = torch.full((count, 1), value, dtype=torch.float64)
        jitter = torch.from_numpy(rng.normal(size=(count, 1)))
        rows = torch.cat([constant, constant + 1e-9 * abs(value) * jitter, jitter], dim=1)
        for shards in (1, 3, count):
            edges = sorted(set(np.linspace(0, count, shards + 1).astype(int)))
            moments = reduce_paired(cut(rows, rows.clone(), edges))
            assert torch.isnan(moments.correlation()).tolist() == [True, False, False]


@pytest.mark.parametrize("factor", [1.0, 1e-7, 3e11])
def test_a_correlation_never_leaves_its_range(factor):
    first, _ = pairs(77, 200, seed=3)
    forth = paired_moments(first, factor * first).correlation()
    back = paired_moments(first, -factor * first).correlation()
    assert forth.max() <= 1 and back.min() >= -1
    np.testing.assert_allclose(forth, 1, rtol=1e-14)
    np.testing.assert_allclose(back, -1, rtol=1e-14)


def test_a_correlation_does_not_depend_on_the_units():
    first, second = pairs(40)
    expected = paired_moments(first, second).correlation()
    # The product of both sums of squares would be 0, or infinite.
    for scale in (1e-100, 1e100):
        found = paired_moments(scale * first, scale * second).correlation()
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(
        paired_moments(5 - 2 * first, 1e5 * second).correlation(), -expected, rtol=1e-9
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4)),
        (torch.zeros(3, 2), torch.zeros(2, 2)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0, 2)),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)),
        (torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2)),
        (torch.ones(1, 2), torch.tensor([[float("inf"), 1.0]])),
    ],
)
def test_what_is_no_pair_of_finite_columns_is_refused(first, second):
    with pytest.raises(DataError, match="pairs to take moments of: got"):
        paired_moments(first, second)


def test_shards_that_do_not_fit_together_are_refused():
    with pytest.raises(DataError, match="moments to merge: got 2 and 3 columns"):
        merge_paired(column_moments(torch.zeros(4, 2)), column_moments(torch.zeros(4, 3)))
    with pytest.raises(DataError, match="moments to merge: got no shard"):
        reduce_paired([])
