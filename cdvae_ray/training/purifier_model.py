"""Purifiers with the classifier behind them, as they are trained: the classifier never changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cdvae_ray.core.ape_gan import Discriminator, Generator
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.defenses import PurifiedClassifier, require_image_classifier
from cdvae_ray.core.hgd import Denoiser


class PurifierModel(nn.Module):
    """A purifier that is trained and a classifier that is not.

    Args:
        purifier: images in [0, 1] to images.
        classifier: of images; its weights take no gradient and it stays in eval mode.
    """

    def __init__(self, purifier: nn.Module, classifier: ImageClassifier) -> None:
        super().__init__()
        require_image_classifier(classifier)
        self.purifier = purifier
        self.classifier = classifier.requires_grad_(False)

    def train(self, mode: bool = True) -> PurifierModel:
        """Train or eval mode of the purifier."""
        super().train(mode)
        self.classifier.eval()
        return self

    def defense(self) -> PurifiedClassifier:
        """The same parts as a defence."""
        return PurifiedClassifier(self.purifier, self.classifier)


class HgdModel(PurifierModel):
    """HGD's denoiser before a classifier."""

    def __init__(self, classifier: ImageClassifier, *, width: int) -> None:
        super().__init__(Denoiser(width=width), classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of the purified images."""
        logits: Tensor = self.classifier(self.purifier(images))
        return logits


class ApeGanOutput(NamedTuple):
    """What both losses need."""

    purified: Tensor
    """P(x'), (N, 3, S, S)."""
    fake_logits_for_generator: Tensor
    """The discriminator's answer to P(x'), (N,), whose gradient reaches the generator alone."""
    fake_logits: Tensor
    """The same answer, whose gradient reaches the discriminator alone."""
    real_logits: Tensor
    """The discriminator's answer to x, (N,)."""


class ApeGanModel(PurifierModel):
    """APE-GAN's generator before a classifier, with the discriminator it is trained against."""

    def __init__(self, classifier: ImageClassifier, *, width: int) -> None:
        super().__init__(Generator(width=width), classifier)
        self.discriminator = Discriminator(image_size=classifier.image_size, width=width)

    def forward(self, images: Tensor, clean: Tensor) -> ApeGanOutput:
        """What both losses need of x' and x, (N, 3, S, S) in [0, 1] each."""
        purified: Tensor = self.purifier(images)
        frozen = {name: each.detach() for name, each in self.discriminator.named_parameters()}
        # Its own buffers as copies, so that one step counts once in their running statistics.
        frozen |= {name: each.clone() for name, each in self.discriminator.named_buffers()}
        for_generator: Tensor = functional_call(self.discriminator, frozen, (purified,))
        answers: Tensor = self.discriminator(torch.cat([clean, purified.detach()]))
        real, fake = answers.chunk(2)
        return ApeGanOutput(purified, for_generator, fake, real)
