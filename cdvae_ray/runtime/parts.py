"""Networks by the locations of their checkpoints, checked to belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cdvae_ray.config.attack import ThreatModelName
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection_job import DetectionJobConfig
from cdvae_ray.config.feature_job import FeatureJobConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.defenses import Defense
from cdvae_ray.core.feature_extractor import FeatureExtractor, feature_extractor
from cdvae_ray.data.images import ImageSet
from cdvae_ray.errors import ConfigError
from cdvae_ray.loading import checkpoint_at
from cdvae_ray.runtime.tracked import tracking_address
from cdvae_ray.training.checkpoint import Checkpoint, cdvae_of, classifier_of, model_digest
from cdvae_ray.training.defense_checkpoint import defense_of, trained_against

Network = TypeVar("Network", CDVAE, ImageClassifier)


@dataclass(frozen=True, kw_only=True)
class Space:
    """A detection space: its extractor, and the checkpoints that it is made of."""

    extractor: FeatureExtractor
    parts: Mapping[str, Checkpoint]
    """ "cdvae" and "classifier", those that it has."""
    cdvae_digest: str | None
    classifier_digest: str | None

    @property
    def name(self) -> InputKind:
        """What it looks at."""
        return self.extractor.space

    @property
    def pixel_units(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel by which the space's model normalises images."""
        part = self.extractor.cdvae or self.extractor.classifier
        assert part is not None
        return tuple(part.config.pixel_mean), tuple(part.config.pixel_std)


TARGET_SPACES: dict[ThreatModelName, InputKind] = {
    "classifier": "images",
    "class-essential": "class_essential",
}
"""The space whose own network a threat model attacks."""


def spaces_of(config: DetectionJobConfig) -> list[Space]:
    """The spaces that the checkpoints of a detection job make: R(x), then x, then G(x).

    Raises:
        CdvaeError: a checkpoint is missing, unsound, or of another kind.
    """
    if not config.checkpoint:
        raise ConfigError(
            "checkpoint",
            got="none",
            expected="a CD-VAE",
            remedy="set --checkpoint; train one by jobs/train.py",
        )
    address = tracking_address(config.tracking, config.storage)
    spaces = [space_at("class_essential", config.checkpoint, "", address)]
    if config.classifier:
        spaces.append(space_at("images", "", config.classifier, address))
    if config.redundant_classifier:
        spaces.append(
            space_at("class_redundant", config.checkpoint, config.redundant_classifier, address)
        )
    return spaces


def space_of(config: FeatureJobConfig) -> Space:
    """The space of a feature job.

    Raises:
        CdvaeError: a checkpoint is missing, left over, unsound, or of another kind.
    """
    address = tracking_address(config.tracking, config.storage)
    return space_at(config.space, config.checkpoint, config.classifier, address)


def space_at(space: InputKind, cdvae: str, classifier: str, address: str) -> Space:
    """A space by the locations of its checkpoints, "" for one that it does not have.

    Raises:
        CdvaeError: a checkpoint is missing, left over, unsound, or of another kind.
    """
    parts = {
        name: checkpoint_at(location, tracking_uri=address)
        for name, location in (("cdvae", cdvae), ("classifier", classifier))
        if location
    }
    network = classifier_of(parts["classifier"]) if classifier else None
    model = cdvae_of(parts["cdvae"]) if cdvae else None
    if model is not None and model.config.evaluation_latent == "sample":
        raise ConfigError(
            f"checkpoint {cdvae}",
            got="a CD-VAE that draws its latent anew at each look",
            expected="one that decodes the mean: a detector has no score of an image otherwise",
            remedy="train it with --model.evaluation-latent mean (jobs/attack.py and "
            "jobs/evaluate_defense.py take both, in expectation)",
        )
    extractor = feature_extractor(space, cdvae=model, classifier=network)
    digests = {name: model_digest(each) for name, each in parts.items()}
    require_same_cdvae(network, digests.get("cdvae"))
    return Space(
        extractor=extractor,
        parts=parts,
        cdvae_digest=digests.get("cdvae"),
        classifier_digest=digests.get("classifier"),
    )


def network_at(
    location: str, build: Callable[[Checkpoint], Network], address: str
) -> tuple[Network | None, str | None]:
    """The network at a location with its digest; None and None where no location is given.

    Raises:
        CdvaeError: the checkpoint is missing, unsound, or of another kind.
    """
    if not location:
        return None, None
    checkpoint = checkpoint_at(location, tracking_uri=address)
    return build(checkpoint), model_digest(checkpoint)


@dataclass(frozen=True, kw_only=True)
class LoadedDefense:
    """A defence by the location of its checkpoint."""

    module: Defense
    digest: str
    cdvae_digest: str | None
    """Of the CD-VAE that was given beside it; None where its checkpoint holds all of it."""
    trained_against: tuple[str, ...]
    """Families of attacks."""


def defense_at(location: str, cdvaes: Mapping[str, CDVAE], address: str) -> LoadedDefense:
    """The defence at a location.

    Args:
        location: of its checkpoint.
        cdvaes: by their digests, for a classifier of G(x).
        address: of MLflow.

    Raises:
        CdvaeError: the checkpoint is missing, unsound, of another kind, or its CD-VAE is not there.
    """
    checkpoint = checkpoint_at(location, tracking_uri=address)
    own = checkpoint.facts.get("cdvae_digest")
    return LoadedDefense(
        module=defense_of(checkpoint, cdvaes),
        digest=model_digest(checkpoint),
        cdvae_digest=None if own is None else str(own),
        trained_against=trained_against(checkpoint),
    )


def require_same_cdvae(classifier: ImageClassifier | None, cdvae_digest: str | None) -> None:
    """Raises ConfigError for a classifier on G(x) that was trained behind another CD-VAE."""
    trained_behind = None if classifier is None else classifier.cdvae_digest
    if trained_behind is not None and trained_behind != cdvae_digest:
        raise ConfigError(
            "classifier",
            got=f"one trained behind CD-VAE {trained_behind[:12]}",
            expected=f"one trained behind CD-VAE {str(cdvae_digest)[:12]}",
            remedy="give the CD-VAE and the classifier that belong together",
        )


def require_fit(what: str, class_names: tuple[str, ...], image_size: int, images: ImageSet) -> None:
    """Raises ConfigError unless a model takes these images and knows their classes."""
    if (image_size, class_names) == (images.image_size, images.class_names):
        return
    raise ConfigError(
        "data",
        got=f"{images.num_classes} classes of {images.image_size} pixels "
        f"({', '.join(images.class_names[:3])}, ...)",
        expected=f"{what}'s {len(class_names)} classes of {image_size} pixels "
        f"({', '.join(class_names[:3])}, ...)",
        remedy="set --data.source, --data.path and --data.image-size as in training",
    )
