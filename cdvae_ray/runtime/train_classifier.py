"""Train a plain classifier on x, G(x) or R(x) on Ray Train, evaluate it, track it."""

from __future__ import annotations

import functools
from typing import Any

from cdvae_ray.config.classifier_job import (
    ClassifierJobConfig,
    classifier_evaluation_identity,
    classifier_identity,
    classifier_run_name,
)
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.core.pretrained import read_pretrained
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import TrainingImages
from cdvae_ray.evaluation.after_training import Evaluate, FinalNumbers, evaluate_classifier_task
from cdvae_ray.evaluation.results import TableRow, classifier_table
from cdvae_ray.runtime.trained_parts import frozen_cdvae, require_same_data
from cdvae_ray.runtime.training_job import (
    Say,
    TrainingJob,
    TrainOutcome,
    run_training,
)
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.frozen_cdvae import FrozenCdvae


def train_classifier(config: ClassifierJobConfig, *, preset: str, say: Say) -> TrainOutcome:
    """Runs on the driver. Trains and evaluates, or finds that this was already done.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    return run_training(classifier_job(config, say=say), preset=preset, say=say)


def classifier_job(config: ClassifierJobConfig, *, say: Say) -> ClassifierJob:
    """Runs on the driver. The job with the CD-VAE that it is trained behind, if there is one.

    Raises:
        CdvaeError: the CD-VAE is missing or unsound.
    """
    cdvae = None
    if config.cdvae:
        say(f"CD-VAE: loading {config.cdvae}")
        cdvae = frozen_cdvae(config.cdvae, config)
    return ClassifierJob(config, cdvae)


class ClassifierJob(TrainingJob):
    """jobs/train_classifier.py on the driver."""

    def __init__(self, config: ClassifierJobConfig, cdvae: FrozenCdvae | None) -> None:
        super().__init__("train_classifier", config)
        self._config, self._cdvae = config, cdvae
        self._pretrained = read_pretrained(config.pretrained) if config.pretrained else None

    def task(self, train: TrainingImages) -> ClassifierTask:
        """A classifier of these images, behind the CD-VAE if there is one.

        Raises:
            ConfigError: the CD-VAE was trained on images of another size or of other classes.
        """
        config = self._config
        if self._cdvae is not None:
            require_same_data("cdvae", self._cdvae, train)
        return ClassifierTask(
            input_kind=config.input,
            cdvae=self._cdvae,
            model=config.model,
            training=config.training,
            augmentation=config.augmentation,
            image_size=train.image_size,
            class_names=train.class_names,
            pretrained=self._pretrained,
        )

    def identity(self, *, precision: str, train_digest: str) -> dict[str, Any]:
        """All that determines the trained weights."""
        return classifier_identity(
            self._config,
            precision=precision,
            train_digest=train_digest,
            cdvae_digest=self._cdvae_digest,
            pretrained_digest=self._pretrained.digest if self._pretrained else None,
        )

    def evaluation_identity(self, *, training_digest: str, test_digest: str) -> dict[str, Any]:
        """All that determines the numbers after training."""
        return classifier_evaluation_identity(
            self._config, training_digest=training_digest, test_digest=test_digest
        )

    def run_name(self, digest: str) -> str:
        """classifier-<digest>."""
        return classifier_run_name(digest)

    def settings(self) -> dict[str, Any]:
        """Input, CD-VAE, network and evaluation."""
        config = self._config
        return {
            "input": config.input,
            "cdvae": config.cdvae,
            "cdvae_digest": self._cdvae_digest or "",
            "model": to_dict(config.model),
            "evaluation": to_dict(config.evaluation),
            "pretrained": self._pretrained.digest if self._pretrained else "",
        }

    def checkpoint_settings(self) -> dict[str, Any]:
        """What it is trained on, behind which CD-VAE."""
        return {"input": self._config.input, "cdvae_digest": self._cdvae_digest or ""}

    def evaluate(self) -> Evaluate:
        """Accuracy on its own input and on the others that can be made."""
        return functools.partial(evaluate_classifier_task, config=self._config.evaluation)

    def table(self, numbers: FinalNumbers, test: ImageSet) -> list[TableRow]:
        """A row of Table 3, a line a number."""
        return classifier_table(
            numbers.metrics,
            input_kind=self._config.input,
            num_classes=test.num_classes,
            test_images=numbers.test_images,
        )

    @property
    def _cdvae_digest(self) -> str | None:
        return self._cdvae.digest if self._cdvae else None
