"""The plain classifier: its input, its normalisation, and gradients through G."""

import pytest
import torch

from cdvae_ray.config.classifier import INPUT_KINDS, ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import ImageClassifier, build_classifier, classifier_input
from cdvae_ray.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def classifier(input_kind="images", *, seed=0, **changes):
    config = ClassifierConfig(
        **({"depth": 10, "widen_factor": 1, "pixel_mean": MEAN, "pixel_std": STD} | changes)
    )
    return build_classifier(
        config, input_kind=input_kind, image_size=16, class_names=CLASSES, seed=seed
    ).eval()


@pytest.fixture(scope="module")
def cdvae():
    config = ModelConfig(
        vae_width=4,
        latent_size=8,
        classifier_depth=10,
        classifier_widen_factor=1,
        pixel_mean=MEAN,
        pixel_std=STD,
    )
    return build_cdvae(config, image_size=16, class_names=CLASSES, seed=0).eval()


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def channels(values):
    return torch.tensor(values).view(1, 3, 1, 1)


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_a_classifier_gives_logits_of_its_classes(kind, images):
    model = classifier(kind)
    assert model(images).shape == (5, 3)
    assert (model.input_kind, model.image_size, model.class_names) == (kind, 16, CLASSES)
    assert model.cdvae_digest is None


@pytest.mark.parametrize("kind", ["images", "class_redundant"])
def test_images_and_redundant_parts_are_normalised_by_mean_and_std(kind, images):
    model = classifier(kind)
    expected = model.network((images - channels(MEAN)) / channels(STD))
    torch.testing.assert_close(model(images), expected)


def test_the_essential_part_is_seen_as_d_sees_it_inside_the_cdvae(cdvae, images):
    model = classifier("class_essential")
    model.network.load_state_dict(cdvae.classifier.state_dict())
    with torch.no_grad():
        essential = classifier_input(images, "class_essential", cdvae)
        torch.testing.assert_close(
            model(essential), cdvae.classify_essential(images), rtol=1e-4, atol=1e-5
        )
    # No mean is taken away: what carries no class evidence at all is shown as zeros.
    seen = []
    model.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(torch.zeros(1, 3, 16, 16))
    assert torch.equal(seen[0], torch.zeros(1, 3, 16, 16))


def test_the_inputs_are_the_decomposition(cdvae, images):
    with torch.no_grad():
        parts = cdvae.decompose(images)
        assert classifier_input(images, "images", None) is images
        redundant = classifier_input(images, "class_redundant", cdvae)
        essential = classifier_input(images, "class_essential", cdvae)
    assert torch.equal(redundant, parts.class_redundant)
    assert torch.equal(essential, parts.class_essential)


def test_nothing_is_clamped(cdvae, images):
    loud = build_cdvae(cdvae.config, image_size=16, class_names=CLASSES, seed=0).eval()
    with torch.no_grad():
        loud.generator.xi_bn.weight.fill_(50.0)
        redundant = classifier_input(images, "class_redundant", loud)
        essential = classifier_input(images, "class_essential", loud)
    assert redundant.min() < 0
    assert redundant.max() > 1
    torch.testing.assert_close(redundant + essential, images)


@pytest.mark.parametrize("kind", ["class_redundant", "class_essential"])
def test_gradients_reach_the_image_through_g(cdvae, images, kind):
    model = classifier(kind).double()
    double = build_cdvae(cdvae.config, image_size=16, class_names=CLASSES, seed=0).double().eval()
    direction = torch.randn(images.shape, dtype=torch.float64)
    points = images.double().requires_grad_()

    def loss(at):
        return model(classifier_input(at, kind, double)).square().sum()

    (gradient,) = torch.autograd.grad(loss(points), points)
    step = 1e-6
    with torch.no_grad():
        forward, back = loss(points + step * direction), loss(points - step * direction)
    slope = (forward - back) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-6)
    detached = classifier_input(points.detach(), kind, double).detach()
    without_g = torch.autograd.grad(model(detached.requires_grad_()).square().sum(), detached)[0]
    assert not torch.allclose(gradient, without_g)


def test_noise_makes_g_decode_a_given_sample(cdvae, images):
    noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sampled = classifier_input(images, "class_redundant", cdvae, noise=noise)
        expected = cdvae(images, noise).reconstruction * channels(STD) + channels(MEAN)
        at_mean = classifier_input(images, "class_redundant", cdvae)
    assert torch.equal(sampled, expected)
    assert not torch.allclose(sampled, at_mean)


@pytest.mark.parametrize("kind", ["class_redundant", "class_essential"])
def test_a_part_needs_a_cdvae(images, kind):
    with pytest.raises(ConfigError, match=r"cdvae: got none, expected a CD-VAE"):
        classifier_input(images, kind, None)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = classifier(seed=3).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = classifier(seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["network.conv1.weight"], classifier(seed=4).network.conv1.weight)


def test_settings_are_no_weights():
    names = classifier().state_dict()
    assert all(name.startswith("network.") for name in names)


@pytest.mark.parametrize(
    ("shape", "kind", "complaint"),
    [
        ((2, 3, 8, 8), torch.float32, r"shape \(2, 3, 8, 8\), expected \(N, 3, 16, 16\)"),
        ((3, 16, 16), torch.float32, "shape"),
        ((2, 3, 16, 16), torch.uint8, "torch.uint8, expected floating point"),
    ],
)
def test_other_inputs_are_named(shape, kind, complaint):
    with pytest.raises(DataError, match=complaint):
        classifier()(torch.zeros(shape, dtype=kind))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"image_size": 7, "class_names": CLASSES}, "image_size: got 7"),
        ({"image_size": 16, "class_names": ("a",)}, "class_names: got 1 classes"),
    ],
)
def test_what_the_network_cannot_have_is_refused(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ImageClassifier(
            ClassifierConfig(depth=10, widen_factor=1), input_kind="images", **arguments
        )
