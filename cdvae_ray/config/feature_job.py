"""Everything that `jobs/extract_features.py` takes, and the identity of a set of features."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.presets import RESTRICTED, RESTRICTED_TINY, RESTRICTED_TRAIN, Preset, chosen
from cdvae_ray.config.tracking import TrackingConfig

FEATURE_KIND = "feature-set"
FEATURE_RECIPE_VERSION = 1
"""Raised when the same settings would give other features: part of every set's identity."""
SourceKind = Literal["clean", "adversarial", "matched-noise", "gaussian-noise"]
"""Which images: as they are, of an adversarial set, with noise as long as that set's
perturbations, or with the reference's noise of one deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureJobConfig:
    """Extracts the features that detectors look at, one row an image."""

    space: InputKind = "class_essential"
    """images: of a classifier on x. class_essential: of the CD-VAE's D on R(x). class_redundant: of
    a classifier on G(x)."""
    checkpoint: str = ""
    """The CD-VAE: a checkpoint or run folder, also in object storage, or runs:/..., models:/..."""
    classifier: str = ""
    """The classifier on x or G(x), likewise, for the spaces that have one."""
    source: SourceKind = "clean"
    """clean images; those of an adversarial set; with noise matched to that set's perturbations; or
    with Gaussian noise of --noise-std."""
    adversarial_set: str = ""
    """The folder of a set that jobs/attack.py made of the same images: for adversarial and
    matched-noise."""
    noise_std: float = 0.065
    """Deviation of gaussian-noise, in normalised units, as in the paper's released code: > 0."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    split: Literal["test", "train"] = "test"
    """Which half of the dataset."""
    seed: int = 0
    """Keys noise together with the image's id: >= 0."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    overwrite: bool = False
    """Extract again though the features are there."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        above("noise_std", self.noise_std, 0.0)
        needs_set = self.source in ("adversarial", "matched-noise")
        require(
            bool(self.adversarial_set) == needs_set,
            "adversarial_set",
            got=repr(self.adversarial_set) if self.adversarial_set else "none",
            expected=f"{'one' if needs_set else 'none'} for the source {self.source}",
            remedy=f"{'set' if needs_set else 'leave out'} --adversarial-set, or choose another "
            "--source",
        )
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )


def feature_set_identity(
    space: InputKind,
    source: dict[str, Any],
    *,
    cdvae_digest: str | None,
    classifier_digest: str | None,
    images_digest: str,
    split: str,
) -> dict[str, Any]:
    """All that determines a set of features: JSON values, without paths or resources.

    Args:
        space: of the extractor.
        source: which images, as `ImageSource.identity` says.
        cdvae_digest, classifier_digest: of the extractor's checkpoints; None for a part unused.
        images_digest: of the clean images, which stands for their path.
        split: which half of the dataset they are.
    """
    return {
        "kind": FEATURE_KIND,
        "recipe_version": FEATURE_RECIPE_VERSION,
        "space": space,
        "cdvae": cdvae_digest,
        "classifier": classifier_digest,
        "images": images_digest,
        "split": split,
        "source": source,
    }


FEATURE_PRESETS: dict[str, Preset[FeatureJobConfig]] = {
    "digits": Preset("digits (the default)", FeatureJobConfig()),
    "smoke": Preset(
        "some digits: seconds, for tests",
        FeatureJobConfig(
            data=DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100)
        ),
    ),
    "cifar10": Preset(
        "CIFAR-10",
        FeatureJobConfig(data=DataConfig(source="cifar10", path="./data", image_size=32)),
    ),
    "restricted-tiny": Preset(
        "23 classes of restricted ImageNet at 64 x 64", FeatureJobConfig(data=RESTRICTED_TINY)
    ),
    "restricted-imagenet": Preset(
        "restricted ImageNet; 100 training images a class",
        FeatureJobConfig(data=replace(RESTRICTED, train_limit=RESTRICTED_TRAIN)),
    ),
}


def feature_preset(name: str) -> FeatureJobConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(FEATURE_PRESETS, name, job="jobs/extract_features.py")
