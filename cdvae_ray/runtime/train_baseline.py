"""Train a baseline defence on Ray Train, evaluate it, track it."""

from __future__ import annotations

from typing import Any

from cdvae_ray.config.baseline_job import (
    BaselineJobConfig,
    baseline_identity,
    baseline_run_name,
)
from cdvae_ray.config.checks import require
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.core.random import derive_seed
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import TrainingImages
from cdvae_ray.errors import ConfigError
from cdvae_ray.runtime.defense_job import DefenseJob
from cdvae_ray.runtime.trained_parts import frozen_image_classifier, require_same_data
from cdvae_ray.runtime.training_job import Say, TrainOutcome, run_training
from cdvae_ray.training.baseline_task import PurifierTask, RobustClassifierTask
from cdvae_ray.training.frozen_classifier import FrozenClassifier


def train_baseline(config: BaselineJobConfig, *, preset: str, say: Say) -> TrainOutcome:
    """Runs on the driver. Trains and evaluates, or finds that this was already done.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    chosen, classifier = config.chosen, None
    say(f"baseline: {chosen.label}, {chosen.source}")
    if config.classifier:
        say(f"classifier: loading {config.classifier}")
        classifier = frozen_image_classifier(config.classifier, config)
    elif chosen.is_purifier:
        raise ConfigError(
            "classifier",
            got="none",
            expected=f"the trained classifier that {chosen.label} goes before",
            remedy="set --classifier to a run of jobs/train_classifier.py --input images",
        )
    return run_training(BaselineJob(config, classifier), preset=preset, say=say)


class BaselineJob(DefenseJob):
    """jobs/train_baseline.py on the driver."""

    def __init__(self, config: BaselineJobConfig, classifier: FrozenClassifier | None) -> None:
        super().__init__("train_baseline", config)
        self._config, self._classifier = config, classifier
        self._recipe = config.chosen.recipe(config.recipe)
        self._validation: ImageSet | None = None

    def training_images(self, train: TrainingImages) -> TrainingImages:
        """All of them, but for those that early stopping looks at."""
        count = self._recipe.validation_images
        if count is None:
            return train
        train = self._in_memory(train, "recipe.validation_images", f"{count} to hold out")
        require(
            count < len(train),
            "recipe.validation_images",
            got=count,
            expected=f"fewer than the {len(train)} training images",
            remedy="lower --recipe.validation-images",
        )
        seed = derive_seed(self._config.training.seed, "validation")
        rest, self._validation = train.hold_out(count, seed)
        return rest

    def task(self, train: TrainingImages) -> RobustClassifierTask | PurifierTask:
        """The baseline on these images.

        Raises:
            ConfigError: the classifier was trained on images of another size or other classes.
        """
        config, name = self._config, self._config.name
        if self._classifier is not None:
            require_same_data("classifier", self._classifier, train)
        if config.chosen.is_purifier:
            assert self._classifier is not None
            return PurifierTask(
                baseline=name,
                recipe=self._recipe,
                classifier=self._classifier,
                training=config.training,
                augmentation=config.augmentation,
            )
        return RobustClassifierTask(
            baseline=name,
            recipe=self._recipe,
            model=self._classifier.config if self._classifier else config.model,
            training=config.training,
            augmentation=config.augmentation,
            image_size=train.image_size,
            class_names=train.class_names,
            start=self._classifier,
            labels=self._in_memory(train, "baseline", "sat").labels if name == "sat" else None,
            validation=self._validation,
        )

    @staticmethod
    def _in_memory(train: TrainingImages, what: str, got: str) -> ImageSet:
        if isinstance(train, ImageSet):
            return train
        raise ConfigError(
            what,
            got=f"{got} with data.streaming",
            expected="images in memory",
            remedy="leave out --data.streaming, or choose another baseline",
        )

    def identity(self, *, precision: str, train_digest: str) -> dict[str, Any]:
        """All that determines the trained weights."""
        return baseline_identity(
            self._config,
            precision=precision,
            train_digest=train_digest,
            classifier_digest=self._classifier_digest,
            validation_digest=None if self._validation is None else self._validation.digest,
        )

    def run_name(self, digest: str) -> str:
        """<baseline>-<digest>."""
        return baseline_run_name(self._config, digest)

    def settings(self) -> dict[str, Any]:
        """Baseline, recipe, network and evaluation."""
        config = self._config
        return {
            "baseline": config.baseline,
            "recipe": {k: v for k, v in to_dict(self._recipe).items() if v is not None},
            "classifier": config.classifier,
            "classifier_digest": self._classifier_digest or "",
            "model": to_dict(self._classifier.config if self._classifier else config.model),
            "evaluation": to_dict(config.evaluation),
        }

    def checkpoint_settings(self) -> dict[str, Any]:
        """Which baseline, around or from which classifier."""
        return {
            "baseline": self._config.baseline,
            "classifier_digest": self._classifier_digest or "",
        }

    @property
    def _classifier_digest(self) -> str | None:
        return self._classifier.digest if self._classifier else None
