"""The main job: train a CD-VAE on Ray Train, evaluate it, track it."""

from __future__ import annotations

import functools
from typing import Any

from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.train_job import (
    TrainConfig,
    evaluation_identity,
    run_name,
    training_identity,
)
from cdvae_ray.core.pretrained import read_pretrained
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import TrainingImages
from cdvae_ray.evaluation.after_training import Evaluate, FinalNumbers, evaluate_cdvae_task
from cdvae_ray.evaluation.picture import decomposition_picture
from cdvae_ray.evaluation.results import TableRow, training_table
from cdvae_ray.runtime.training_job import Say, TrainingJob, TrainOutcome, run_training
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.checkpoint import checkpoint_name, load_model


def train(config: TrainConfig, *, preset: str, say: Say) -> TrainOutcome:
    """Runs on the driver. Trains and evaluates, or finds that this was already done.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    return run_training(CdvaeJob(config), preset=preset, say=say)


class CdvaeJob(TrainingJob):
    """jobs/train.py on the driver."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__("train", config)
        self._config = config
        self._pretrained = read_pretrained(config.pretrained) if config.pretrained else None

    def task(self, train: TrainingImages) -> CdvaeTask:
        """G and D on these images."""
        config = self._config
        return CdvaeTask(
            model=config.model,
            objective=config.objective,
            training=config.training,
            augmentation=config.augmentation,
            image_size=train.image_size,
            class_names=train.class_names,
            pretrained=self._pretrained,
        )

    def identity(self, *, precision: str, train_digest: str) -> dict[str, Any]:
        """All that determines the trained weights."""
        return training_identity(
            self._config,
            precision=precision,
            train_digest=train_digest,
            pretrained_digest=self._pretrained.digest if self._pretrained else None,
        )

    def evaluation_identity(self, *, training_digest: str, test_digest: str) -> dict[str, Any]:
        """All that determines the numbers after training."""
        return evaluation_identity(
            self._config, training_digest=training_digest, test_digest=test_digest
        )

    def run_name(self, digest: str) -> str:
        """cdvae-<digest>."""
        return run_name(digest)

    def settings(self) -> dict[str, Any]:
        """Networks, loss and evaluation."""
        config = self._config
        return {
            "model": to_dict(config.model),
            "objective": to_dict(config.objective),
            "evaluation": to_dict(config.evaluation),
            "pretrained": self._pretrained.digest if self._pretrained else "",
        }

    def checkpoint_settings(self) -> dict[str, Any]:
        """The weights of Eq. (1)."""
        return {"gamma": self._config.objective.gamma, "beta": self._config.objective.beta}

    def evaluate(self) -> Evaluate:
        """Clean numbers and the PGD look."""
        return functools.partial(evaluate_cdvae_task, config=self._config.evaluation)

    def table(self, numbers: FinalNumbers, test: ImageSet) -> list[TableRow]:
        """Clean numbers, and attacked ones with their threat model."""
        return training_table(
            numbers.metrics,
            self._config.evaluation,
            test_images=numbers.test_images,
            attacked=numbers.attacked_images,
        )

    def picture(self, run: Store, test: ImageSet, *, caption: str) -> bytes:
        """x, G(x) and R(x) of the first test images, by the last checkpoint as a user loads it."""
        config = self._config
        model = load_model(run, checkpoint_name(config.training.epochs))
        count = min(config.evaluation.picture_images, len(test))
        return decomposition_picture(
            model,
            test.images[:count],
            test.labels[:count],
            caption=f"{caption}, gamma = {config.objective.gamma:g}",
        )
