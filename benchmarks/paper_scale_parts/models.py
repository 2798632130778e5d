"""The trained models of a run, rebuilt from their stages for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.feature_extractor import FeatureExtractor, feature_extractor
from cdvae_ray.core.threat_models import AttackedModel, attacked_model
from cdvae_ray.data.images import ImageSet
from cdvae_ray.errors import ConfigError
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import load_weights

from .scale_preset import ScalePreset
from .stage import Stage
from .train import trained_weights

INPUT_OF: dict[str, InputKind] = {
    "classifier-x": "images",
    "classifier-g": "class_redundant",
    "classifier-r": "class_essential",
}
"""What the classifier of each stage is trained on."""
JOINT = "D of the CD-VAE"
"""What a table calls the classifier of R(x) that was trained together with G."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """All in eval mode on one device, without gradients of weights."""

    cdvae: CDVAE
    classifiers: dict[InputKind, ImageClassifier]
    """By what each was trained on."""
    joint: ImageClassifier
    """D of the CD-VAE on R(x), as a classifier by itself."""

    def classifier(self, kind: InputKind) -> ImageClassifier:
        """The one of a kind.

        Raises:
            ConfigError: it was not trained.
        """
        if kind not in self.classifiers:
            stage = next(name for name, each in INPUT_OF.items() if each == kind)
            raise ConfigError(
                f"the classifier on {kind}",
                got="none",
                expected="a finished stage of it",
                remedy=f"run the stage {stage} first",
            )
        return self.classifiers[kind]

    def extractor(self, space: InputKind) -> FeatureExtractor:
        """What detectors look at in x or R(x)."""
        if space == "images":
            return feature_extractor("images", classifier=self.classifier("images"))
        return feature_extractor(space, cdvae=self.cdvae)

    def attacked(self, threat_model: str) -> AttackedModel:
        """The function that a threat model names."""
        if threat_model == "classifier":
            return attacked_model("classifier", cdvae=None, classifier=self.classifier("images"))
        if threat_model == "class-essential":
            return attacked_model("class-essential", cdvae=self.cdvae, classifier=None)
        return attacked_model(
            "class-redundant", cdvae=self.cdvae, classifier=self.classifier("class_redundant")
        )


def frozen_cdvae(stage: Stage, preset: ScalePreset, images: ImageSet) -> FrozenCdvae:
    """The trained CD-VAE, as classifiers are trained behind it."""
    return FrozenCdvae(
        config=preset.model,
        image_size=images.image_size,
        class_names=images.class_names,
        tensors=trained_weights(stage).tensors,
        digest=str(stage.results["weights_sha256"]),
    )


def load_models(
    stages: dict[str, Stage], preset: ScalePreset, images: ImageSet, device: torch.device
) -> Models:
    """All that was trained.

    Args:
        stages: the finished ones by name, the CD-VAE among them.
        preset: of the run.
        images: of the dataset, for its size and classes.
        device: where to put them.
    """
    layout = torch.channels_last if preset.training.channels_last else torch.contiguous_format
    cdvae = frozen_cdvae(stages["cdvae"], preset, images).build(device, memory_format=layout)

    def build(kind: InputKind) -> ImageClassifier:
        model = ImageClassifier(
            preset.classifier,
            input_kind=kind,
            image_size=images.image_size,
            class_names=images.class_names,
            cdvae_digest=None if kind == "images" else stages["cdvae"].results["weights_sha256"],
        )
        return model.to(device).to(memory_format=layout).eval().requires_grad_(False)

    classifiers = {}
    for name, kind in INPUT_OF.items():
        if name in stages:
            classifiers[kind] = build(kind)
            load_weights(classifiers[kind], trained_weights(stages[name]).tensors)
    joint = build("class_essential")
    load_weights(joint.network, cdvae.classifier.state_dict())
    return Models(cdvae=cdvae, classifiers=classifiers, joint=joint)
