"""Noise of a given length: matched after clipping, keyed by image, Gaussian in direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdvae_ray.core.noise import matched_noise
from cdvae_ray.errors import DataError


def images(count: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(count, 3, 8, 8, generator=generator)
    # Digits and drawings are mostly black and white: there half of the noise is cut off.
    drawn[::3] = drawn[::3].round()
    return drawn


def lengths(noisy: Tensor, clean: Tensor) -> Tensor:
    return torch.linalg.vector_norm((noisy.double() - clean.double()).flatten(1), dim=1)


@pytest.mark.parametrize("length", [0.0, 1e-3, 0.3, 1.0, 4.0])
def test_length_is_matched_after_clipping(length: float) -> None:
    clean = images()
    noisy = matched_noise(clean, torch.full((12,), length), torch.arange(12), seed=0)
    assert noisy.dtype == torch.float32 and noisy.shape == clean.shape
    assert noisy.min() >= 0 and noisy.max() <= 1
    torch.testing.assert_close(
        lengths(noisy, clean), torch.full((12,), length).double(), rtol=1e-4, atol=1e-6
    )


def test_each_image_gets_its_own_length() -> None:
    clean, wanted = images(), torch.linspace(0, 2, 12)
    noisy = matched_noise(clean, wanted, torch.arange(12), seed=0)
    torch.testing.assert_close(lengths(noisy, clean), wanted.double(), rtol=1e-4, atol=1e-6)


def test_length_beyond_reach_gives_the_longest_noise() -> None:
    clean = images()
    noisy = matched_noise(clean, torch.full((12,), 100.0), torch.arange(12), seed=0)
    assert ((noisy == 0) | (noisy == 1)).all()
    assert (lengths(noisy, clean) < 100).all()


def test_noise_depends_on_seed_and_image_id_alone() -> None:
    clean, wanted, ids = images(), torch.linspace(0.1, 2, 12), torch.arange(12) + 40
    whole = matched_noise(clean, wanted, ids, seed=0)
    parts = [
        matched_noise(clean[part], wanted[part], ids[part], seed=0)
        for part in (slice(0, 5), slice(5, 12))
    ]
    assert torch.equal(torch.cat(parts), whole)
    for seed, other_ids in ((1, ids), (0, ids + 1)):
        assert not torch.equal(matched_noise(clean, wanted, other_ids, seed=seed), whole)


def test_noise_is_gaussian_where_nothing_is_clipped() -> None:
    grey = torch.full((40, 3, 16, 16), 0.5)
    noise = matched_noise(grey, torch.full((40,), 0.5), torch.arange(40), seed=0) - grey
    scaled = (noise / noise.std()).double()
    count = noise.numel()
    assert abs(scaled.mean()) < 4 / count**0.5
    assert abs((scaled**4).mean() - 3) < 4 * (96 / count) ** 0.5


def test_bad_input_is_refused() -> None:
    clean, wanted, ids = images(), torch.ones(12), torch.arange(12)
    for message, arguments in (
        ("outside", (clean * 2, wanted, ids)),
        ("outside", (clean * torch.nan, wanted, ids)),
        ("floating", (clean.to(torch.uint8), wanted, ids)),
        ("shapes", (clean, wanted[:3], ids)),
        ("shapes", (clean, wanted, ids[:3])),
        ("0 or more", (clean, -wanted, ids)),
        ("0 or more", (clean, wanted / 0, ids)),
    ):
        with pytest.raises(DataError, match=message):
            matched_noise(*arguments, seed=0)
