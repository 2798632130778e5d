"""Everything that `jobs/finetune_adversarial.py` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cdvae_ray.config.adversarial_objective import AdversarialObjectiveConfig
from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import DefenseEvaluationConfig
from cdvae_ray.config.training_job import TrainingJobConfig, require_no_mixup

FINETUNE_RECIPE_VERSION = 1
"""Raised when the same settings would give other weights: part of every run's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerAttackConfig:
    """The attack of Eq. (7), on D_G(G(x)) through both: PGD on the margin."""

    norm: Literal["linf", "l2"] = "linf"
    """Of the ball: "Ours-Linf" or "Ours-L2"."""
    epsilon: float = 8 / 255
    """Radius in pixel units, > 0; the paper's for L2 is 1."""
    num_steps: int = 10
    """Gradient steps, >= 1."""
    step_size: float | None = None
    """Length of a step, > 0; None: epsilon / sqrt(num_steps), as released."""
    confidence: float = 10.0
    """kappa: the margin beyond which the attack rests, >= 0."""

    def __post_init__(self) -> None:
        above("attack.epsilon", self.epsilon, 0.0)
        at_least("attack.num_steps", self.num_steps, 1)
        at_least("attack.confidence", self.confidence, 0.0)
        if self.step_size is not None:
            above("attack.step_size", self.step_size, 0.0)

    def attack(self) -> AttackConfig:
        """The attack that it is, which keeps its last iterate."""
        return AttackConfig(
            attack="margin_pgd",
            label=f"C&W-{'Linf' if self.norm == 'linf' else 'L2'}",
            epsilon=self.epsilon,
            num_steps=self.num_steps,
            step_size=self.step_size,
            norm=self.norm,
            keep="last",
            confidence=self.confidence,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneJobConfig(TrainingJobConfig):
    """Trains a CD-VAE and D_G on adversarial examples of D_G(G(x)), mixed with clean images."""

    cdvae: str = ""
    """The trained CD-VAE to start from: a run or checkpoint folder, also in object storage, or
    runs:/..., models:/... in MLflow."""
    classifier: str = ""
    """The trained classifier that D_G starts from, likewise: of images, as released, or of
    class_redundant behind that CD-VAE."""
    attack: InnerAttackConfig = field(default_factory=InnerAttackConfig)
    """Eq. (7)."""
    adversarial: AdversarialObjectiveConfig = field(default_factory=AdversarialObjectiveConfig)
    """Eqs. (8)-(10), on adversarial images."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Eqs. (1)-(3), on clean images."""
    clean_weight: float = 1.0
    """Weight of Eq. (1) beside Eq. (8), >= 0; the released code trains without it: 0."""
    evaluation: DefenseEvaluationConfig = field(default_factory=DefenseEvaluationConfig)
    """Evaluation after training."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that super() means.
        TrainingJobConfig.__post_init__(self)
        at_least("clean_weight", self.clean_weight, 0.0)
        require_no_mixup(self.augmentation)

    def require_parts(self) -> None:
        """Raises ConfigError unless there is something to start from.

        Not at construction: a preset names neither.
        """
        for what, location, job in (
            ("cdvae", self.cdvae, "jobs/train.py"),
            ("classifier", self.classifier, "jobs/train_classifier.py"),
        ):
            require(
                bool(location),
                what,
                got="none",
                expected="a trained one to start from",
                remedy=f"set --{what} to a run of {job}",
            )


def finetune_identity(
    config: FinetuneJobConfig,
    *,
    precision: str,
    train_digest: str,
    cdvae_digest: str,
    classifier_digest: str,
) -> dict[str, Any]:
    """All that determines the trained weights: JSON values, without paths or resources.

    Args:
        config: the job's config.
        precision: "float32" or "bfloat16", what "auto" came to.
        train_digest: the digest of the training images, which stands for their path.
        cdvae_digest, classifier_digest: of the models to start from.
    """
    return {
        "kind": "finetune",
        "recipe_version": FINETUNE_RECIPE_VERSION,
        "train_images": train_digest,
        "cdvae": cdvae_digest,
        "classifier": classifier_digest,
        "attack": to_dict(config.attack),
        "adversarial": to_dict(config.adversarial),
        "objective": to_dict(config.objective),
        "clean_weight": config.clean_weight,
        "augmentation": to_dict(config.augmentation),
        "training": {**to_dict(config.training), "precision": precision},
    }


def finetune_run_name(digest: str) -> str:
    """The folder of a run, below train/ in the storage root: its identity alone."""
    return f"finetune-{digest[:12]}"


def defense_evaluation_identity(
    evaluation: DefenseEvaluationConfig, *, training_digest: str, test_digest: str
) -> dict[str, Any]:
    """All that determines the numbers after training a defence."""
    return {
        "kind": "defense-evaluation",
        "training": training_digest,
        "test_images": test_digest,
        "evaluation": to_dict(evaluation),
    }
