"""Adversarial fine-tuning of a CD-VAE on Ray Train: Eqs. (7)-(10)."""

from __future__ import annotations

from typing import Any

from cdvae_ray.config.finetune_job import (
    FinetuneJobConfig,
    finetune_identity,
    finetune_run_name,
)
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.data.load import TrainingImages
from cdvae_ray.errors import ConfigError
from cdvae_ray.runtime.defense_job import DefenseJob
from cdvae_ray.runtime.trained_parts import frozen_cdvae, frozen_classifier, require_same_data
from cdvae_ray.runtime.training_job import Say, TrainOutcome, run_training
from cdvae_ray.training.finetune_task import FinetuneTask
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.frozen_classifier import FrozenClassifier


def finetune(config: FinetuneJobConfig, *, preset: str, say: Say) -> TrainOutcome:
    """Runs on the driver. Trains and evaluates, or finds that this was already done.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    return run_training(finetune_job(config, say=say), preset=preset, say=say)


def finetune_job(config: FinetuneJobConfig, *, say: Say) -> FinetuneJob:
    """Runs on the driver. The job with the models that it starts from.

    Raises:
        CdvaeError: a model is missing, unsound, of another kind, or does not fit the others.
    """
    config.require_parts()
    say(f"CD-VAE: loading {config.cdvae}")
    cdvae = frozen_cdvae(config.cdvae, config)
    say(f"classifier: loading {config.classifier}")
    classifier = frozen_classifier(config.classifier, config)
    _require_start(cdvae, classifier, config)
    return FinetuneJob(config, cdvae, classifier)


class FinetuneJob(DefenseJob):
    """jobs/finetune_adversarial.py on the driver."""

    def __init__(
        self, config: FinetuneJobConfig, cdvae: FrozenCdvae, classifier: FrozenClassifier
    ) -> None:
        super().__init__("finetune_adversarial", config)
        self._config, self._cdvae, self._classifier = config, cdvae, classifier

    def task(self, train: TrainingImages) -> FinetuneTask:
        """Fine-tuning on these images.

        Raises:
            ConfigError: a model to start from was trained on images of another size or of other
                classes.
        """
        require_same_data("cdvae", self._cdvae, train)
        require_same_data("classifier", self._classifier, train)
        config = self._config
        return FinetuneTask(
            cdvae=self._cdvae,
            classifier=self._classifier,
            adversarial=config.adversarial,
            clean=config.objective,
            clean_weight=config.clean_weight,
            attack=config.attack.attack(),
            training=config.training,
            augmentation=config.augmentation,
        )

    def identity(self, *, precision: str, train_digest: str) -> dict[str, Any]:
        """All that determines the trained weights."""
        return finetune_identity(
            self._config,
            precision=precision,
            train_digest=train_digest,
            cdvae_digest=self._cdvae.digest,
            classifier_digest=self._classifier.digest,
        )

    def run_name(self, digest: str) -> str:
        """finetune-<digest>."""
        return finetune_run_name(digest)

    def settings(self) -> dict[str, Any]:
        """What it starts from, attack, losses and evaluation."""
        config = self._config
        return {
            "cdvae": config.cdvae,
            "cdvae_digest": self._cdvae.digest,
            "classifier": config.classifier,
            "classifier_digest": self._classifier.digest,
            "attack": to_dict(config.attack),
            "adversarial": to_dict(config.adversarial),
            "objective": to_dict(config.objective),
            "clean_weight": config.clean_weight,
            "evaluation": to_dict(config.evaluation),
        }

    def checkpoint_settings(self) -> dict[str, Any]:
        """By which margin, weights and norm."""
        config = self._config
        return {
            "margin": config.adversarial.margin,
            "gamma": config.adversarial.gamma,
            "beta": config.adversarial.beta,
            "norm": config.attack.norm,
        }


def _require_start(
    cdvae: FrozenCdvae, classifier: FrozenClassifier, config: FinetuneJobConfig
) -> None:
    if classifier.input_kind == "class_essential":
        raise ConfigError(
            "classifier",
            got="one trained on class_essential",
            expected="one trained on images or on class_redundant, for D_G to start from",
            remedy="set --classifier to such a run of jobs/train_classifier.py",
        )
    behind = classifier.cdvae_digest
    if behind is not None and behind != cdvae.digest:
        raise ConfigError(
            "classifier",
            got=f"one trained on G(x) of CD-VAE {behind[:12]}",
            expected=f"one of {config.cdvae}, CD-VAE {cdvae.digest[:12]}",
            remedy="give the CD-VAE and the classifier that belong together",
        )
