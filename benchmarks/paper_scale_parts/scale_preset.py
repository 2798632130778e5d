"""What is trained and measured at each size, and how the time is shared out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cdvae_ray.config.attack import SUITES, AttackConfig
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.detection import DetectorsConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.presets import preset
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.errors import ConfigError

TRAINED = ("cdvae", "classifier-x", "classifier-g", "classifier-r")
"""Stages that train, in the order in which they need each other."""
NEEDED = TRAINED[:-1]
"""Those that the tables need; the last adds a row to Table 3 if there is time left for it."""
SHARES = {"cdvae": 0.42, "classifier-x": 0.16, "classifier-g": 0.12, "classifier-r": 0.08}
"""Of the planned seconds; what is left is for the speed and the tables."""

# MD's steps of the image cost a forward pass a layer and magnitude: left out.
_DETECTORS = DetectorsConfig(magnitudes=(0.0,), num_neighbours=(20, 50, 90))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePreset:
    """One size of the whole experiment."""

    summary: str
    """For the help."""
    model: ModelConfig
    """Of the CD-VAE; the classifiers have D's network."""
    objective: ObjectiveConfig
    """Of the CD-VAE."""
    augmentation: AugmentationConfig
    """Of all training."""
    training: TrainingConfig
    """Of all training; the number of epochs and the schedule come from the plan."""
    detection: tuple[AttackConfig, ...] = SUITES["detection"].attacks
    """Of Table 4."""
    grey_box: tuple[AttackConfig, ...] = SUITES["grey-box"].attacks
    """Of Table 6, against the plain classifier."""
    white_box: tuple[AttackConfig, ...] = SUITES["white-box-pgd"].attacks[:1]
    """Against the defence by G(x) itself."""
    detectors: DetectorsConfig = _DETECTORS
    """KD, LID, MD."""
    study_images: int = 2000
    """Test images of Tables 1 and 2, the first ones (fewer if there are fewer)."""
    detection_images: int = 1000
    """Of Table 4."""
    defense_images: int = 500
    """Of Table 6."""
    batch_size: int = 500
    """Images a pass of an attack or an evaluation."""
    resamples: int = 300
    """Behind the intervals of Table 4; the command `combine` takes more, at home."""
    fixed_epochs: dict[str, int] | None = None
    """Epochs by stage whatever the time; None: as many as fit."""
    speed_rounds: int = 5
    speed_steps: int = 10
    """Steps a round of each form."""
    matmul_size: int = 8192
    """Side of the matrices whose product is the measured peak."""

    @property
    def classifier(self) -> ClassifierConfig:
        """The network of the plain classifiers: D's."""
        return ClassifierConfig(
            depth=self.model.classifier_depth,
            widen_factor=self.model.classifier_widen_factor,
            dropout=self.model.classifier_dropout,
            pixel_mean=self.model.pixel_mean,
            pixel_std=self.model.pixel_std,
        )


def _short(attacks: tuple[AttackConfig, ...], num_steps: int) -> tuple[AttackConfig, ...]:
    return tuple(
        each if each.num_steps is None else replace(each, num_steps=num_steps) for each in attacks
    )


_cifar, _cpu = preset("cifar10"), preset("cifar10-small")

SCALE_PRESETS: dict[str, ScalePreset] = {
    "paper": ScalePreset(
        summary="CIFAR-10, the paper's WRN-28-10: for a GPU",
        model=_cifar.model,
        objective=_cifar.objective,
        augmentation=_cifar.augmentation,
        training=_cifar.training,
    ),
    "small": ScalePreset(
        summary="CIFAR-10, WRN-10-2: for a CPU, or for a first try on a GPU",
        model=_cpu.model,
        objective=_cpu.objective,
        augmentation=_cpu.augmentation,
        training=_cpu.training,
        grey_box=_short(SUITES["grey-box"].attacks, 20),
        white_box=_short(SUITES["white-box-pgd"].attacks[:1], 20),
        study_images=500,
        detection_images=500,
        defense_images=200,
        batch_size=100,
        speed_rounds=3,
        speed_steps=3,
        matmul_size=1024,
    ),
    "smoke": ScalePreset(
        summary="made-up images of 16 x 16, WRN-10-1, 2 epochs: for tests",
        model=replace(_cpu.model, vae_width=4, latent_size=8, classifier_widen_factor=1),
        objective=_cpu.objective,
        augmentation=AugmentationConfig(crop_padding=1),
        training=replace(_cpu.training, global_batch_size=32),
        detection=_short(SUITES["detection"].attacks, 2),
        grey_box=_short(SUITES["grey-box"].attacks, 2),
        white_box=_short(SUITES["white-box-pgd"].attacks[:1], 2),
        detectors=DetectorsConfig(magnitudes=(0.0,), num_neighbours=(10,), lid_references=64),
        study_images=32,
        detection_images=80,
        defense_images=32,
        batch_size=40,
        resamples=20,
        fixed_epochs=dict.fromkeys(TRAINED, 2),
        speed_rounds=1,
        speed_steps=2,
        matmul_size=128,
    ),
}


def scale_preset(name: str, *, gamma: float | None, recalibration_steps: int) -> ScalePreset:
    """A preset, with another weight of the classification if one is given, and recalibration.

    Raises:
        ConfigError: no such preset.
    """
    if name not in SCALE_PRESETS:
        raise ConfigError(
            "--preset",
            got=name,
            expected=f"one of {', '.join(SCALE_PRESETS)}",
            remedy="choose one of them",
        )
    chosen = SCALE_PRESETS[name]
    training = replace(chosen.training, recalibration_steps=recalibration_steps)
    objective = chosen.objective if gamma is None else replace(chosen.objective, gamma=gamma)
    return replace(chosen, objective=objective, training=training)
