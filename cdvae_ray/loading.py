"""Models back from wherever a job put them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.defenses import Defense
from cdvae_ray.core.detectors.image_detector import ImageDetector
from cdvae_ray.errors import CheckpointError
from cdvae_ray.evaluation.detector_files import read_detector
from cdvae_ray.storage.adversarial_set import AdversarialSet, read_adversarial_set
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    cdvae_of,
    classifier_of,
    model_digest,
    newest_sound_checkpoint,
    read_checkpoint,
)
from cdvae_ray.training.defense_checkpoint import defense_of


def load(location: str | Path) -> CDVAE:
    """A trained CD-VAE, in eval mode on the CPU.

    Args:
        location: a checkpoint folder, a run folder (its newest sound checkpoint), both also in
            object storage, or an MLflow address: runs:/<run id>[/<checkpoint>], models:/....

    Raises:
        CheckpointError: there is no sound checkpoint, or it is a plain classifier's.
        TrackingError: MLflow has none at that address.
    """
    return cdvae_of(checkpoint_at(location))


def load_classifier(location: str | Path) -> ImageClassifier:
    """A trained plain classifier, in eval mode on the CPU.

    It takes what `core.classifier.classifier_input` makes of images for its `input_kind`, and
    `cdvae_digest` names the CD-VAE it was trained behind: `checkpoint_digest` of that one.

    Args:
        location: as for `load`.

    Raises:
        CheckpointError: there is no sound checkpoint, or it is a CD-VAE's.
        TrackingError: MLflow has none at that address.
    """
    return classifier_of(checkpoint_at(location))


def load_defense(location: str | Path, *, cdvae: str | Path | None = None) -> Defense:
    """A defence as an ordinary module, in eval mode on the CPU.

    It takes images (N, 3, S, S) in [0, 1] and answers logits (N, classes), differentiably and with
    all that it does inside: other people's attacks take it as it is. It has `image_size` and
    `class_names`.

    Args:
        location: as for `load`; of a fine-tuned CD-VAE, a purifier or a classifier.
        cdvae: as for `load`; the CD-VAE of a classifier of G(x), whose checkpoint holds no G.

    Raises:
        CheckpointError: there is no sound checkpoint, it holds no defence, or it was trained behind
            another CD-VAE.
        TrackingError: MLflow has none at that address.
    """
    cdvaes = {}
    if cdvae is not None:
        checkpoint = checkpoint_at(cdvae)
        cdvaes[model_digest(checkpoint)] = cdvae_of(checkpoint)
    return defense_of(checkpoint_at(location), cdvaes)


def load_adversarial_set(location: str | Path) -> AdversarialSet:
    """A stored adversarial set, verified, in the order of image ids.

    Args:
        location: the set's folder, also in object storage.

    Raises:
        StorageError: it is absent, incomplete or damaged.
    """
    return read_adversarial_set(Store.at(location))


def load_detector(location: str | Path) -> ImageDetector:
    """A stored detector with its networks, in eval mode on the CPU.

    `score(images)` is differentiable and higher for what looks more adversarial; `flags(images)`
    says which images score above `threshold`, which 5 % of clean images did when it was chosen.

    Args:
        location: the detector's folder, also in object storage, as jobs/detect.py stored it.

    Raises:
        StorageError: it is absent, damaged or no detector.
        CheckpointError: its networks are not what they say.
    """
    parent, name = Store.at(location).parent()
    return read_detector(parent, name)


def checkpoint_digest(location: str | Path) -> str:
    """What names a trained model in identities: the SHA-256 (hex) of its settings and weights.

    The same for a checkpoint's folder, its run's folder while it is the newest, and its copy in
    MLflow; it depends on no path and on no time.

    Args:
        location: as for `load`; a CD-VAE's or a classifier's.

    Raises:
        CheckpointError: there is no sound checkpoint.
        TrackingError: MLflow has none at that address.
    """
    return model_digest(checkpoint_at(location))


def checkpoint_at(location: str | Path, *, tracking_uri: str = "") -> Checkpoint:
    """The checkpoint at a location, verified, with its model file.

    Args:
        location: as for `load`.
        tracking_uri: the MLflow store to look runs:/ and models:/ up in; "" for the
            environment's, else the database in the working directory.

    Raises:
        CheckpointError: there is no sound checkpoint.
        TrackingError: MLflow has none at that address.
    """
    text = str(location)
    if text.startswith(("runs:/", "models:/")):
        return _tracked(text, tracking_uri)
    folder = Store.at(location)
    parent, name = folder.parent()
    if not parent.exists(name):
        raise CheckpointError(
            text,
            got="nothing there",
            expected="a checkpoint folder or a run folder",
            remedy="check the path",
        )
    found = None if folder.exists("manifest.json") else newest_sound_checkpoint(folder)
    return found or read_checkpoint(parent, name, only=(MODEL_FILE,))


def _tracked(uri: str, address: str) -> Checkpoint:
    # Importing MLflow takes seconds, which loading from a folder does not owe.
    from cdvae_ray.tracking import fetch_checkpoint, tracking_uri

    with tempfile.TemporaryDirectory() as folder:
        address = address or tracking_uri(TrackingConfig(), Path.cwd())
        parent, name = Store.at(
            fetch_checkpoint(uri, tracking_uri=address, into=Path(folder))
        ).parent()
        return read_checkpoint(parent, name, only=(MODEL_FILE,))
