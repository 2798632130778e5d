"""The named starting points of `jobs/train_classifier.py`.

Images and augmentation are those of the presets of the same name of `jobs/train.py`, so that a
classifier and the CD-VAE that it is trained behind see the same data.
"""

from __future__ import annotations

from dataclasses import replace

from cdvae_ray.config import presets
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.classifier_job import ClassifierJobConfig
from cdvae_ray.config.presets import Preset
from cdvae_ray.config.train_job import TrainConfig
from cdvae_ray.config.training import ResourcesConfig, TrainingConfig


def _like(cdvae: TrainConfig, *, training: TrainingConfig, every: int = 1) -> ClassifierJobConfig:
    """The classifier of a CD-VAE's preset: the same data and the same network as its D."""
    return ClassifierJobConfig(
        data=cdvae.data,
        augmentation=cdvae.augmentation,
        model=ClassifierConfig(
            depth=cdvae.model.classifier_depth,
            widen_factor=cdvae.model.classifier_widen_factor,
            dropout=cdvae.model.classifier_dropout,
            pixel_mean=cdvae.model.pixel_mean,
            pixel_std=cdvae.model.pixel_std,
            network=cdvae.model.classifier_network,
        ),
        training=training,
        resources=ResourcesConfig(checkpoint_every=every),
    )


def _cosine(training: TrainingConfig, epochs: int) -> TrainingConfig:
    return replace(
        training,
        epochs=epochs,
        schedule="cosine",
        cosine_period_epochs=epochs,
        minimum_learning_rate=1e-5,
    )


_digits, _smoke = presets.preset("quickstart"), presets.preset("smoke")
_small, _paper = presets.preset("cifar10-small"), presets.preset("cifar10")
_tiny = presets.preset("cifar10-tiny")
_restricted = presets.preset("restricted-imagenet")
_restricted_tiny = presets.preset("restricted-tiny")
_restricted_smoke = presets.preset("restricted-smoke")

CLASSIFIER_PRESETS: dict[str, Preset[ClassifierJobConfig]] = {
    "quickstart": Preset(
        "digits, WRN-10-1, 10 epochs: a minute on a laptop (the default)",
        _like(_digits, training=_cosine(_digits.training, 10), every=5),
    ),
    "smoke": Preset(
        "digits, WRN-10-1, 2 epochs: seconds, for tests",
        _like(_smoke, training=_cosine(_smoke.training, 2)),
    ),
    "cifar10-small": Preset(
        "CIFAR-10, WRN-10-2, 10 epochs, for a CPU",
        _like(_small, training=_cosine(_small.training, 10)),
    ),
    "cifar10-tiny": Preset(
        "10,000 images of CIFAR-10, WRN-10-1, 6 epochs, for a CPU",
        _like(_tiny, training=_cosine(_tiny.training, 6)),
    ),
    # The paper does not say how its plain classifiers were trained.
    "cifar10": Preset(
        "CIFAR-10, the paper's WRN-28-10, 100 epochs (our choice: the paper names none)",
        _like(_paper, training=_cosine(_paper.training, 100), every=10),
    ),
    "restricted-imagenet": Preset(
        "restricted ImageNet, the paper's ResNet-50, 60 epochs (our choice: the paper names none)",
        _like(_restricted, training=_cosine(_restricted.training, 60)),
    ),
    "restricted-tiny": Preset(
        "23 classes at 64 x 64 (Tiny-ImageNet), ResNet-10, 8 epochs, for a CPU",
        _like(_restricted_tiny, training=_cosine(_restricted_tiny.training, 8)),
    ),
    "restricted-smoke": Preset(
        "128 of those images, ResNet-10, 2 epochs: for tests",
        _like(_restricted_smoke, training=_cosine(_restricted_smoke.training, 2)),
    ),
}


def classifier_preset(name: str) -> ClassifierJobConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return presets.chosen(CLASSIFIER_PRESETS, name, job="jobs/train_classifier.py")
