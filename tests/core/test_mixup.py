"""Mixup: its pairs, its weight, and its independence from how a batch is split."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from cdvae_ray.core.mixup import mixup
from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import ConfigError


def batch(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, 5, 7, generator=generator), torch.arange(count)


def test_definition() -> None:
    images, labels = batch(7)
    mixed = mixup(images, labels, alpha=2.0, seed=3, epoch=1, batch_index=4)
    partners = [1, 0, 3, 2, 5, 4, 6]
    weight = random.Random(derive_seed(3, "mixup", 1, 4)).betavariate(2.0, 2.0)
    assert mixed.weight == weight
    assert mixed.partner_labels.tolist() == partners
    assert torch.equal(mixed.labels, labels)
    torch.testing.assert_close(mixed.images, weight * images + (1 - weight) * images[partners])
    assert torch.equal(mixed.images[6], images[6])
    assert mixed.images.min() >= 0 and mixed.images.max() <= 1


def test_even_splits_give_the_same_rows() -> None:
    images, labels = batch(24)
    for batch_index in range(6):
        draw = {"alpha": 2.0, "seed": 0, "epoch": 0, "batch_index": batch_index}
        whole = mixup(images, labels, **draw)
        for size in (12, 8, 6, 2):
            parts = [
                mixup(some, few, **draw)
                for some, few in zip(images.split(size), labels.split(size), strict=True)
            ]
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            partner_labels = torch.cat([part.partner_labels for part in parts])
            assert torch.equal(partner_labels, whole.partner_labels)
            assert {part.weight for part in parts} == {whole.weight}


def test_alpha_0_changes_nothing() -> None:
    images, labels = batch(5)
    mixed = mixup(images, labels, alpha=0.0, seed=0, epoch=0, batch_index=0)
    assert mixed.images is images and mixed.labels is labels and mixed.partner_labels is labels
    assert mixed.weight == 1.0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_weights_follow_beta(alpha: float) -> None:
    images, labels = batch(2)
    weights = torch.tensor(
        [
            mixup(images, labels, alpha=alpha, seed=0, epoch=epoch, batch_index=index).weight
            for epoch in range(30)
            for index in range(50)
        ]
    ).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert len(weights.unique()) > 1400
    assert abs(float(weights.mean()) - 0.5) < 4 * (variance / len(weights)) ** 0.5
    assert float(weights.var()) == pytest.approx(variance, rel=0.12)


def test_each_argument_changes_the_weight() -> None:
    images, labels = batch(2)
    settings = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    weights = {
        mixup(images, labels, alpha=2.0, seed=seed, epoch=epoch, batch_index=index).weight
        for seed, epoch, index in settings
    }
    assert len(weights) == 4


def test_keeps_memory_format_and_input() -> None:
    images, labels = batch(6)
    images = images.to(memory_format=torch.channels_last)
    before = images.clone()
    mixed = mixup(images, labels, alpha=2.0, seed=0, epoch=0, batch_index=0)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_negative_alpha() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        mixup(*batch(2), alpha=-1.0, seed=0, epoch=0, batch_index=0)
