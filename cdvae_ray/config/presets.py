"""The named starting points of `jobs/train.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.train_job import TrainConfig
from cdvae_ray.config.training import EvaluationConfig, ResourcesConfig, TrainingConfig
from cdvae_ray.errors import ConfigError

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class Preset(Generic[Config]):
    """A config with the sentence that the help shows beside its name."""

    summary: str
    config: Config


_GREY = (0.5, 0.5, 0.5)

_quickstart = TrainConfig(
    data=DataConfig(source="digits", image_size=16),
    augmentation=AugmentationConfig(crop_padding=1),
    model=ModelConfig(
        vae_width=16,
        latent_size=64,
        classifier_depth=10,
        classifier_widen_factor=1,
        classifier_dropout=0.0,
        pixel_mean=_GREY,
        pixel_std=_GREY,
    ),
    training=TrainingConfig(
        epochs=30,
        global_batch_size=64,
        learning_rate=2e-3,
        schedule="cosine",
        cosine_period_epochs=30,
        minimum_learning_rate=1e-5,
    ),
    resources=ResourcesConfig(checkpoint_every=5),
)

_smoke = replace(
    _quickstart,
    data=DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100),
    model=replace(_quickstart.model, vae_width=4, latent_size=8),
    training=replace(_quickstart.training, epochs=2, cosine_period_epochs=2),
    evaluation=EvaluationConfig(attack_images=32, attack_num_steps=2),
    resources=ResourcesConfig(),
)

_paper = TrainConfig(
    data=DataConfig(source="cifar10", path="./data", image_size=32),
    augmentation=AugmentationConfig(crop_padding=4, horizontal_flip=True),
    model=ModelConfig(),
    objective=ObjectiveConfig(gamma=2.0, beta=0.2),
    training=TrainingConfig(epochs=300, global_batch_size=256),
    evaluation=EvaluationConfig(attack_images=1000),
    resources=ResourcesConfig(checkpoint_every=10),
)

_released = replace(
    _paper,
    augmentation=AugmentationConfig(
        crop_padding=4,
        horizontal_flip=True,
        rand_augment_ops=2,
        rand_augment_magnitude=10,
        cutout_size=16,
        mixup_alpha=2.0,
    ),
    objective=ObjectiveConfig(
        gamma=0.2, beta=0.2, reconstruction_weights=((0, 10.0), (100, 5.0), (200, 1.0))
    ),
    training=replace(
        _paper.training,
        seed=666,
        schedule="cosine",
        cosine_period_epochs=50,
        minimum_learning_rate=2e-4,
    ),
)

_small = replace(
    _paper,
    model=ModelConfig(
        vae_width=32,
        latent_size=256,
        classifier_depth=10,
        classifier_widen_factor=2,
        classifier_dropout=0.0,
    ),
    training=TrainingConfig(
        epochs=10,
        global_batch_size=128,
        learning_rate=2e-3,
        schedule="cosine",
        cosine_period_epochs=10,
        minimum_learning_rate=1e-5,
    ),
    resources=ResourcesConfig(checkpoint_every=1),
)

_tiny = replace(
    _small,
    data=replace(_small.data, train_limit=10_000, test_limit=2000),
    model=replace(_small.model, vae_width=16, latent_size=128, classifier_widen_factor=1),
    training=replace(_small.training, epochs=6, cosine_period_epochs=6),
    evaluation=EvaluationConfig(),
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_restricted = TrainConfig(
    data=DataConfig(
        source="parquet", path="./data/restricted-imagenet", image_size=299, streaming=True
    ),
    augmentation=AugmentationConfig(min_crop_area=0.25, horizontal_flip=True),
    model=ModelConfig(
        generator="vq_vae",
        vae_width=128,
        codebook_size=512,
        classifier_network="resnet",
        classifier_depth=50,
        classifier_widen_factor=1,
        classifier_dropout=0.0,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
    ),
    objective=ObjectiveConfig(gamma=2.0, beta=0.2),
    training=TrainingConfig(epochs=60, global_batch_size=256),
    evaluation=EvaluationConfig(attack_images=1000, batch_size=64),
)

_restricted_tiny = replace(
    _restricted,
    data=DataConfig(source="parquet", path="./data/restricted-tiny-imagenet", image_size=64),
    augmentation=AugmentationConfig(crop_padding=4, horizontal_flip=True),
    model=replace(_restricted.model, vae_width=32, codebook_size=128, classifier_depth=10),
    training=TrainingConfig(
        epochs=8,
        global_batch_size=128,
        schedule="cosine",
        cosine_period_epochs=8,
        minimum_learning_rate=1e-5,
    ),
    evaluation=EvaluationConfig(batch_size=128),
)

_restricted_smoke = replace(
    _restricted_tiny,
    data=replace(_restricted_tiny.data, train_limit=128, test_limit=64),
    model=replace(_restricted_tiny.model, vae_width=8, codebook_size=16),
    training=replace(
        _restricted_tiny.training, epochs=2, cosine_period_epochs=2, global_batch_size=32
    ),
    evaluation=EvaluationConfig(attack_images=16, attack_num_steps=2),
)

RESTRICTED, RESTRICTED_TINY = _restricted.data.in_memory(), _restricted_tiny.data
"""Images of every job's presets on restricted ImageNet, and on what Tiny-ImageNet has of it."""
RESTRICTED_TRAIN = 20_300
"""Training images of the jobs that hold them in memory at 299 x 299: 100 a class, 5.4 GB."""

PRESETS: dict[str, Preset[TrainConfig]] = {
    "quickstart": Preset("digits, small networks: minutes on a laptop (the default)", _quickstart),
    "smoke": Preset("digits, tiny networks, 2 epochs: seconds, for tests", _smoke),
    "cifar10-small": Preset("CIFAR-10 with small networks, for a CPU", _small),
    "cifar10-tiny": Preset(
        "10,000 images of CIFAR-10, networks of half the width: several seeds on a CPU", _tiny
    ),
    "cifar10": Preset("the paper's text: WRN-28-10, gamma 2, beta 0.2, 300 epochs", _paper),
    "cifar10-released": Preset(
        "the released recipe: curriculum, mixup, RandAugment, cosine, gamma 0.2", _released
    ),
    "restricted-imagenet": Preset(
        "the paper's text: 203 classes at 299 x 299, VQ-VAE, ResNet-50, 60 epochs", _restricted
    ),
    "restricted-tiny": Preset(
        "23 of the 203 classes at 64 x 64 (Tiny-ImageNet), VQ-VAE, ResNet-10, for a CPU",
        _restricted_tiny,
    ),
    "restricted-smoke": Preset(
        "128 of those images, a tiny VQ-VAE, 2 epochs: for tests", _restricted_smoke
    ),
}


def preset(name: str) -> TrainConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(PRESETS, name, job="jobs/train.py")


def chosen(presets: Mapping[str, Preset[Config]], name: str, *, job: str) -> Config:
    """The config of one of a job's presets.

    Raises:
        ConfigError: none of them has that name.
    """
    if name not in presets:
        raise ConfigError(
            "preset",
            got=repr(name),
            expected=f"one of {', '.join(presets)}",
            remedy=f"run {job} --help for what each is",
        )
    return presets[name].config
