"""What a detector looks at in one space, x, R(x) or G(x), as a function of images."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.features import (
    features_of_classifier,
    layer_features,
    normalized_essential,
)
from cdvae_ray.errors import ConfigError


class Extraction(NamedTuple):
    """Of a batch of images, differentiable in them."""

    features: dict[str, Tensor]
    """`FEATURE_NAMES`, each (N, d)."""
    residual: Tensor | None
    """x - G(x) in pixel units, (N, 3, S, S); None in the space of images, which has no G."""

    @property
    def logits(self) -> Tensor:
        """(N, classes), of the network whose features these are."""
        return self.features["logits"]


class FeatureExtractor(nn.Module):
    """Images in [0, 1] to the features of one space's own network.

    images: of a classifier on x. class_essential: of the CD-VAE's D on R(x). class_redundant: of a
    classifier on G(x), behind the CD-VAE. `feature_extractor` checks the parts.
    """

    def __init__(
        self, space: InputKind, cdvae: CDVAE | None, classifier: ImageClassifier | None
    ) -> None:
        super().__init__()
        self.space: InputKind = space
        self.cdvae, self.classifier = cdvae, classifier

    def forward(self, images: Tensor) -> Extraction:
        """Images (N, 3, S, S) in [0, 1] to features.

        Raises:
            DataError: the images are not floating point of shape (N, 3, S, S).
        """
        if self.space == "images":
            assert self.classifier is not None
            return Extraction(features_of_classifier(self.classifier, images), None)
        assert self.cdvae is not None
        essential = normalized_essential(self.cdvae, images)
        residual = essential * self.cdvae.pixel_std
        if self.space == "class_essential":
            return Extraction(layer_features(self.cdvae.classifier, essential), residual)
        assert self.classifier is not None
        return Extraction(features_of_classifier(self.classifier, images - residual), residual)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features alone."""
        extraction: Extraction = self(images)
        return extraction.features

    def classify(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the space's own network."""
        return self.features(images)["logits"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""
        return self._part().class_names

    @property
    def image_size(self) -> int:
        """Side of the images that it takes."""
        return self._part().image_size

    def _part(self) -> CDVAE | ImageClassifier:
        part = self.cdvae if self.classifier is None else self.classifier
        assert part is not None
        return part


def feature_extractor(
    space: InputKind, *, cdvae: CDVAE | None = None, classifier: ImageClassifier | None = None
) -> FeatureExtractor:
    """The extractor of a space, of these parts, in eval mode.

    Args:
        space: images (needs a classifier of images), class_essential (needs a CD-VAE),
            class_redundant (needs both, the classifier one of class_redundant).
        cdvae: with G and D.
        classifier: of the space's own input.

    Raises:
        ConfigError: a part is missing, left over, or not of the kind that the space takes.
    """
    needs = {"cdvae": space != "images", "classifier": space != "class_essential"}
    for name, part in (("cdvae", cdvae), ("classifier", classifier)):
        if (part is not None) != needs[name]:
            raise ConfigError(
                f"{name} for features of {space}",
                got="none" if part is None else "one",
                expected="one" if needs[name] else "none",
                remedy=f"{'pass' if needs[name] else 'leave out'} it, or choose another space",
            )
    if classifier is not None and classifier.input_kind != space:
        raise ConfigError(
            f"classifier for features of {space}",
            got=f"one trained on {classifier.input_kind}",
            expected=f"one trained on {space}",
            remedy=f"train it by jobs/train_classifier.py --input {space}",
        )
    if (
        cdvae is not None
        and classifier is not None
        and (cdvae.image_size, cdvae.class_names) != (classifier.image_size, classifier.class_names)
    ):
        raise ConfigError(
            f"classifier for features of {space}",
            got=f"{len(classifier.class_names)} classes of {classifier.image_size} pixels",
            expected=f"the CD-VAE's {len(cdvae.class_names)} classes of {cdvae.image_size} pixels",
            remedy="choose a classifier and a CD-VAE of one dataset",
        )
    return FeatureExtractor(space, cdvae, classifier).eval()
