"""Features against hooks on the networks they come from."""

import pytest
import torch

from cdvae_ray.config.classifier import INPUT_KINDS, ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier, classifier_input
from cdvae_ray.core.features import (
    FEATURE_NAMES,
    POOLED_LAYERS,
    features_of_classifier,
    features_of_essential,
    layer_features,
)
from cdvae_ray.core.wide_resnet import WideResNet
from cdvae_ray.errors import DataError

CLASSES = ("a", "b", "c")


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = WideResNet(depth=10, widen_factor=2, num_classes=3).eval()
    # Running statistics of their own, so that the last normalisation shows.
    network.bn1.running_mean.normal_()
    network.bn1.running_var.uniform_(0.5, 2)
    return network


def cdvae(**changes):
    config = ModelConfig(
        vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1, **changes
    )
    return build_cdvae(config, image_size=16, class_names=CLASSES, seed=0).eval()


def test_features_are_what_hooks_see(network, images):
    seen = {}
    for name in POOLED_LAYERS:
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.clone()})
        )
    network.linear.register_forward_pre_hook(
        lambda module, inputs: seen.update(penultimate=inputs[0])
    )
    logits = network(images)
    expected = {name: seen[name].mean(dim=(2, 3)) for name in POOLED_LAYERS}
    for name in ("conv1", "layer1", "layer2", "layer3", "penultimate"):
        seen.pop(name)
    features = layer_features(network, images)
    assert tuple(features) == FEATURE_NAMES
    assert [each.shape for each in features.values()] == [
        (5, width) for width in (16, 32, 64, 128, 128, 3)
    ]
    for name in POOLED_LAYERS:
        torch.testing.assert_close(features[name], expected[name])
    assert torch.equal(features["logits"], logits)
    torch.testing.assert_close(network.linear(features["penultimate"]), logits)
    assert (features["penultimate"] >= 0).all() and (features["layer3"] < 0).any()


def test_activations_leave_the_network_as_it_was(network, images):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    activations = network.activations(images)
    assert torch.equal(activations["logits"], network(images))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    network.train()
    # In training mode too, activations are not overwritten by what follows them.
    activations = network.activations(images)
    torch.testing.assert_close(network.layer3(activations["layer2"]), activations["layer3"])


def test_essential_features_are_those_of_the_cdvae(images):
    model = cdvae()
    features = features_of_essential(model, images)
    assert torch.equal(features["logits"], model(images).logits)
    output = model(images)
    direct = layer_features(model.classifier, output.normalized_images - output.reconstruction)
    assert all(torch.equal(features[name], direct[name]) for name in FEATURE_NAMES)


def test_essential_features_of_a_sampling_cdvae_follow_the_noise(images):
    model = cdvae(evaluation_latent="sample")
    noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    features = features_of_essential(model, images, noise)
    assert torch.equal(features["logits"], model(images, noise).logits)
    torch.manual_seed(3)
    drawn = features_of_essential(model, images)["logits"]
    torch.manual_seed(3)
    assert torch.equal(drawn, model(images).logits)
    assert not torch.equal(drawn, features["logits"])


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_classifier_features_are_of_what_it_is_shown(kind, images):
    classifier = build_classifier(
        ClassifierConfig(depth=10, widen_factor=1),
        input_kind=kind,
        image_size=16,
        class_names=CLASSES,
        seed=0,
    ).eval()
    inputs = classifier_input(images, kind, cdvae())
    features = features_of_classifier(classifier, inputs)
    assert torch.equal(features["logits"], classifier(inputs))


def test_every_layer_has_a_gradient_with_respect_to_the_images(images):
    model = cdvae()
    for name in FEATURE_NAMES:
        variable = images.clone().requires_grad_()
        features = features_of_essential(model, variable)[name]
        (gradient,) = torch.autograd.grad(features.square().sum(), variable)
        assert torch.isfinite(gradient).all() and (gradient != 0).any()


def test_ill_shaped_images_are_refused(network, images):
    model = cdvae()
    for wrong in (images[0], images[:, :1], (images * 255).byte()):
        with pytest.raises(DataError, match="images to take features of"):
            layer_features(network, wrong)
        with pytest.raises(DataError, match="images to take features of"):
            features_of_essential(model, wrong)
    with pytest.raises(DataError, match=r"\(N, 3, 16, 16\)"):
        features_of_essential(model, images[:, :, :12, :12])
