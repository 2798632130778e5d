"""Everything that `jobs/train_baseline.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cdvae_ray.config.baseline import BASELINE_NAMES, Baseline, BaselineName, RecipeConfig, baseline
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import DefenseEvaluationConfig
from cdvae_ray.config.training_job import TrainingJobConfig, require_no_mixup

BASELINE_RECIPE_VERSION = 1
"""Raised when the same settings would give other weights: part of every run's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineJobConfig(TrainingJobConfig):
    """Trains a defence of other people's, to compare ours with."""

    baseline: str = "at-pgd-linf"
    """Which: at-pgd-linf, at-pgd-l2, at-stadv, at-recolor (adversarial training), trades, sat
    (self-adaptive), oia (early-stopped), pat (perceptual), hgd or ape-gan (purifiers)."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Its settings; what it does not take is refused."""
    classifier: str = ""
    """A trained classifier of images, as a run or checkpoint folder, also in object storage, or
    runs:/..., models:/... in MLflow. hgd, ape-gan: what the purifier is trained before. Others:
    whose weights (and network) training starts from; none: from fresh ones."""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Network of a classifier that is trained from fresh weights."""
    evaluation: DefenseEvaluationConfig = field(default_factory=DefenseEvaluationConfig)
    """Evaluation after training."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that super() means.
        TrainingJobConfig.__post_init__(self)
        chosen = self.chosen
        chosen.recipe(self.recipe)
        require_no_mixup(self.augmentation)

    @property
    def chosen(self) -> Baseline:
        """The baseline."""
        return baseline(self.baseline)

    @property
    def name(self) -> BaselineName:
        """Its name, which is one of them."""
        return next(name for name in BASELINE_NAMES if name == self.baseline)


def baseline_identity(
    config: BaselineJobConfig,
    *,
    precision: str,
    train_digest: str,
    classifier_digest: str | None,
    validation_digest: str | None = None,
) -> dict[str, Any]:
    """All that determines the trained weights: JSON values, without paths or resources.

    Args:
        config: the job's config.
        precision: "float32" or "bfloat16", what "auto" came to.
        train_digest: the digest of the images that are trained on, which stands for their path.
        classifier_digest: of the trained classifier; None where there is none.
        validation_digest: of the images held out, which choose an epoch; None where none are.
    """
    return {
        "kind": "baseline",
        "recipe_version": BASELINE_RECIPE_VERSION,
        "baseline": config.baseline,
        "train_images": train_digest,
        "validation_images": validation_digest,
        "recipe": to_dict(config.chosen.recipe(config.recipe)),
        "augmentation": to_dict(config.augmentation),
        "network": to_dict(config.model) if classifier_digest is None else classifier_digest,
        "training": {**to_dict(config.training), "precision": precision},
    }


def baseline_run_name(config: BaselineJobConfig, digest: str) -> str:
    """The folder of a run, below train/ in the storage root: baseline and identity."""
    return f"{config.name}-{digest[:12]}"
