"""Trained models that a training job starts from or trains behind, checked to fit its images."""

from __future__ import annotations

from cdvae_ray.config.training_job import TrainingJobConfig
from cdvae_ray.core.defenses import require_image_classifier
from cdvae_ray.data.load import TrainingImages
from cdvae_ray.errors import ConfigError
from cdvae_ray.loading import checkpoint_at
from cdvae_ray.runtime.tracked import tracking_address
from cdvae_ray.training.checkpoint import cdvae_of, classifier_of, model_digest
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.frozen_classifier import FrozenClassifier


def frozen_cdvae(location: str, config: TrainingJobConfig) -> FrozenCdvae:
    """The CD-VAE at a location.

    Raises:
        CheckpointError: there is none, or it is damaged or of another kind.
        TrackingError: MLflow has none at that address.
    """
    checkpoint = checkpoint_at(location, tracking_uri=_address(config))
    return FrozenCdvae.of(cdvae_of(checkpoint), model_digest(checkpoint))


def frozen_classifier(location: str, config: TrainingJobConfig) -> FrozenClassifier:
    """The classifier at a location.

    Raises:
        CheckpointError: there is none, or it is damaged or of another kind.
        TrackingError: MLflow has none at that address.
    """
    checkpoint = checkpoint_at(location, tracking_uri=_address(config))
    return FrozenClassifier.of(classifier_of(checkpoint), model_digest(checkpoint))


def frozen_image_classifier(location: str, config: TrainingJobConfig) -> FrozenClassifier:
    """The classifier of images at a location.

    Raises:
        CheckpointError, TrackingError: as `frozen_classifier`.
        ConfigError: it sees G(x) or R(x).
    """
    checkpoint = checkpoint_at(location, tracking_uri=_address(config))
    classifier = classifier_of(checkpoint)
    require_image_classifier(classifier)
    return FrozenClassifier.of(classifier, model_digest(checkpoint))


def require_same_data(
    flag: str, model: FrozenCdvae | FrozenClassifier, train: TrainingImages
) -> None:
    """Raises ConfigError unless a trained model is of these images' size and classes.

    Args:
        flag: by which the model was named: "cdvae" or "classifier".
        model: the trained model.
        train: the images to train on.
    """
    what = {"cdvae": "CD-VAE", "classifier": "classifier"}[flag]
    if model.image_size != train.image_size:
        raise ConfigError(
            flag,
            got=f"a {what} of {model.image_size}x{model.image_size} images",
            expected=f"one of {train.image_size}x{train.image_size} images, as in {train.name}",
            remedy=f"choose another --{flag} or set --data.image-size",
        )
    if model.class_names != train.class_names:
        raise ConfigError(
            flag,
            got=f"a {what} of the classes {_listing(model.class_names)}",
            expected=f"the classes of {train.name}, {_listing(train.class_names)}",
            remedy=f"choose a --{flag} that was trained on this dataset",
        )


def _address(config: TrainingJobConfig) -> str:
    return tracking_address(config.tracking, config.storage)


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
