"""What one trial of a search does: train, detect, defend, and what that came to."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cdvae_ray.config.defense_job import prediction_set_identity
from cdvae_ray.config.search_job import (
    SEARCH_VERSION,
    MarginSearchConfig,
    ObjectiveSearchConfig,
    SearchConfig,
)
from cdvae_ray.config.search_space import SearchSpace
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.data.load import load_split, load_splits
from cdvae_ray.evaluation.detection_table import DetectionRow
from cdvae_ray.evaluation.image_computations import PredictionColumns
from cdvae_ray.evaluation.image_source import ImageSource
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.evaluation.search_table import Measured
from cdvae_ray.loading import checkpoint_at
from cdvae_ray.runtime.attack import MadeSet, make_sets
from cdvae_ray.runtime.detect import detect
from cdvae_ray.runtime.finetune import finetune_job
from cdvae_ray.runtime.parts import defense_at
from cdvae_ray.runtime.row_sets import RowSetPlan, make_row_sets
from cdvae_ray.runtime.tracked import tracking_address
from cdvae_ray.runtime.train import CdvaeJob
from cdvae_ray.runtime.train_classifier import classifier_job
from cdvae_ray.runtime.training_job import Say, TrainingJob, TrainOutcome, run_training
from cdvae_ray.storage.row_set import read_row_set
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import cdvae_of, model_digest
from cdvae_ray.training.epoch import EpochReport

OnEpoch = Callable[[EpochReport], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """What a trial came to."""

    metrics: dict[str, Measured]
    artifacts: dict[str, str]
    """Locations of checkpoints, by what they are."""


class Search(ABC):
    """What one kind of search tries. Travels to the trials as it is: no open file or network.

    Args:
        name: the job's name, as in jobs/<name>.py.
        config: its settings, with a storage root and an MLflow address that hold everywhere.
        space: what is searched.
    """

    def __init__(self, name: str, config: SearchConfig, space: SearchSpace) -> None:
        self.name, self.config, self.space = name, config, space
        self._known: dict[str, Any] | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that determines every trial's numbers, besides its value: JSON values."""

    def known_settings(self) -> dict[str, Any]:
        """`settings`, which load images and models, but once: trials get them from the driver."""
        if self._known is None:
            self._known = self.settings()
        return self._known

    @abstractmethod
    def prepare(self, say: Say) -> None:
        """What all trials share, made before the first of them."""

    @abstractmethod
    def trial(self, value: float, tracking: TrackingConfig, on_epoch: OnEpoch) -> TrialOutcome:
        """Runs on a worker. All that one value needs; what is stored is found again.

        Args:
            value: of the parameter.
            tracking: for the trainings of the trial.
            on_epoch: takes the numbers of each epoch of the first training.

        Raises:
            CdvaeError: anything that a person can put right, one line each.
        """

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Of the training whose epochs a scheduler compares."""

    def identity(self, value: float) -> dict[str, Any]:
        """All that determines a trial's numbers: JSON values, without paths or resources."""
        return {
            "kind": "search-trial",
            "recipe_version": SEARCH_VERSION,
            "search": self.name,
            "parameter": self.space.parameter,
            "value": value,
            **self.known_settings(),
        }


class ObjectiveSearch(Search):
    """gamma or beta: a CD-VAE and its classifier of G(x) for every value."""

    def __init__(self, name: str, config: ObjectiveSearchConfig, space: SearchSpace) -> None:
        super().__init__(name, config, space)
        self._config = config

    def settings(self) -> dict[str, Any]:
        """Networks, objective and trainings, images, the classifier, detectors and the seed."""
        config = self._config
        cdvae = config.cdvae_job(self.space.parameter, self.space.values[0])
        objective = {
            key: value
            for key, value in to_dict(cdvae.objective).items()
            if key != self.space.parameter
        }
        redundant = config.redundant_job("each trial's own")
        return {
            "cdvae": _trained(cdvae, objective=objective, model=to_dict(cdvae.model)),
            "redundant": _trained(redundant, model=to_dict(redundant.model)),
            "detectors": to_dict(config.detectors),
            **_images_and(config),
        }

    @property
    def epochs(self) -> int:
        """Of the CD-VAE."""
        config = self._config
        return config.cdvae_job(self.space.parameter, self.space.values[0]).training.epochs

    def prepare(self, say: Say) -> None:
        """The adversarial images of the plain classifier, for detection and for defence."""
        config = self._config
        images = load_split(config.data, "test")
        make_sets(config.transfer_job(), images, preset=self.name, say=say)
        detection = config.detection_job("")
        make_sets(detection.attack_job("classifier"), images, preset=self.name, say=say)

    def trial(self, value: float, tracking: TrackingConfig, on_epoch: OnEpoch) -> TrialOutcome:
        """The four curves of Figure 4 at one value."""
        config = self._config
        train = replace(config.cdvae_job(self.space.parameter, value), tracking=tracking)
        cdvae = run_training(CdvaeJob(train), preset=config.train, say=_log.info, on_epoch=on_epoch)
        redundant = replace(config.redundant_job(cdvae.checkpoint), tracking=tracking)
        classifier = _train(classifier_job(redundant, say=_log.info), config.redundant)
        detection = detect(config.detection_job(cdvae.checkpoint), preset=self.name, say=_log.info)
        test_images = len(load_split(config.data, "test"))
        metrics = {
            "class_essential_accuracy": _counted(
                cdvae.metrics["class_essential_accuracy"], test_images
            ),
            "reconstruction_accuracy": Measured(
                cdvae.metrics["reconstruction_accuracy"], images=test_images
            ),
            **_detected(detection.rows),
            **self._defended(cdvae.checkpoint, classifier.checkpoint),
        }
        return TrialOutcome(
            metrics=metrics,
            artifacts={"cdvae": cdvae.checkpoint, "redundant_classifier": classifier.checkpoint},
        )

    def _defended(self, cdvae: str, classifier: str) -> dict[str, Measured]:
        """Accuracy of D_G(G(.)) on clean images and on those made against the plain classifier."""
        config = self._config
        address = tracking_address(config.tracking, config.storage)
        images = load_split(config.data, "test")
        (made,) = make_sets(config.transfer_job(), images, preset=self.name, say=_log.info)
        checkpoint = checkpoint_at(cdvae, tracking_uri=address)
        cdvae_digest = model_digest(checkpoint)
        defense = defense_at(classifier, {cdvae_digest: cdvae_of(checkpoint)}, address)
        plans = {
            name: RowSetPlan(
                label=f"G(x) on {source.label}",
                identity=prediction_set_identity(
                    source.identity(),
                    defense_digest=defense.digest,
                    cdvae_digest=cdvae_digest,
                    images_digest=images.digest,
                    transform="",
                ),
                root=Store.at(config.storage).child("predictions"),
                source=source,
                images=images,
                image_ids=range(len(images)),
                computation="defense",
            )
            for name, source in _shown(made)
        }
        make_row_sets(
            list(plans.values()),
            {"defense": PredictionColumns(defense.module)},
            pool=config.pool,
            doing="asking the defence",
            overwrite=False,
            say=_log.info,
        )
        clean, attacked = (
            read_row_set(plan.store, plan.kind) for plan in (plans["clean"], plans["attacked"])
        )
        right = clean["prediction"] == clean["label"]
        held = right & (attacked["prediction"] == attacked["label"])
        return {
            "redundant_accuracy": _share(int(right.sum()), len(images)),
            "defense_accuracy": _share(int(held.sum()), len(images)),
        }


