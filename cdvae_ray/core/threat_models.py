"""Threat models: which function of the image an adversary attacks, and what a number means."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cdvae_ray.config.attack import ThreatModelName
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier, classifier_input
from cdvae_ray.core.defenses import (
    Defense,
    require_image_classifier,
    require_redundant_classifier,
)
from cdvae_ray.errors import ConfigError


class ThreatModel(NamedTuple):
    """A named threat model. Every number of this project that an attack made carries one."""

    name: ThreatModelName
    attacked: str
    """The function whose gradients the adversary follows."""
    meaning: str
    """What success against it says, and what it does not say."""


THREAT_MODELS: dict[ThreatModelName, ThreatModel] = {
    "classifier": ThreatModel(
        "classifier",
        "D(x), a plain classifier",
        "white-box for D; grey-box for a defence in front of D, which the adversary does not know",
    ),
    "class-essential": ThreatModel(
        "class-essential",
        "D(R(x)) through the whole CD-VAE",
        "white-box for the CD-VAE's own classifier; an adversary unaware of detectors on R(x)",
    ),
    "class-redundant": ThreatModel(
        "class-redundant",
        "D_G(G(x)) through G",
        "white-box for the defence by G(x)",
    ),
    "defense": ThreatModel(
        "defense",
        "a whole defence, through all of its parts",
        "white-box for the defence",
    ),
}


class AttackedModel(nn.Module):
    """The function that a threat model names, as a module from images in [0, 1] to logits."""

    def __init__(
        self,
        threat_model: ThreatModelName,
        cdvae: CDVAE | None = None,
        classifier: ImageClassifier | None = None,
        defense: Defense | None = None,
    ) -> None:
        super().__init__()
        self.threat_model = THREAT_MODELS[threat_model]
        self.cdvae, self.classifier, self.defense = cdvae, classifier, defense

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] to logits (N, classes)."""
        if self.threat_model.name == "class-essential":
            assert self.cdvae is not None
            return self.cdvae.classify_essential(images)
        if self.threat_model.name == "defense":
            assert self.defense is not None
            answer: Tensor = self.defense(images)
            return answer
        assert self.classifier is not None
        logits: Tensor = self.classifier(
            classifier_input(images, self.classifier.input_kind, self.cdvae)
        )
        return logits

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""
        return self._part().class_names

    @property
    def image_size(self) -> int:
        """Side of the images that it takes."""
        return self._part().image_size

    def _part(self) -> CDVAE | ImageClassifier | Defense:
        parts = {"class-essential": self.cdvae, "defense": self.defense}
        part = parts.get(self.threat_model.name, self.classifier)
        assert part is not None
        return part


def attacked_model(
    threat_model: ThreatModelName,
    *,
    cdvae: CDVAE | None,
    classifier: ImageClassifier | None,
    defense: Defense | None = None,
) -> AttackedModel:
    """The function that a threat model names, of these parts.

    Raises:
        ConfigError: a part is missing, left over, or not of the kind that it takes.
    """
    needs_cdvae = threat_model in ("class-essential", "class-redundant")
    needs_classifier = threat_model in ("classifier", "class-redundant")
    for what, part, needed in (
        ("checkpoint", cdvae, needs_cdvae),
        ("classifier", classifier, needs_classifier),
        ("defense", defense, threat_model == "defense"),
    ):
        if (part is not None) != needed:
            raise ConfigError(
                what,
                got="none" if needed else "one",
                expected=f"{'one' if needed else 'none'} for the threat model {threat_model} "
                f"({THREAT_MODELS[threat_model].attacked})",
                remedy=f"{'set' if needed else 'leave out'} --{what}, or choose another "
                "--threat-model",
            )
    if classifier is not None and cdvae is not None:
        require_redundant_classifier(cdvae, classifier)
    elif classifier is not None:
        require_image_classifier(classifier)
    return AttackedModel(threat_model, cdvae, classifier, defense).eval()
