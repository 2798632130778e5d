"""Everything that `jobs/train.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdvae_ray.config.checks import require
from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.config.training import EvaluationConfig, ResourcesConfig, TrainingConfig

RECIPE_VERSION = 1
"""Raised when the same settings would give other weights: part of every run's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Trains a CD-VAE and evaluates it on the test images."""

    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Augmentation of training images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation after training."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    storage: str = "./runs"
    """Root of everything that jobs store: a folder, or an object-storage URI such as s3://..."""
    resume: bool = False
    """Go on from the run's newest sound checkpoint, if it has one."""
    overwrite: bool = False
    """Discard what the run has stored before and start anew."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        require(
            not (self.resume and self.overwrite),
            "resume, overwrite",
            got="both",
            expected="at most one of them",
            remedy="choose --resume to go on or --overwrite to start anew",
        )
        require(
            bool(self.storage),
            "storage",
            got="nothing",
            expected="a folder or an object-storage URI",
            remedy="set --storage",
        )
        if self.augmentation.mixup_alpha > 0:
            per_worker, rest = divmod(self.training.global_batch_size, self.resources.num_workers)
            require(
                rest != 0 or per_worker % 2 == 0,
                "training.global_batch_size",
                got=f"{self.training.global_batch_size} with mixup",
                expected=f"a multiple of {2 * self.resources.num_workers} "
                f"(mixup pairs neighbours on each of {self.resources.num_workers} workers)",
                remedy="change it or set --augmentation.mixup-alpha 0",
            )


def training_identity(config: TrainConfig, *, precision: str, train_digest: str) -> dict[str, Any]:
    """All that determines the trained weights: JSON values, without paths or resources.

    Args:
        config: the job's config.
        precision: "float32" or "bfloat16", what "auto" came to.
        train_digest: the digest of the training images, which stands for their path.
    """
    return {
        "kind": "cdvae",
        "recipe_version": RECIPE_VERSION,
        "train_images": train_digest,
        "augmentation": to_dict(config.augmentation),
        "model": to_dict(config.model),
        "objective": to_dict(config.objective),
        "training": {**to_dict(config.training), "precision": precision},
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
