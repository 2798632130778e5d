"""Every attack takes images and networks laid out channels-last, as the jobs lay them out."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cdvae_ray.config.attack import SUITES
from cdvae_ray.core.attacks import auto_attack
from cdvae_ray.core.attacks.run import run_attack

EVERY = {
    each.label: each
    for name in ("detection", "grey-box", "white-box")
    for each in SUITES[name].attacks
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(auto_attack, "NUM_QUERIES", 20)
    monkeypatch.setattr(auto_attack, "NUM_STEPS", 3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).eval()


@pytest.mark.parametrize("label", EVERY)
def test_channels_last_changes_no_answer(label, network):
    config = EVERY[label]
    if config.num_steps is not None:
        config = replace(config, num_steps=3)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, 16, 16, generator=generator)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    results = [
        run_attack(
            config,
            network.to(memory_format=layout),
            images.contiguous(memory_format=layout),
            labels,
            seed=0,
            image_ids=torch.arange(6),
        )
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    plain, last = results
    assert torch.equal(plain.success, last.success)
    # Sums in another order: signs of gradients near 0 may flip, here and there.
    close = torch.isclose(plain.images, last.images, atol=1e-4)
    assert close.double().mean() > 0.97
