"""Keyed randomness against SplitMix64's published outputs, and against chance."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdvae_ray.core.random import (
    derive_seed,
    image_keys,
    keyed_integers,
    keyed_normal,
    keyed_uniform,
)
from cdvae_ray.errors import ConfigError, DataError

MASK = (1 << 64) - 1
# The first outputs of the reference SplitMix64 (Vigna) from the state 1234567.
PUBLISHED = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)


def splitmix(state: int, index: int) -> int:
    """Output `index` (from 1) of SplitMix64, in Python's unbounded integers."""
    z = (state + index * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def keys_of(count: int, *, seed: int = 0, purpose: str = "test", epoch: int = 0) -> Tensor:
    return image_keys(seed, purpose, epoch, torch.arange(count))


def ks_statistic(values: Tensor, cumulative: Tensor) -> float:
    """sqrt(n) sup |F_n - F|; above 1.95 with probability 1e-3 under the null hypothesis."""
    n = values.numel()
    steps = torch.arange(n, dtype=torch.float64)
    sorted_cumulative = cumulative.double().flatten().sort().values
    above = ((steps + 1) / n - sorted_cumulative).max()
    below = (sorted_cumulative - steps / n).max()
    return math.sqrt(n) * float(torch.maximum(above, below))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def test_published_outputs() -> None:
    uniforms = keyed_uniform(torch.tensor([1234567]), 5)[0]
    assert (uniforms.double() * 2**24).tolist() == [float(value >> 40) for value in PUBLISHED]


@pytest.mark.parametrize("state", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_wrap_around_equals_unbounded_integers(state: int) -> None:
    expected = [splitmix(state & MASK, index) for index in range(1, 33)]
    keys = torch.tensor([state])
    uniforms = keyed_uniform(keys, 32)[0].double() * 2**24
    assert uniforms.tolist() == [float(value >> 40) for value in expected]
    integers = keyed_integers(keys, 32, -5, 2**31 - 5)[0]
    assert integers.tolist() == [((value >> 32) * 2**31 >> 32) - 5 for value in expected]
    radii = [((value >> 24) + 1) / 2**40 for value in expected]
    angles = [2 * math.pi * (value & (2**24 - 1)) / 2**24 for value in expected]
    pairs = [
        (math.sqrt(-2 * math.log(u)) * math.cos(v), math.sqrt(-2 * math.log(u)) * math.sin(v))
        for u, v in zip(radii, angles, strict=True)
    ]
    torch.testing.assert_close(
        keyed_normal(keys, 64)[0].double().view(-1, 2), torch.tensor(pairs), atol=3e-6, rtol=1e-5,
        check_dtype=False,
    )  # fmt: skip


def test_keys_are_a_hash_of_everything() -> None:
    base = derive_seed(7, "flip", 3)
    ids = [0, 1, 49_999, 2**40]
    keys = image_keys(7, "flip", 3, torch.tensor(ids))
    # mix(base + id * increment) is SplitMix64's output number `id` from the state `base`.
    assert [key & MASK for key in keys.tolist()] == [splitmix(base, index) for index in ids]
    for other in (
        keys_of(4, seed=1),
        keys_of(4, epoch=1),
        keys_of(4, purpose="other"),
        keys_of(4) + 1,
    ):
        assert not torch.equal(keys_of(4), other)


def test_keys_do_not_collide() -> None:
    ids = torch.arange(20_000)
    keys = torch.cat([image_keys(seed, "a", epoch, ids) for seed in range(3) for epoch in range(3)])
    assert len(keys.unique()) == len(keys)


@pytest.mark.parametrize("draw", [keyed_uniform, keyed_normal])
def test_rows_do_not_depend_on_the_batch(draw: Callable[[Tensor, int], Tensor]) -> None:
    keys = keys_of(97)
    whole = draw(keys, 37)
    order = torch.randperm(97, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(keys[order], 37), whole[order])
    for size in (1, 2, 3, 5, 8, 13, 31):
        assert torch.equal(torch.cat([draw(part, 37) for part in keys.split(size)]), whole)
    for count in (0, 1, 2, 17, 36):
        assert torch.equal(draw(keys, count), whole[:, :count])


def test_integers_do_not_depend_on_the_batch() -> None:
    keys = keys_of(50)
    whole = keyed_integers(keys, 9, -3, 11)
    assert torch.equal(
        torch.cat([keyed_integers(part, 9, -3, 11) for part in keys.split(7)]), whole
    )
    assert torch.equal(keyed_integers(keys, 4, -3, 11), whole[:, :4])


def test_uniform_distribution() -> None:
    values = keyed_uniform(keys_of(500), 400)
    assert values.dtype == torch.float32 and values.shape == (500, 400)
    assert values.min() >= 0 and values.max() < 1
    n = values.numel()
    assert abs(float(values.double().mean()) - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(float(values.double().var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    assert ks_statistic(values, values) < 1.95
    # Along the keys as along the counters: one draw of many images, many draws of one image.
    assert ks_statistic(*[keyed_uniform(keys_of(50_000), 1)] * 2) < 1.95
    assert ks_statistic(*[keyed_uniform(keys_of(1), 50_000)] * 2) < 1.95


def test_normal_distribution() -> None:
    values = keyed_normal(keys_of(500), 401)
    assert values.dtype == torch.float32 and values.shape == (500, 401)
    assert torch.isfinite(values).all()
    wide, n = values.double(), values.numel()
    assert abs(float(wide.mean())) < 4 / math.sqrt(n)
    assert abs(float(wide.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((wide**3).mean())) < 4 * math.sqrt(15 / n)
    assert abs(float((wide**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert ks_statistic(values, torch.special.ndtr(wide)) < 1.95
    beyond_4 = float((wide.abs() > 4).sum())
    assert abs(beyond_4 - 6.33e-5 * n) < 4 * math.sqrt(6.33e-5 * n)


def test_normal_is_finite_where_the_radius_bits_are_zero() -> None:
    def undo_xor_shift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    def key_of(target: int) -> int:
        """The key whose first hash is `target`: SplitMix64 run backwards."""
        z = undo_xor_shift(target, 31)
        z = undo_xor_shift(z * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK, 27)
        z = undo_xor_shift(z * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK, 30)
        key = (z - 0x9E3779B97F4A7C15) & MASK
        assert splitmix(key, 1) == target
        return key - (1 << 64) if key >> 63 else key

    smallest, largest = keyed_normal(torch.tensor([key_of(MASK << 24 & MASK), key_of(0)]), 2)
    assert smallest.tolist() == [0.0, 0.0]
    assert largest.tolist() == [pytest.approx(math.sqrt(80 * math.log(2))), 0.0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 9), (-4, 3), (1, 10), (100, 356)])
def test_integers_cover_their_interval_evenly(low: int, high: int) -> None:
    values = keyed_integers(keys_of(300), 200, low, high)
    assert values.dtype == torch.int64
    assert values.min() == low and values.max() == high - 1
    counts = (values - low).flatten().bincount(minlength=high - low).double()
    expected = values.numel() / (high - low)
    degrees = high - low - 1
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared <= degrees + 4 * math.sqrt(2 * degrees)


def test_no_correlation_between_neighbours() -> None:
    def draw(**changes: object) -> Tensor:
        return keyed_uniform(keys_of(400, **changes), 300)  # type: ignore[arg-type]

    base = draw()
    bound = 4 / math.sqrt(399 * 299)
    assert abs(correlation(base[1:], base[:-1])) < bound
    assert abs(correlation(base[:, 1:], base[:, :-1])) < bound
    assert abs(correlation(base[1:, 1:], base[:-1, :-1])) < bound
    for other in (draw(seed=1), draw(epoch=1), draw(purpose="other")):
        assert abs(correlation(base, other)) < bound
    normals = keyed_normal(keys_of(400), 300)
    assert abs(correlation(normals[:, 0::2], normals[:, 1::2])) < 4 / math.sqrt(400 * 150)
    assert abs(correlation(normals[:, 0::2] ** 2, normals[:, 1::2] ** 2)) < 4 / math.sqrt(400 * 150)


def test_derive_seed() -> None:
    digest = hashlib.sha256(b"i1:3s5:mixupi2:12").digest()
    assert derive_seed(3, "mixup", 12) == int.from_bytes(digest[:8], "little") >> 1
    lists = [(), ("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (1, 2), (12,), (-1,), ("",)]
    seeds = {derive_seed(seed, *parts) for seed in (0, 1, -1, 2**70) for parts in lists}
    assert len(seeds) == 4 * len(lists)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(derive_seed(0, "loader"))


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="image_ids"):
        image_keys(0, "a", 0, torch.zeros(3))
    with pytest.raises(DataError, match="keys"):
        keyed_uniform(torch.zeros(3, 1, dtype=torch.int64), 2)
    with pytest.raises(ConfigError, match="count"):
        keyed_uniform(keys_of(2), -1)
    for low, high in ((3, 3), (4, 3), (0, 2**31 + 1)):
        with pytest.raises(ConfigError, match="interval"):
            keyed_integers(keys_of(2), 1, low, high)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree() -> None:
    keys = keys_of(1000)
    on_device = image_keys(0, "test", 0, torch.arange(1000, device="cuda"))
    assert torch.equal(on_device.cpu(), keys)
    assert torch.equal(keyed_uniform(on_device, 33).cpu(), keyed_uniform(keys, 33))
    integers = keyed_integers(on_device, 33, -7, 90)
    assert torch.equal(integers.cpu(), keyed_integers(keys, 33, -7, 90))
    torch.testing.assert_close(
        keyed_normal(on_device, 33).cpu(), keyed_normal(keys, 33), atol=2e-6, rtol=2e-6
    )
