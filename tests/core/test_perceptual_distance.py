"""Perceptual features and distance against their definition, written out in loops."""

import math

import pytest
import torch

from cdvae_ray.core.features import POOLED_LAYERS
from cdvae_ray.core.perceptual_distance import perceptual_distance, perceptual_features
from cdvae_ray.core.wide_resnet import WideResNet
from cdvae_ray.errors import DataError


def some_images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return WideResNet(depth=10, widen_factor=1, num_classes=3).double().eval()


def literal_features(activations):
    """One position at a time: its channels over their length and over sqrt(width height)."""
    rows = []
    for image in range(len(activations["conv1"])):
        row = []
        for name in POOLED_LAYERS:
            activation = activations[name][image]
            planes, height, width = activation.shape
            scaled = torch.zeros(planes, height, width, dtype=torch.float64)
            for i in range(height):
                for j in range(width):
                    length = math.sqrt(sum(v * v for v in activation[:, i, j].tolist()))
                    for c, value in enumerate(activation[:, i, j].tolist()):
                        scaled[c, i, j] = value / (length * math.sqrt(width * height))
            row += scaled.flatten().tolist()
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_features_are_their_definition(network):
    with torch.no_grad():
        activations = network.activations(some_images(2))
    features = perceptual_features(activations)
    torch.testing.assert_close(features, literal_features(activations), rtol=1e-12, atol=1e-14)
    # Each layer has length 1.
    torch.testing.assert_close(features.norm(dim=1), torch.full((2,), 2.0).double())


def test_the_distance_is_its_definition(network):
    with torch.no_grad():
        one, other = (network.activations(some_images(2, seed)) for seed in (0, 1))
    distance = perceptual_distance(perceptual_features(one), perceptual_features(other))
    expected = []
    for a, b in zip(literal_features(one), literal_features(other), strict=True):
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        expected.append(math.sqrt(sum((p - q) ** 2 for p, q in pairs)))
    torch.testing.assert_close(distance, torch.tensor(expected, dtype=torch.float64))


def test_it_is_a_distance(network):
    with torch.no_grad():
        a, b, c = (
            perceptual_features(network.activations(some_images(4, seed))) for seed in (0, 1, 2)
        )
    assert torch.equal(perceptual_distance(a, a), torch.zeros(4).double())
    assert torch.equal(perceptual_distance(a, b), perceptual_distance(b, a))
    assert (perceptual_distance(a, b) > 0).all() and (perceptual_distance(a, b) <= 4).all()
    through_c = perceptual_distance(a, c) + perceptual_distance(c, b)
    assert (perceptual_distance(a, b) <= through_c).all()


def test_scaling_an_activation_moves_nothing(network):
    activations = dict(network.activations(some_images(2)))
    before = perceptual_features(activations)
    activations["layer2"] = 3 * activations["layer2"]
    assert perceptual_distance(before, perceptual_features(activations)).max() < 1e-12


def test_the_gradient_is_right_and_zero_at_distance_zero(network):
    images = some_images(1)[:, :, :4, :4]
    clean = perceptual_features(network.activations(images)).detach()
    moved = (images + 0.1 * some_images(1, 1)[:, :, :4, :4]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: perceptual_distance(perceptual_features(network.activations(x)), clean), moved
    )
    still = images.clone().requires_grad_()
    distance = perceptual_distance(perceptual_features(network.activations(still)), clean)
    (gradient,) = torch.autograd.grad(distance.sum(), still)
    assert torch.equal(gradient, torch.zeros_like(images))


def test_positions_without_activation_are_zero_and_have_a_finite_gradient():
    activations = {name: torch.ones(1, 2, 2, 2) for name in POOLED_LAYERS}
    activations["conv1"][:, :, 0, 0] = 0
    variable = activations["conv1"].requires_grad_()
    features = perceptual_features(activations)
    assert features[0, 0].item() == 0
    assert features[0, 1].item() == pytest.approx(0.5 / math.sqrt(2))
    (gradient,) = torch.autograd.grad(features.square().sum() + features.sum(), variable)
    assert torch.isfinite(gradient).all() and gradient.abs().max() < 10


def test_half_precision_activations_are_measured_in_float32():
    activations = {name: torch.ones(1, 3, 2, 2, dtype=torch.bfloat16) for name in POOLED_LAYERS}
    features = perceptual_features(activations)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, torch.full((1, 48), 0.5 / math.sqrt(3)))


def test_what_is_no_activation_is_refused(network):
    activations = dict(network.activations(some_images(1)))
    with pytest.raises(DataError, match="activation layer1: got shape"):
        perceptual_features({**activations, "layer1": activations["penultimate"]})
    activations.pop("layer3")
    with pytest.raises(DataError, match="activation layer3: got none"):
        perceptual_features(activations)
