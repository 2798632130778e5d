"""Counter-based random numbers: a function of a key and a counter, never of a generator's past.

An image's draws depend on (seed, purpose, epoch, image id) alone, so that neither the composition
of the batch, nor the number of workers, nor a resumed run changes them. The integers behind every
draw are equal on all devices; normals pass through log, sin and cos, whose last bits may differ.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from cdvae_ray.errors import ConfigError, DataError


def _signed(constant: int) -> int:
    # torch takes Python integers into an int64 tensor only from the signed range.
    return constant - (1 << 64) if constant >> 63 else constant


# SplitMix64's increment and finaliser: Steele, Lea and Flood, "Fast splittable pseudorandom number
# generators" (2014), constants by Stafford ("Mix13").
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)

_UNIFORM_BITS = 24  # all that a float32 in [0, 1) resolves evenly
_RADIUS_BITS = 64 - _UNIFORM_BITS
_INTEGER_BITS = 32


def derive_seed(seed: int, *parts: str | int) -> int:
    """Derive an independent seed: the first 63 bits of SHA-256 over the seed and the parts.

    Args:
        seed: the run's seed, any integer.
        parts: what the seed is for; "1" and 1 differ, and so do ("ab", "c") and ("a", "bc").

    Returns:
        An integer in [0, 2**63), for `torch.Generator.manual_seed` or `random.Random`.
    """
    # Type and length before each part: no two different lists share an encoding.
    encoded = "".join(
        f"{'s' if isinstance(part, str) else 'i'}{len(str(part))}:{part}" for part in (seed, *parts)
    )
    return int.from_bytes(hashlib.sha256(encoded.encode()).digest()[:8], "little") >> 1


def image_keys(seed: int, purpose: str, epoch: int, image_ids: Tensor) -> Tensor:
    """Make one key an image: mix(base + id * increment), base = SHA-256(seed, purpose, epoch).

    Distinct ids get distinct keys: the map is a bijection of the 64-bit integers. Two draws from
    the same key share their bits, so give each kind of draw a purpose of its own.

    Args:
        seed: the run's seed.
        purpose: what is drawn, e.g. "augment.flip".
        epoch: the epoch, or the step, the draw belongs to.
        image_ids: (N,) int64, the images' positions in their dataset.

    Returns:
        (N,) int64 on the device of `image_ids`.

    Raises:
        DataError: `image_ids` is not a vector of int64.
    """
    _check_vector("image_ids", image_ids)
    return _mix_(image_ids * _INCREMENT + derive_seed(seed, purpose, epoch))


def keyed_uniform(keys: Tensor, count: int) -> Tensor:
    """Draw uniform numbers, multiples of 2**-24: U[n, c] = (hash(keys[n], c) >> 40) / 2**24.

    Args:
        keys: (N,) int64 from `image_keys`.
        count: numbers a key; the first of them are the same for every count.

    Returns:
        (N, count) float32 in [0, 1), on the device of `keys`.

    Raises:
        DataError: `keys` is not a vector of int64.
        ConfigError: `count` is negative.
    """
    return _top_bits(_hash(keys, count), _UNIFORM_BITS).float().mul_(2.0**-_UNIFORM_BITS)


def keyed_normal(keys: Tensor, count: int) -> Tensor:
    """Draw standard normal numbers: sqrt(-2 ln u) (cos, sin)(2 pi v), Box and Muller (1958).

    u in (0, 1] takes 40 bits of a hash and v in [0, 1) the other 24, so that a hash makes two
    numbers and the tails reach 7.4.

    Args:
        keys: (N,) int64 from `image_keys`.
        count: numbers a key; the first of them are the same for every count.

    Returns:
        (N, count) float32, on the device of `keys`.

    Raises:
        DataError: `keys` is not a vector of int64.
        ConfigError: `count` is negative.
    """
    hashes = _hash(keys, (count + 1) // 2)
    # u starts at 2**-40, not at 0, where the logarithm would be infinite.
    radius = _top_bits(hashes, _RADIUS_BITS).add_(1).float().mul_(2.0**-_RADIUS_BITS)
    radius.log_().mul_(-2.0).sqrt_()
    angle = hashes.bitwise_and_((1 << _UNIFORM_BITS) - 1).float()
    angle.mul_(2.0 * math.pi * 2.0**-_UNIFORM_BITS)
    normals = torch.empty(*hashes.shape, 2, dtype=torch.float32, device=keys.device)
    torch.mul(radius, angle.cos(), out=normals[..., 0])
    torch.mul(radius, angle.sin_(), out=normals[..., 1])
    return normals.flatten(1)[:, :count].contiguous()


def keyed_integers(keys: Tensor, count: int, low: int, high: int) -> Tensor:
    """Draw integers: low + ((hash >> 32) (high - low) >> 32), with a bias below 2**-32 a value.

    Args:
        keys: (N,) int64 from `image_keys`.
        count: integers a key; the first of them are the same for every count.
        low: the smallest value.
        high: one more than the largest value, at most low + 2**31.

    Returns:
        (N, count) int64 in [low, high), on the device of `keys`.

    Raises:
        DataError: `keys` is not a vector of int64.
        ConfigError: `count` is negative, or the interval is empty or too wide.
    """
    # A wider interval would overflow the 63 bits of the product.
    if not 0 < high - low <= 1 << 31:
        raise ConfigError(
            "keyed_integers interval",
            got=f"[{low}, {high})",
            expected="between 1 and 2**31 values",
            remedy="pass low < high <= low + 2**31",
        )
    bits = _top_bits(_hash(keys, count), _INTEGER_BITS)
    return bits.mul_(high - low).bitwise_right_shift_(_INTEGER_BITS).add_(low)


def _hash(keys: Tensor, count: int) -> Tensor:
    """SplitMix64's first `count` outputs from each key as the state: (N, count) int64."""
    _check_vector("keys", keys)
    if count < 0:
        raise ConfigError("count", got=count, expected="0 or more", remedy="ask for 0 or more")
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return _mix_(keys[:, None] + counters.mul_(_INCREMENT))


def _mix_(state: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: a bijection of the 64-bit integers."""
    shifted = torch.empty_like(state)
    _xor_shift_(state, 30, shifted).mul_(_MULTIPLIER_1)
    _xor_shift_(state, 27, shifted).mul_(_MULTIPLIER_2)
    return _xor_shift_(state, 31, shifted)


def _xor_shift_(state: Tensor, bits: int, shifted: Tensor) -> Tensor:
    # int64 shifts copy the sign bit: the mask turns them into shifts of unsigned integers.
    torch.bitwise_right_shift(state, bits, out=shifted)
    return state.bitwise_xor_(shifted.bitwise_and_((1 << (64 - bits)) - 1))


def _top_bits(hashes: Tensor, bits: int) -> Tensor:
    return (hashes >> (64 - bits)).bitwise_and_((1 << bits) - 1)


def _check_vector(name: str, values: Tensor) -> None:
    if values.dtype != torch.int64 or values.ndim != 1:
        raise DataError(
            name,
            got=f"{values.dtype} of shape {tuple(values.shape)}",
            expected="a vector of int64",
            remedy="pass the images' positions in their dataset, one an image",
        )
