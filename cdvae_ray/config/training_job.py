"""What every training job takes, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from cdvae_ray.config.checks import require
from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.config.training import ResourcesConfig, TrainingConfig

Training = TypeVar("Training", bound="TrainingJobConfig")


def on_images(job: Training, data: DataConfig) -> Training:
    """A job on other images. Where they are not streamed, it has no random resized crop."""
    augmentation = job.augmentation
    if not data.streaming:
        augmentation = replace(augmentation, min_crop_area=0.0)
    return replace(job, data=data, augmentation=augmentation)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJobConfig:
    """Trains a model on Ray and evaluates it on the test images."""

    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Augmentation of training images."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation."""
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
        require(
            self.augmentation.min_crop_area == 0 or self.data.streaming,
            "augmentation.min_crop_area",
            got=f"{self.augmentation.min_crop_area:g} without streaming",
            expected="0, as images in memory are cropped already",
            remedy="set --data.streaming, or leave out --augmentation.min-crop-area",
        )
        for workers in self.resources.worker_counts if self.augmentation.mixup_alpha > 0 else ():
            per_worker, rest = divmod(self.training.global_batch_size, workers)
            require(
                rest != 0 or per_worker % 2 == 0,
                "training.global_batch_size",
                got=f"{self.training.global_batch_size} with mixup",
                expected=f"a multiple of {2 * workers} "
                f"(mixup pairs neighbours on each of {workers} workers)",
                remedy="change it or set --augmentation.mixup-alpha 0",
            )


def require_no_mixup(augmentation: AugmentationConfig) -> None:
    """Raises ConfigError where mixup is on: a mixed image has no one label to be attacked from."""
    require(
        augmentation.mixup_alpha == 0,
        "augmentation.mixup_alpha",
        got=augmentation.mixup_alpha,
        expected="0 where adversarial examples are trained on",
        remedy="set --augmentation.mixup-alpha 0",
    )
