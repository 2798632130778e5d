"""Shapes, parameter counts and semantics of the paper's networks."""

import pytest
import torch

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import CDVAE, build_cdvae
from cdvae_ray.core.vae import ConvVae
from cdvae_ray.core.wide_resnet import WideResNet
from cdvae_ray.errors import CdvaeError, ConfigError

TEN = tuple("abcdefghij")


def small(**changes):
    settings = {
        "vae_width": 4,
        "latent_size": 8,
        "classifier_depth": 10,
        "classifier_widen_factor": 1,
        "classifier_dropout": 0.3,
    }
    return ModelConfig(**(settings | changes))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def conv(inputs, outputs, kernel, bias=True):
    return inputs * outputs * kernel**2 + (outputs if bias else 0)


def test_wide_resnet_28_10_has_the_parameters_of_its_description():
    expected = conv(3, 16, 3)
    planes = 16
    for width in (160, 320, 640):
        for block in range(4):
            expected += 2 * planes + conv(planes, width, 3) + 2 * width + conv(width, width, 3)
            expected += conv(planes, width, 1) if block == 0 else 0
            planes = width
    expected += 2 * 640 + 640 * 10 + 10
    model = WideResNet(depth=28, widen_factor=10, num_classes=10, dropout=0.3)
    assert count(model) == expected == 36_489_290


def test_paper_vae_has_the_parameters_of_its_description():
    d, z, flat = 32, 2048, 32 * 8 * 8
    block = conv(d, d, 3) + 2 * d + conv(d, d, 1)
    encoder = conv(3, d // 2, 4, bias=False) + d + conv(d // 2, d, 4, bias=False) + 2 * d
    encoder += 2 * block + 2 * d
    decoder = 2 * block + 2 * 2 * d
    decoder += conv(d, d // 2, 4, bias=False) + d + conv(d // 2, 3, 4, bias=False)
    linear = 2 * (flat * z + z) + z * flat + flat
    model = ConvVae(width=d, latent_size=z, image_size=32)
    assert count(model) == encoder + decoder + 6 + linear == 12_648_774


@pytest.mark.parametrize("size", [16, 32, 64])
def test_all_outputs_have_their_shapes(size):
    model = build_cdvae(small(), image_size=size, class_names=TEN, seed=0).eval()
    parts = model.decompose(torch.rand(3, 3, size, size))
    assert parts.class_redundant.shape == parts.class_essential.shape == (3, 3, size, size)
    assert parts.mean.shape == parts.log_var.shape == (3, 8)
    assert torch.equal(parts.mean, parts.latent.mean)
    assert torch.equal(parts.log_var, parts.latent.log_var)
    assert parts.logits.shape == (3, 10)


def test_the_parts_add_up_and_the_classifier_sees_the_normalised_difference():
    torch.manual_seed(0)
    model = build_cdvae(small(), image_size=16, class_names=TEN, seed=0).eval()
    images = torch.rand(4, 3, 16, 16)
    parts = model.decompose(images)
    torch.testing.assert_close(
        parts.class_redundant + parts.class_essential, images, rtol=0, atol=1e-6
    )
    logits = model.classifier(parts.class_essential / model.pixel_std)
    torch.testing.assert_close(parts.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.logits, model.classify_essential(images))


def test_eval_mode_is_deterministic_unless_sampling_is_asked_for():
    images = torch.rand(2, 3, 16, 16)
    model = build_cdvae(small(), image_size=16, class_names=TEN, seed=0).eval()
    assert torch.equal(model(images).logits, model(images).logits)
    sampling = CDVAE(small(evaluation_latent="sample"), image_size=16, class_names=TEN).eval()
    assert not torch.equal(sampling(images).reconstruction, sampling(images).reconstruction)


def test_noise_enters_through_the_reparameterisation():
    model = build_cdvae(small(), image_size=16, class_names=TEN, seed=0).eval()
    images, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 8)
    plain, noisy = model(images), model(images, noise)
    latents = plain.latent.mean + torch.exp(0.5 * plain.latent.log_var) * noise
    torch.testing.assert_close(noisy.reconstruction, model.generator.decode(latents))
    torch.testing.assert_close(
        plain.reconstruction, model(images, torch.zeros(2, 8)).reconstruction
    )


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_callers_generator():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_cdvae(small(), image_size=16, class_names=TEN, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(7)
    again = build_cdvae(small(), image_size=16, class_names=TEN, seed=5)
    other = build_cdvae(small(), image_size=16, class_names=TEN, seed=6)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.classifier.conv1.weight, other.classifier.conv1.weight)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.rand(2, 3, 32, 32), r"\(N, 3, 16, 16\)"),
        (torch.rand(2, 1, 16, 16), r"\(N, 3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "divide uint8 images by 255"),
    ],
)
def test_decompose_refuses_images_of_another_kind(images, complaint):
    model = build_cdvae(small(), image_size=16, class_names=TEN, seed=0).eval()
    with pytest.raises(CdvaeError, match=complaint):
        model.decompose(images)


def test_impossible_networks_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4"):
        CDVAE(small(), image_size=30, class_names=TEN)
    with pytest.raises(ConfigError, match="at least 2"):
        CDVAE(small(), image_size=16, class_names=("only",))
