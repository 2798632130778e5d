"""Everything that `jobs/train.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import EvaluationConfig
from cdvae_ray.config.training_job import TrainingJobConfig

RECIPE_VERSION = 1
"""Raised when the same settings would give other weights: part of every run's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(TrainingJobConfig):
    """Trains a CD-VAE and evaluates it on the test images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    pretrained: str = ""
    """Where D starts: a file on the driver with a state dict of its network, for example
    torchvision's resnet50-11ad3fa6.pth. Its last layer counts only for as many classes."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation after training."""


def training_identity(
    config: TrainConfig, *, precision: str, train_digest: str, pretrained_digest: str | None = None
) -> dict[str, Any]:
    """All that determines the trained weights: JSON values, without paths or resources.

    Args:
        config: the job's config.
        precision: "float32" or "bfloat16", what "auto" came to.
        train_digest: the digest of the training images, which stands for their path.
        pretrained_digest: of the weights that D starts from, likewise; None for fresh ones.
    """
    return {
        "kind": "cdvae",
        "recipe_version": RECIPE_VERSION,
        "train_images": train_digest,
        "augmentation": to_dict(config.augmentation),
        "model": to_dict(config.model),
        "objective": to_dict(config.objective),
        "training": {**to_dict(config.training), "precision": precision},
        **({} if pretrained_digest is None else {"pretrained": pretrained_digest}),
    }


def evaluation_identity(
    config: TrainConfig, *, training_digest: str, test_digest: str
) -> dict[str, Any]:
    """All that determines the numbers after training."""
    return {
        "kind": "cdvae-evaluation",
        "training": training_digest,
        "test_images": test_digest,
        "evaluation": to_dict(config.evaluation),
    }


def run_name(digest: str) -> str:
    """The folder of a run, below train/ in the storage root: its identity alone."""
    return f"cdvae-{digest[:12]}"
