"""Defences as ordinary modules: images in [0, 1] to logits, with all that they do inside."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cdvae_ray.core.cdvae import CDVAE, CdvaeOutput
from cdvae_ray.core.classifier import ImageClassifier, classifier_input
from cdvae_ray.core.inputs import require_images
from cdvae_ray.errors import ConfigError


class RedundantDefense(nn.Module):
    """D_G(G(x)): the classifier sees what is left of x without its class-essential part.

    Deterministic in eval mode unless the CD-VAE's `evaluation_latent` is "sample".

    Args:
        cdvae: whose G it is.
        classifier: D_G, of the input class_redundant.

    Raises:
        ConfigError: they are not of one dataset, or the classifier sees something else.
    """

    def __init__(self, cdvae: CDVAE, classifier: ImageClassifier) -> None:
        super().__init__()
        require_redundant_classifier(cdvae, classifier)
        self.cdvae, self.classifier = cdvae, classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] to logits (N, classes)."""
        require_images(images, self.image_size, what="images", units="[0, 1]")
        logits: Tensor = self.classifier(classifier_input(images, "class_redundant", self.cdvae))
        return logits

    @property
    def image_size(self) -> int:
        """Side S of the images that it takes."""
        return self.cdvae.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a logit."""
        return self.cdvae.class_names


class JointOutput(NamedTuple):
    """All terms of Eqs. (1)-(3) and (8)-(10), of one pass through G."""

    cdvae: CdvaeOutput
    """With the logits of D(R(x))."""
    redundant_logits: Tensor | None
    """D_G(G(x)), (N, classes); None where it was not asked for."""


class JointModel(nn.Module):
    """G, D and D_G as fine-tuning trains them: one pass gives the logits of both classifiers.

    Its weights are those of `RedundantDefense`, by the same names.

    Args:
        defense: whose parts it takes, which are shared.
    """

    def __init__(self, defense: RedundantDefense) -> None:
        super().__init__()
        self.cdvae, self.classifier = defense.cdvae, defense.classifier

    def forward(
        self, images: Tensor, noise: Tensor | None = None, *, with_redundant: bool = True
    ) -> JointOutput:
        """Images (N, 3, S, S) in [0, 1] to all terms; `noise` as in `CDVAE.forward`."""
        output: CdvaeOutput = self.cdvae(images, noise)
        if not with_redundant:
            return JointOutput(output, None)
        # Back to pixel units, which the classifier normalises by its own mean and deviation.
        redundant = output.reconstruction * self.cdvae.pixel_std + self.cdvae.pixel_mean
        return JointOutput(output, self.classifier(redundant))

    def defense(self) -> RedundantDefense:
        """The same parts as a defence."""
        return RedundantDefense(self.cdvae, self.classifier)


class PurifiedClassifier(nn.Module):
    """D(P(x)): a classifier of images behind a purifier that is to remove perturbations.

    Args:
        purifier: images in [0, 1] to images.
        classifier: D, of the input images.

    Raises:
        ConfigError: the classifier sees something else than images.
    """

    def __init__(self, purifier: nn.Module, classifier: ImageClassifier) -> None:
        super().__init__()
        require_image_classifier(classifier)
        self.purifier, self.classifier = purifier, classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] to logits (N, classes)."""
        require_images(images, self.image_size, what="images", units="[0, 1]")
        logits: Tensor = self.classifier(self.purifier(images))
        return logits

    @property
    def image_size(self) -> int:
        """Side S of the images that it takes."""
        return self.classifier.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a logit."""
        return self.classifier.class_names


Defense = ImageClassifier | RedundantDefense | PurifiedClassifier
"""A classifier of images, robust or not, is one as it is."""


def require_image_classifier(classifier: ImageClassifier) -> None:
    """Raises ConfigError unless a classifier sees images."""
    if classifier.input_kind != "images":
        raise ConfigError(
            "classifier",
            got=f"one trained on {classifier.input_kind}",
            expected="one trained on images",
            remedy="train it by jobs/train_classifier.py --input images",
        )


def require_redundant_classifier(cdvae: CDVAE, classifier: ImageClassifier) -> None:
    """Raises ConfigError unless a classifier can see G(x) of a CD-VAE."""
    if classifier.input_kind != "class_redundant":
        raise ConfigError(
            "classifier",
            got=f"one trained on {classifier.input_kind}",
            expected="one trained on class_redundant",
            remedy="train it by jobs/train_classifier.py --input class_redundant --cdvae ...",
        )
    ours, theirs = ((part.class_names, part.image_size) for part in (classifier, cdvae))
    if ours != theirs:
        raise ConfigError(
            "classifier",
            got=f"{len(ours[0])} classes of {ours[1]} pixels",
            expected=f"the CD-VAE's {len(theirs[0])} classes of {theirs[1]} pixels",
            remedy="choose a classifier and a CD-VAE of one dataset",
        )
