"""Training of the defences that ours is compared with: robust classifiers, and purifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdvae_ray.config.baseline import BASELINES, BaselineName, RecipeConfig
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.classifier import ImageClassifier, build_classifier
from cdvae_ray.data.images import ImageSet
from cdvae_ray.training.baselines.adversarial import AdversarialLoss
from cdvae_ray.training.baselines.ape_gan import ApeGanLoss
from cdvae_ray.training.baselines.early_stopped import EarlyStoppedLoss
from cdvae_ray.training.baselines.hgd import HgdLoss
from cdvae_ray.training.baselines.perceptual import PerceptualLoss
from cdvae_ray.training.baselines.self_adaptive import SelfAdaptiveLoss
from cdvae_ray.training.baselines.trades import TradesLoss
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.frozen_classifier import FrozenClassifier
from cdvae_ray.training.purifier_model import ApeGanModel, HgdModel, PurifierModel
from cdvae_ray.training.task import BatchLoss


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RobustClassifierTask:
    """Trains a classifier of images on adversarial examples of it; its checkpoints are a plain
    classifier's."""

    checkpoint_kind: ClassVar[str] = ClassifierTask.checkpoint_kind
    metric_sums: ClassVar[tuple[str, ...]] = ("loss", "correct")

    baseline: BaselineName
    recipe: RecipeConfig
    """With nothing left open."""
    model: ClassifierConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    image_size: int
    class_names: tuple[str, ...]
    start: FrozenClassifier | None = None
    """Whose weights training starts from; its network is `model`."""
    labels: Tensor | None = None
    """(N,) int64, of all training images; for sat."""
    validation: ImageSet | None = None
    """Images that are not trained on; for oia."""

    def build_model(self) -> ImageClassifier:
        """The classifier that training starts from, or a fresh one of this run's seed."""
        if self.start is not None:
            return self.start.build()
        return build_classifier(
            self.model,
            input_kind="images",
            image_size=self.image_size,
            class_names=self.class_names,
            seed=self.training.seed,
        )

    def model_facts(self) -> dict[str, Any]:
        """What a checkpoint says of its classifier."""
        return {
            "model": to_dict(self.model),
            "image_size": self.image_size,
            "class_names": list(self.class_names),
            "input_kind": "images",
            "cdvae_digest": None,
            "trained_against": [BASELINES[self.baseline].trained_against],
        }

    def loss_on(self, device: torch.device) -> BatchLoss:
        """The baseline's own loss."""
        recipe, seed = self.recipe, self.training.seed
        if self.baseline == "pat":
            assert recipe.epsilon is not None
            assert recipe.num_steps is not None
            return PerceptualLoss(recipe.epsilon, recipe.num_steps, seed)
        attack = BASELINES[self.baseline].inner_attack(recipe)
        match self.baseline:
            case "trades":
                assert recipe.weight is not None
                return TradesLoss(attack, recipe.weight, seed)
            case "sat":
                assert self.labels is not None
                assert recipe.weight is not None
                assert recipe.target_momentum is not None
                assert recipe.target_start is not None
                return SelfAdaptiveLoss(
                    self.labels.to(device),
                    len(self.class_names),
                    attack=attack,
                    weight=recipe.weight,
                    momentum=recipe.target_momentum,
                    start_epoch=round(recipe.target_start * self.training.epochs),
                    seed=seed,
                )
            case "oia":
                assert self.validation is not None
                return EarlyStoppedLoss(
                    AdversarialLoss(attack, seed), self.build_model().to(device), self.validation
                )
            case _:
                return AdversarialLoss(attack, seed)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PurifierTask:
    """Trains a purifier before a classifier that stays as it is."""

    checkpoint_kind: ClassVar[str] = "purifier-checkpoint"
    metric_sums: ClassVar[tuple[str, ...]] = ("loss", "correct")

    baseline: BaselineName
    recipe: RecipeConfig
    """With nothing left open."""
    classifier: FrozenClassifier
    training: TrainingConfig
    augmentation: AugmentationConfig

    def build_model(self) -> PurifierModel:
        """A fresh purifier of this run's seed, before the classifier."""
        return build_purifier(
            self.baseline,
            self.classifier.build(),
            width=self._width,
            seed=self.training.seed,
        )

    def model_facts(self) -> dict[str, Any]:
        """What a checkpoint says of its defence."""
        return {
            "purifier": self.baseline,
            "width": self._width,
            "classifier_model": to_dict(self.classifier.config),
            "image_size": self.classifier.image_size,
            "class_names": list(self.classifier.class_names),
            "trained_against": [BASELINES[self.baseline].trained_against],
        }

    def loss_on(self, device: torch.device) -> BatchLoss:
        """The baseline's own loss."""
        recipe, seed = self.recipe, self.training.seed
        attack = BASELINES[self.baseline].inner_attack(recipe)
        if self.baseline == "hgd":
            return HgdLoss(attack, seed)
        assert recipe.pixel_weight is not None
        assert recipe.adversarial_weight is not None
        return ApeGanLoss(attack, recipe.pixel_weight, recipe.adversarial_weight, seed)

    @property
    def _width(self) -> int:
        assert self.recipe.width is not None
        return self.recipe.width


def build_purifier(
    name: str, classifier: ImageClassifier, *, width: int, seed: int
) -> PurifierModel:
    """A purifier whose fresh weights depend on the seed alone, before a classifier of images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "hgd":
            return HgdModel(classifier, width=width)
        return ApeGanModel(classifier, width=width)