class MarginSearch(Search):
    """The margin c: adversarial fine-tuning of one CD-VAE for every value."""

    def __init__(self, name: str, config: MarginSearchConfig, space: SearchSpace) -> None:
        super().__init__(name, config, space)
        self._config = config

    def settings(self) -> dict[str, Any]:
        """Objective and training, images, and the models to start from."""
        config = self._config
        job = config.finetune_job(self.space.values[0])
        adversarial = {
            key: value for key, value in to_dict(job.adversarial).items() if key != "margin"
        }
        return {
            "finetune": _trained(
                job,
                objective=to_dict(job.objective),
                adversarial=adversarial,
                clean_weight=job.clean_weight,
                attack=to_dict(job.attack),
            ),
            "from": _digest_at(config.cdvae, config),
            **_images_and(config),
        }

    def prepare(self, say: Say) -> None:
        """Nothing: every trial attacks its own model."""

    @property
    def epochs(self) -> int:
        """Of fine-tuning."""
        return self._config.finetune_job(self.space.values[0]).training.epochs

    def trial(self, value: float, tracking: TrackingConfig, on_epoch: OnEpoch) -> TrialOutcome:
        """Accuracy of the whole defence, clean and under white-box PGD, at one value."""
        config = self._config
        job = finetune_job(replace(config.finetune_job(value), tracking=tracking), say=_log.info)
        outcome = run_training(job, preset=config.finetune, say=_log.info, on_epoch=on_epoch)
        images = {row.quantity: row.images for row in outcome.table}
        return TrialOutcome(
            metrics={
                "accuracy": _counted(
                    outcome.metrics["accuracy"], images["accuracy of the defence"]
                ),
                "attacked_accuracy": _counted(
                    outcome.metrics["attacked_accuracy"], images["accuracy under attack"]
                ),
            },
            artifacts={"defense": outcome.checkpoint},
        )


def _train(job: TrainingJob, preset: str) -> TrainOutcome:
    return run_training(job, preset=preset, say=_log.info)


def _trained(job: Any, **own: Any) -> dict[str, Any]:
    """What of a training job's settings determines its weights."""
    return {
        "augmentation": to_dict(job.augmentation),
        "training": to_dict(job.training),
        "evaluation": to_dict(job.evaluation),
        **own,
    }


def _images_and(config: SearchConfig) -> dict[str, Any]:
    splits = load_splits(config.data)
    return {
        "train_images": splits.train.digest,
        "test_images": splits.test.digest,
        "classifier": _digest_at(config.classifier, config),
        "seed": config.seed,
    }


def _digest_at(location: str, config: SearchConfig) -> str:
    address = tracking_address(config.tracking, config.storage)
    return model_digest(checkpoint_at(location, tracking_uri=address))


def _shown(made: MadeSet) -> list[tuple[str, ImageSource]]:
    return [
        ("clean", ImageSource(kind="clean")),
        ("attacked", ImageSource(kind="adversarial", adversarial=made.stored)),
    ]


def _detected(rows: list[DetectionRow]) -> dict[str, Measured]:
    """AUROC of each detector on R(x), trained and tested on one attack, on those that succeeded."""
    found = {}
    for row in rows:
        if (row.space, row.mode, row.subset) != ("class_essential", "same_attack", "successful"):
            continue
        if row.method not in ("KD", "LID", "MD"):
            continue
        suffix = "" if row.threat_model == "classifier" else "_essential"
        found[f"detection_auroc_{row.method.lower()}{suffix}"] = Measured(
            row.auroc.value, row.auroc.low, row.auroc.high, row.adversarial_images
        )
    return found


def _counted(accuracy: float, images: int) -> Measured:
    return _share(round(accuracy * images), images)


def _share(right: int, images: int) -> Measured:
    return Measured(right / images, *wilson(right, images), images)
