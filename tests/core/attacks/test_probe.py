"""The probe for stochastic classifiers."""

import math

import pytest
import torch
from torch import nn

from cdvae_ray.core.attacks.probe import is_stochastic
from cdvae_ray.errors import ConfigError, DataError

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))


def test_a_network_is_probed_in_eval_mode_and_left_as_it_was():
    model = network().train()
    model[2].eval()
    before = torch.get_rng_state()
    assert not is_stochastic(model, IMAGES)
    assert [each.training for each in model.modules()] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_noise_is_found_whatever_the_scale_of_the_logits(scale):
    model = network().eval()

    def noisy(images):
        logits = model(images)
        return scale * (logits + 0.01 * torch.randn_like(logits))

    assert is_stochastic(noisy, IMAGES)
    assert not is_stochastic(lambda images: scale * model(images), IMAGES)


def test_the_threshold_is_the_distance_of_normalised_logits():
    angles = iter([0.0, 0.0, 0.0, 0.0, 0.01])

    def turning(images):
        angle = next(angles)
        logits = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        return 7 * logits.expand(len(images), 2)

    # The last answer is 2 sin(0.005) away from the others.
    assert is_stochastic(turning, IMAGES, threshold=0.00999)
    angles = iter([0.0, 0.0, 0.0, 0.0, 0.01])
    assert not is_stochastic(turning, IMAGES, threshold=0.01001)


def test_one_random_image_is_enough():
    model = network().eval()

    def one_noisy(images):
        logits = model(images)
        noise = torch.zeros_like(logits)
        noise[-1] = 0.01 * torch.randn(4)
        return logits + noise

    assert is_stochastic(one_noisy, IMAGES)


def test_forwards_do_not_share_their_draws():
    drawn = []

    def recording(images):
        drawn.append(torch.rand(()).item())
        return torch.ones(len(images), 2)

    assert not is_stochastic(recording, IMAGES, num_forwards=7)
    assert len(drawn) == len(set(drawn)) == 7


def test_what_cannot_be_probed_is_refused():
    model = network()
    with pytest.raises(ConfigError, match="num_forwards"):
        is_stochastic(model, IMAGES, num_forwards=1)
    with pytest.raises(ConfigError, match="threshold"):
        is_stochastic(model, IMAGES, threshold=0.0)
    with pytest.raises(DataError, match="values in"):
        is_stochastic(model, 2 * IMAGES)
    with pytest.raises(DataError, match="NaN"):
        is_stochastic(lambda images: model(images) * math.nan, IMAGES)
