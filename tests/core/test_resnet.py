"""The ResNet against torchvision's own, and what a network with a fifth layer gives."""

import math

import pytest
import torch
import torchvision

from cdvae_ray.config.classifier import INPUT_KINDS, ClassifierConfig
from cdvae_ray.config.model import RESNET_DEPTHS
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.core.features import features_of_classifier, layer_features, pooled_layers
from cdvae_ray.core.perceptual_distance import perceptual_features
from cdvae_ray.core.resnet import ResNet

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
NAMES = (*LAYERS, "penultimate", "logits")


def some_images(size=40):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def settled(network):
    """In eval mode, with running statistics of images."""
    with torch.no_grad():
        for _ in range(20):
            network.train()(some_images())
    return network.eval()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return settled(ResNet(depth=10, num_classes=5))


@pytest.mark.parametrize("depth", [18, 50])
def test_outputs_are_torchvisions(depth):
    torch.manual_seed(0)
    theirs = settled(getattr(torchvision.models, f"resnet{depth}")(num_classes=5))
    mine = ResNet(depth=depth, num_classes=5).eval()
    mine.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        expected = theirs(some_images())
        assert torch.equal(mine(some_images()), expected)
        activations = mine.activations(some_images())
    assert expected.std() > 1e-3
    assert tuple(activations) == NAMES
    assert torch.equal(activations["logits"], expected)


@pytest.mark.parametrize("depth", [depth for depth in RESNET_DEPTHS if depth > 10])
def test_weights_have_torchvisions_names_and_shapes(depth):
    with torch.device("meta"):
        mine = ResNet(depth=depth, num_classes=203)
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=203)
    shapes = [
        {name: tensor.shape for name, tensor in each.state_dict().items()}
        for each in (mine, theirs)
    ]
    assert shapes[0] == shapes[1]


def test_the_smallest_has_one_block_a_layer(network):
    deeper = ResNet(depth=18, num_classes=5).state_dict()
    second = {name for name in deeper if name.startswith(tuple(f"{x}.1." for x in LAYERS[1:]))}
    assert len(second) > 0
    assert set(network.state_dict()) == set(deeper) - second


def test_activations_are_what_hooks_see(network):
    seen = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.clone()})
        )
        for name in LAYERS
    ]
    handles.append(
        network.fc.register_forward_pre_hook(
            lambda module, inputs: seen.update(penultimate=inputs[0])
        )
    )
    with torch.no_grad():
        seen["logits"] = network(some_images())
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        activations = network.activations(some_images())
    assert tuple(activations) == tuple(seen) == NAMES
    for name, value in activations.items():
        assert torch.equal(value, seen[name]), name


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_features_of_a_classifier_are_spatial_means_with_a_fifth_layer(kind):
    config = ClassifierConfig(network="resnet", depth=10, widen_factor=1, dropout=0.0)
    classifier = build_classifier(
        config, input_kind=kind, image_size=33, class_names=("a", "b"), seed=0
    ).eval()
    inputs = torch.rand(4, 3, 33, 33)
    with torch.no_grad():
        features = features_of_classifier(classifier, inputs)
        normalized = (inputs - classifier.pixel_mean) / classifier.pixel_std
        activations = classifier.network.activations(normalized)
        assert torch.equal(features["logits"], classifier(inputs))
    assert tuple(features) == NAMES
    assert pooled_layers(features) == LAYERS
    for name, planes in zip(LAYERS, (64, 64, 128, 256, 512), strict=True):
        assert features[name].shape == (4, planes)
        torch.testing.assert_close(features[name], activations[name].flatten(2).mean(dim=2))
    # What torchvision's linear layer sees is the mean of the last layer.
    torch.testing.assert_close(features["penultimate"], features["layer4"])


def test_every_layer_has_a_gradient_with_respect_to_the_images(network):
    images = some_images().requires_grad_()
    for name, feature in layer_features(network, images).items():
        (gradient,) = torch.autograd.grad(feature.square().sum(), images, retain_graph=True)
        assert torch.isfinite(gradient).all() and (gradient != 0).any(), name


def test_perceptual_features_are_of_five_layers(network):
    with torch.no_grad():
        activations = network.activations(some_images())
    features = perceptual_features(activations)
    expected = []
    for name in LAYERS:
        activation = activations[name]
        unit = activation / activation.square().sum(dim=1, keepdim=True).sqrt()
        expected.append((unit / math.sqrt(activation[0, 0].numel())).flatten(1))
    torch.testing.assert_close(features, torch.cat(expected, dim=1))
    torch.testing.assert_close(features.norm(dim=1), torch.full((3,), math.sqrt(5)))
