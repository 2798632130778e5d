"""The named starting points of `jobs/train_baseline.py`: data, augmentation and network as in the
presets of the same name of `jobs/train_classifier.py`, whose classifiers they are compared with."""

from __future__ import annotations

from dataclasses import replace

from cdvae_ray.config import presets
from cdvae_ray.config.baseline import RecipeConfig
from cdvae_ray.config.baseline_job import BaselineJobConfig
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.presets import Preset
from cdvae_ray.config.training import DefenseEvaluationConfig, TrainingConfig

SMALL_IMAGES, SMALL_STEPS = 10_000, 5
"""Training images and steps of the inner attack in the presets for a CPU, where an adversarial
epoch costs as much as five plain ones."""


def _like(name: str, training: TrainingConfig, *, attack_images: int = 256) -> BaselineJobConfig:
    plain = classifier_preset(name)
    return BaselineJobConfig(
        data=plain.data,
        augmentation=plain.augmentation,
        model=plain.model,
        training=training,
        evaluation=DefenseEvaluationConfig(attack_images=attack_images),
        resources=plain.resources,
    )


def _shorter(name: str, epochs: int) -> TrainingConfig:
    plain = classifier_preset(name).training
    return replace(plain, epochs=epochs, cosine_period_epochs=epochs)


_small = _like("cifar10-small", _shorter("cifar10-small", 4))
_tiny = _like("cifar10-tiny", _shorter("cifar10-tiny", 3))

BASELINE_PRESETS: dict[str, Preset[BaselineJobConfig]] = {
    "quickstart": Preset(
        "digits, WRN-10-1, 10 epochs: minutes on a laptop (the default)",
        _like("quickstart", _shorter("quickstart", 10)),
    ),
    "smoke": Preset(
        "digits, WRN-10-1, 2 epochs: seconds, for tests",
        replace(
            _like("smoke", _shorter("smoke", 2)),
            evaluation=DefenseEvaluationConfig(attack_images=32, attack_num_steps=2),
        ),
    ),
    "cifar10-small": Preset(
        "10,000 images of CIFAR-10, WRN-10-2, 4 epochs, for a CPU: start from a trained classifier",
        replace(
            _small,
            data=replace(_small.data, train_limit=SMALL_IMAGES),
            recipe=RecipeConfig(num_steps=SMALL_STEPS),
        ),
    ),
    "cifar10-tiny": Preset(
        "5,000 images of CIFAR-10, WRN-10-1, 3 epochs, for a CPU: start from a trained classifier",
        replace(
            _tiny,
            data=replace(_tiny.data, train_limit=SMALL_IMAGES // 2),
            recipe=RecipeConfig(num_steps=SMALL_STEPS),
        ),
    ),
    "restricted-tiny": Preset(
        "23 classes of restricted ImageNet at 64 x 64, ResNet-10, 4 epochs, for a CPU: start from "
        "a trained classifier",
        replace(
            _like("restricted-tiny", _shorter("restricted-tiny", 4)),
            recipe=RecipeConfig(num_steps=SMALL_STEPS),
        ),
    ),
    "restricted-imagenet": Preset(
        "restricted ImageNet, ResNet-50, 60 epochs (our choice: the paper names none)",
        _like("restricted-imagenet", _shorter("restricted-imagenet", 60), attack_images=1000),
    ),
    # SGD with a step schedule, as Rice et al. (2020) and Zhang et al. (2019) train WideResNets.
    "cifar10": Preset(
        "CIFAR-10, WRN-28-10, 110 epochs of SGD, as adversarial training is usually done",
        _like(
            "cifar10",
            TrainingConfig(
                epochs=110,
                global_batch_size=128,
                optimizer="sgd",
                learning_rate=0.1,
                weight_decay=5e-4,
                schedule="steps",
                step_epochs=(100, 105),
            ),
            attack_images=1000,
        ),
    ),
}


def baseline_preset(name: str) -> BaselineJobConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return presets.chosen(BASELINE_PRESETS, name, job="jobs/train_baseline.py")
