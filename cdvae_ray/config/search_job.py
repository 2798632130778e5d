"""Everything that `jobs/tune_gamma.py`, `tune_beta.py` and `tune_margin.py` take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdvae_ray.config.attack_job import AttackJobConfig, ChecksConfig, PoolConfig
from cdvae_ray.config.checks import at_least, require
from cdvae_ray.config.classifier_job import ClassifierJobConfig
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.detection import AdaptiveConfig, DetectorsConfig
from cdvae_ray.config.detection_job import DetectionJobConfig
from cdvae_ray.config.finetune_job import FinetuneJobConfig
from cdvae_ray.config.finetune_presets import finetune_preset
from cdvae_ray.config.presets import (
    RESTRICTED,
    RESTRICTED_TINY,
    RESTRICTED_TRAIN,
    Preset,
    chosen,
    preset,
)
from cdvae_ray.config.search_space import SearchParameter
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.config.train_job import TrainConfig
from cdvae_ray.config.training import ResourcesConfig, TrainingConfig
from cdvae_ray.config.training_job import on_images

SEARCH_VERSION = 1
"""Raised when the same settings would give other numbers: part of every trial's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What every search takes."""

    space: Path | None = None
    """A file of the search space; none: the job's own of tune_spaces/."""
    strategy: Literal["grid", "optuna"] = "grid"
    """grid: every value of the space. optuna: its sampler for several objectives chooses."""
    num_samples: int = 0
    """Trials of --strategy optuna, those of an earlier call included; 0: as the space says."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: stop trials whose training accuracy is behind others' after as many epochs. Values of
    gamma do not compare so: it suits searches for the best accuracy."""
    grace_epochs: int = 2
    """Epochs that asha leaves every trial: >= 1."""
    max_concurrent: int = 1
    """Trials at once: >= 1."""
    classifier: str = ""
    """The plain classifier on x: a checkpoint or run folder, also in object storage, or runs:/...,
    models:/..."""
    epochs: int | None = None
    """Another number of epochs of every training in a trial, schedules shortened with it."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images of every trial."""
    seed: int = 0
    """Keys attacks, noise and the sampler: >= 0."""
    training_seed: int | None = None
    """Another seed of every training in a trial: >= 0. None: the presets'."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers of each training."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers of attacks and features."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow: a run for the search, one nested in it for each trial."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        at_least("num_samples", self.num_samples, 0)
        at_least("grace_epochs", self.grace_epochs, 1)
        at_least("max_concurrent", self.max_concurrent, 1)
        at_least("seed", self.seed, 0)
        if self.epochs is not None:
            at_least("epochs", self.epochs, 1)
        if self.training_seed is not None:
            at_least("training_seed", self.training_seed, 0)
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )

    def require_parts(self) -> None:
        """Raises ConfigError without a classifier. Not at construction: a preset names nothing."""
        require(
            bool(self.classifier),
            "classifier",
            got="none",
            expected="a plain classifier on x",
            remedy="set --classifier to a run of jobs/train_classifier.py --input images",
        )

    def shortened(self, training: TrainingConfig) -> TrainingConfig:
        """A preset's training with --epochs and --training-seed."""
        if self.training_seed is not None:
            training = replace(training, seed=self.training_seed)
        if self.epochs is None or self.epochs == training.epochs:
            return training
        changed = replace(training, epochs=self.epochs)
        if training.schedule == "cosine":
            changed = replace(changed, cosine_period_epochs=self.epochs)
        return changed

    def resources_of(self, training: TrainingConfig) -> ResourcesConfig:
        """One checkpoint at the end of a trial's training, unless more are asked for."""
        every = min(self.resources.checkpoint_every, training.epochs)
        return replace(self.resources, checkpoint_every=every)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveSearchConfig(SearchConfig):
    """Trains a CD-VAE and a classifier of G(x) for every value, detects and defends with them."""

    train: str = "quickstart"
    """Preset of jobs/train.py: networks, augmentation, objective and training of each CD-VAE."""
    redundant: str = "quickstart"
    """Preset of jobs/train_classifier.py: likewise of each classifier of G(x)."""
    detectors: DetectorsConfig = field(default_factory=lambda: DetectorsConfig(magnitudes=(0.0,)))
    """Settings of KD, LID and MD."""

    def cdvae_job(self, parameter: SearchParameter, value: float) -> TrainConfig:
        """The training of a trial's CD-VAE."""
        base = on_images(preset(self.train), self.data)
        training = self.shortened(base.training)
        changed: dict[str, Any] = {parameter: value}
        return replace(
            base,
            objective=replace(base.objective, **changed),
            **self._of_trial(training),
        )

    def redundant_job(self, cdvae: str) -> ClassifierJobConfig:
        """The training of a trial's classifier of G(x)."""
        base = on_images(classifier_preset(self.redundant), self.data)
        training = self.shortened(base.training)
        return replace(base, input="class_redundant", cdvae=cdvae, **self._of_trial(training))

    def detection_job(self, cdvae: str) -> DetectionJobConfig:
        """The detection of a trial."""
        return DetectionJobConfig(
            checkpoint=cdvae,
            classifier=self.classifier,
            suite="detection",
            attacks=("PGD-Linf",),
            detectors=self.detectors,
            adaptive=AdaptiveConfig(num_images=0),
            data=self.data,
            seed=self.seed,
            pool=self.pool,
            tracking=replace(self.tracking, enabled=False),
            storage=self.storage,
        )

    def transfer_job(self) -> AttackJobConfig:
        """The adversarial images of the plain classifier, which every trial defends against."""
        return AttackJobConfig(
            suite="grey-box",
            attacks=("PGD-Linf",),
            threat_model="classifier",
            classifier=self.classifier,
            data=self.data,
            seed=self.seed,
            pool=self.pool,
            checks=ChecksConfig(strength_images=0),
            tracking=replace(self.tracking, enabled=False),
            storage=self.storage,
        )

    def _of_trial(self, training: TrainingConfig) -> dict[str, Any]:
        return {
            "training": training,
            "resources": self.resources_of(training),
            "tracking": self.tracking,
            "storage": self.storage,
            "resume": True,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MarginSearchConfig(SearchConfig):
    """Fine-tunes a CD-VAE and its D_G adversarially for every margin."""

    cdvae: str = ""
    """The CD-VAE to start from, like --classifier."""
    finetune: str = "quickstart"
    """Preset of jobs/finetune_adversarial.py."""

    def require_parts(self) -> None:
        """Raises ConfigError unless there is something to start from."""
        SearchConfig.require_parts(self)
        require(
            bool(self.cdvae),
            "cdvae",
            got="none",
            expected="the CD-VAE to start from",
            remedy="set --cdvae; train one by jobs/train.py",
        )

    def finetune_job(self, margin: float) -> FinetuneJobConfig:
        """The training of a trial."""
        base = on_images(finetune_preset(self.finetune), self.data)
        training = self.shortened(base.training)
        return replace(
            base,
            cdvae=self.cdvae,
            classifier=self.classifier,
            adversarial=replace(base.adversarial, margin=margin),
            training=training,
            resources=self.resources_of(training),
            tracking=self.tracking,
            storage=self.storage,
            resume=True,
        )


_DIGITS = DataConfig(source="digits", image_size=16)
_CIFAR10 = DataConfig(source="cifar10", path="./data", image_size=32)

OBJECTIVE_PRESETS: dict[str, Preset[ObjectiveSearchConfig]] = {
    "quickstart": Preset(
        "digits, small networks: a quarter of an hour on a laptop (the default)",
        ObjectiveSearchConfig(detectors=DetectorsConfig(magnitudes=(0.0,), lid_references=1000)),
    ),
    "smoke": Preset(
        "some digits, tiny networks, 2 epochs: for tests",
        ObjectiveSearchConfig(
            train="smoke",
            redundant="smoke",
            detectors=DetectorsConfig(
                magnitudes=(0.0,), num_neighbours=(10, 5), lid_references=200
            ),
            data=replace(_DIGITS, train_limit=400, test_limit=200),
        ),
    ),
    "cifar10-small": Preset(
        "10,000 images of CIFAR-10, small networks, 5 epochs, for a CPU",
        ObjectiveSearchConfig(
            train="cifar10-small",
            redundant="cifar10-small",
            epochs=5,
            detectors=DetectorsConfig(magnitudes=(0.0,)),
            data=replace(_CIFAR10, train_limit=10_000, test_limit=1000),
        ),
    ),
    "cifar10-tiny": Preset(
        "5,000 images of CIFAR-10, networks of half the width, 4 epochs: several seeds on a CPU",
        ObjectiveSearchConfig(
            train="cifar10-tiny",
            redundant="cifar10-tiny",
            epochs=4,
            detectors=DetectorsConfig(magnitudes=(0.0,)),
            data=replace(_CIFAR10, train_limit=5000, test_limit=500),
        ),
    ),
    "cifar10": Preset(
        "CIFAR-10 by the paper's text: a WRN-28-10 and its classifier for every value",
        ObjectiveSearchConfig(train="cifar10", redundant="cifar10", data=_CIFAR10),
    ),
    "restricted-tiny": Preset(
        "23 classes of restricted ImageNet at 64 x 64, small networks, for a CPU",
        ObjectiveSearchConfig(
            train="restricted-tiny",
            redundant="restricted-tiny",
            detectors=DetectorsConfig(magnitudes=(0.0,)),
            data=RESTRICTED_TINY,
        ),
    ),
    "restricted-imagenet": Preset(
        "restricted ImageNet by the paper's text, on 100 training images a class",
        ObjectiveSearchConfig(
            train="restricted-imagenet",
            redundant="restricted-imagenet",
            data=replace(RESTRICTED, train_limit=RESTRICTED_TRAIN),
        ),
    ),
}

MARGIN_PRESETS: dict[str, Preset[MarginSearchConfig]] = {
    "quickstart": Preset(
        "digits, small networks: minutes on a laptop (the default)", MarginSearchConfig()
    ),
    "smoke": Preset(
        "some digits, tiny networks, 2 epochs: for tests",
        MarginSearchConfig(
            finetune="smoke", data=replace(_DIGITS, train_limit=256, test_limit=100)
        ),
    ),
    "cifar10-small": Preset(
        "10,000 images of CIFAR-10, small networks, 4 epochs, for a CPU",
        MarginSearchConfig(
            finetune="cifar10-small", data=replace(_CIFAR10, train_limit=10_000, test_limit=1000)
        ),
    ),
    "cifar10": Preset(
        "CIFAR-10 by the paper's text", MarginSearchConfig(finetune="cifar10", data=_CIFAR10)
    ),
}


def gamma_preset(name: str) -> ObjectiveSearchConfig:
    """The config of a preset of `jobs/tune_gamma.py`.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(OBJECTIVE_PRESETS, name, job="jobs/tune_gamma.py")


def beta_preset(name: str) -> ObjectiveSearchConfig:
    """The config of a preset of `jobs/tune_beta.py`.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(OBJECTIVE_PRESETS, name, job="jobs/tune_beta.py")


def margin_preset(name: str) -> MarginSearchConfig:
    """The config of a preset of `jobs/tune_margin.py`.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(MARGIN_PRESETS, name, job="jobs/tune_margin.py")
