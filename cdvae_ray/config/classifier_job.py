"""Everything that `jobs/train_classifier.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cdvae_ray.config.checks import at_least, require
from cdvae_ray.config.classifier import ClassifierConfig, InputKind
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training_job import TrainingJobConfig

CLASSIFIER_RECIPE_VERSION = 1
"""Raised when the same settings would give other weights: part of every run's identity."""
CLASSIFIER_EVALUATION_VERSION = 2
"""Likewise of the numbers after training. 2: R(x) is normalised as R(x) by every classifier."""
TOP_K = 5
"""The k of the top-5 accuracy; with fewer classes, their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierEvaluationConfig:
    """How a classifier is measured on the test images after training."""

    batch_size: int = 256
    """Images a forward pass on each worker."""

    def __post_init__(self) -> None:
        at_least("evaluation.batch_size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierJobConfig(TrainingJobConfig):
    """Trains a plain classifier on images or on what a trained CD-VAE makes of them."""

    input: InputKind = "images"
    """What it is trained on: images (x), class_redundant (G(x), the defence's classifier) or
    class_essential (R(x) = x - G(x)). The latter two need --cdvae."""
    cdvae: str = ""
    """The frozen CD-VAE that makes G(x) and R(x): a run or checkpoint folder, also in object
    storage, or runs:/..., models:/... in MLflow. None for images."""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Network."""
    pretrained: str = ""
    """Where it starts: a file on the driver with a state dict of its network, for example
    torchvision's resnet50-11ad3fa6.pth. Its last layer counts only for as many classes."""
    evaluation: ClassifierEvaluationConfig = field(default_factory=ClassifierEvaluationConfig)
    """Evaluation after training."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that super() means.
        TrainingJobConfig.__post_init__(self)
        needs_cdvae = self.input != "images"
        require(
            bool(self.cdvae) == needs_cdvae,
            "cdvae",
            got=self.cdvae or "nothing",
            expected=f"the CD-VAE that makes the {self.input.replace('_', '-')} part"
            if needs_cdvae
            else "none for a classifier of images",
            remedy="set --cdvae to a run or checkpoint folder, runs:/... or models:/..."
            if needs_cdvae
            else "leave out --cdvae, or set --input class_redundant or class_essential",
        )


def classifier_identity(
    config: ClassifierJobConfig,
    *,
    precision: str,
    train_digest: str,
    cdvae_digest: str | None,
    pretrained_digest: str | None = None,
) -> dict[str, Any]:
    """All that determines the trained weights: JSON values, without paths or resources.

    Args:
        config: the job's config.
        precision: "float32" or "bfloat16", what "auto" came to.
        train_digest: the digest of the training images, which stands for their path.
        cdvae_digest: the digest of the CD-VAE, which stands for its path; None for images.
        pretrained_digest: of the weights that it starts from, likewise; None for fresh ones.
    """
    return {
        "kind": "classifier",
        "recipe_version": CLASSIFIER_RECIPE_VERSION,
        "train_images": train_digest,
        "input": config.input,
        "cdvae": cdvae_digest,
        "augmentation": to_dict(config.augmentation),
        "model": to_dict(config.model),
        "training": {**to_dict(config.training), "precision": precision},
        **({} if pretrained_digest is None else {"pretrained": pretrained_digest}),
    }


def classifier_evaluation_identity(
    config: ClassifierJobConfig, *, training_digest: str, test_digest: str
) -> dict[str, Any]:
    """All that determines the numbers after training."""
    return {
        "kind": "classifier-evaluation",
        "recipe_version": CLASSIFIER_EVALUATION_VERSION,
        "training": training_digest,
        "test_images": test_digest,
        "evaluation": to_dict(config.evaluation),
    }


def classifier_run_name(digest: str) -> str:
    """The folder of a run, below train/ in the storage root: its identity alone."""
    return f"classifier-{digest[:12]}"
