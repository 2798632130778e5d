"""A tiny CD-VAE and classifiers whose parts and answers vary from image to image, untrained."""

import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier

CLASSES = tuple("abcdefg")
SIZE = 16


def image_pairs(count=11, *, dtype=torch.float32):
    """x, and x' that is x with some noise: multiples of no 1/255, all in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return clean.to(dtype), (clean + 0.1 * noise).clamp(0, 1).to(dtype)


def small_cdvae(evaluation_latent="mean", *, seed=0, dtype=torch.float32):
    """In eval mode; its G has contrast, and its D calls not all images the same."""
    config = ModelConfig(
        vae_width=4,
        latent_size=8,
        classifier_depth=10,
        classifier_widen_factor=1,
        evaluation_latent=evaluation_latent,
    )
    model = build_cdvae(config, image_size=SIZE, class_names=CLASSES, seed=seed).eval().to(dtype)
    images = image_pairs(64, dtype=dtype)[0]
    with torch.no_grad():
        model.generator.decoder[-1].weight.mul_(30)
        model.generator.fc21.weight.mul_(5)
        noise = images.new_zeros(len(images), config.latent_size)
        _centre(model.classifier.linear, model(images, noise).logits)
    return model


def small_classifier(input_kind="images", *, seed=1, classes=CLASSES, dtype=torch.float32):
    """In eval mode; it calls not all images the same."""
    model = build_classifier(
        ClassifierConfig(depth=10, widen_factor=1),
        input_kind=input_kind,
        image_size=SIZE,
        class_names=classes,
        seed=seed,
    )
    model.eval().to(dtype)
    with torch.no_grad():
        _centre(model.network.linear, model(image_pairs(64, dtype=dtype)[0]))
    return model


def _centre(linear, logits):
    # Logits of a fresh network differ more between classes than between images.
    linear.bias.sub_(logits.mean(dim=0))
